"""What a run finds, and how much of it is measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

#: In the order in which a run takes them; each is a module of this package.
MEASURES = ("latency", "throughput", "clear", "first", "lag", "cpu", "outage")


@dataclass
class Series:
    """One client's samples, one of each round, in one case of a measure.

    Attributes:
        measure: the module that measured it.
        client: whose.
        case: what else tells it from the measure's other series, such as the operation and the delay.
        unit: of the samples.
        samples: what each round gave, in order.
    """

    measure: str
    client: str
    case: dict[str, Any]
    unit: str
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.samples)


class Found:
    """Series by what they are of."""

    def __init__(self, series: Sequence[Series] = ()) -> None:
        self.series = list(series)

    def add(self, measure: str, client: str, unit: str, value: float, **case: Any) -> None:
        """Append one sample to its series."""
        series = self.get(measure, client, unit=unit, **case)
        if series is None:
            series = Series(measure, client, case, unit)
            self.series.append(series)
        series.samples.append(round(value, 4))

    def get(self, measure: str, client: str, *, unit: str | None = None, **case: Any) -> Series | None:
        """Return the series, or ``None`` where that was not measured."""
        for series in self.series:
            if (series.measure, series.client, series.case) == (measure, client, case) and unit in (None, series.unit):
                return series
        return None

    def median(self, measure: str, client: str, **case: Any) -> float | None:
        """Return the series' median, or ``None`` where that was not measured."""
        series = self.get(measure, client, **case)
        return series.median if series else None

    def as_json(self) -> list[dict[str, Any]]:
        """Return what `json` takes."""
        return [asdict(series) for series in self.series]


def rotated(items: Sequence[T], by: int) -> Iterator[T]:
    """Yield all items from another one on in each round, so that none always follows the same one."""
    start = by % len(items) if items else 0
    yield from [*items[start:], *items[:start]]


@dataclass(frozen=True)
class Sizes:
    """How much a run measures."""

    name: str
    rounds: int
    #: Operations of one round of `latency` without delay and at 20 ms.
    operations: int
    delayed_operations: int
    #: Puts started at once in `throughput`, and how many are made in a round in all: at least one batch of each number.
    levels: tuple[int, ...]
    puts: int
    #: Keys that `clear` deletes without delay and at 20 ms, and up to how many in every round.
    clears: tuple[int, ...]
    delayed_clears: tuple[int, ...]
    clears_often: int
    #: As many keys common-io clears in every round, and as many in the first one only: it takes its time.
    common_io_clears: tuple[int, int]
    common_io_delayed_clears: tuple[int, int]
    #: Keys cleared by a process of which the memory is observed, and up to how many in every round.
    memory_clears: tuple[int, ...]
    memory_often: int
    lag_puts: int
    #: Rows of the large value that `lag` sets and reads, of some 400 bytes each.
    lag_rows: int
    cpu_operations: int
    #: How long the store answers 503 in `outage`.
    outage_seconds: float
    #: Measures taken beside each other: more than one only where no figure matters.
    beside: int = 1


FULL = Sizes(
    name="full",
    rounds=5,
    operations=200,
    delayed_operations=10,
    levels=(1, 4, 16, 64, 256),
    puts=256,
    clears=(100, 1_000, 10_000, 100_000),
    delayed_clears=(1_000, 10_000),
    clears_often=10_000,
    common_io_clears=(1_000, 10_000),
    common_io_delayed_clears=(100, 1_000),
    memory_clears=(1_000, 10_000, 100_000, 1_000_000),
    memory_often=10_000,
    lag_puts=100,
    lag_rows=20_000,
    cpu_operations=300,
    outage_seconds=10,
)
QUICK = Sizes(
    name="quick",
    rounds=2,
    operations=60,
    delayed_operations=3,
    levels=(1, 16, 64),
    puts=64,
    clears=(100, 1_000, 10_000),
    delayed_clears=(1_000,),
    clears_often=10_000,
    common_io_clears=(100, 1_000),
    common_io_delayed_clears=(0, 100),
    memory_clears=(1_000, 10_000),
    memory_often=0,
    lag_puts=20,
    lag_rows=20_000,
    cpu_operations=100,
    outage_seconds=10,
)
#: For the test suite: says nothing about speed.
SMOKE = Sizes(
    name="smoke",
    rounds=1,
    operations=3,
    delayed_operations=1,
    levels=(1, 2),
    puts=2,
    clears=(3, 1_001),
    delayed_clears=(3,),
    clears_often=1_001,
    common_io_clears=(3, 3),
    common_io_delayed_clears=(3, 3),
    memory_clears=(3,),
    memory_often=0,
    lag_puts=2,
    lag_rows=2,
    cpu_operations=2,
    outage_seconds=0.1,
    beside=4,
)
