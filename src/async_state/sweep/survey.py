"""Lists the store, and decides what each object is.

An object may be deleted if no row refers to it, and none will unless it is written again. Why that is so for an orphan:

* A set writes the object first and the row right after it, within seconds. Where the row of an object is missing in the
  snapshot, either it was gone by then, or it was committed later; then its object was written shortly before that, and
  so later than `Grace.cutoff`.
* Names are deterministic, so that a later set may use the name of an orphan again. It writes the object again, which
  gives it another ETag and another time: `remove` looks at both, and deletes that very object only.

Neither depends on how old the snapshot is, nor on rows that come and go while it is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import aclosing
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from async_state import codec, ownership
from async_state.errors import ConfigurationError, CorruptObjectError, StoreError
from async_state.keys import Side, parse_name
from async_state.stores.base import Entry, Store
from async_state.sweep.errors import SnapshotError
from async_state.sweep.ledger import Ledger, Verdict
from async_state.sweep.references import References, of_sweep

if TYPE_CHECKING:
    from async_state.settings import Settings
    from async_state.sweep.sources import Source

#: S3 and Azure refuse what is signed by a clock that differs from their own by more.
MAX_SKEW: Final = timedelta(minutes=15)


class Grace(NamedTuple):
    """Which objects are too young to be deleted.

    Attributes:
        cutoff: What was written later is too young.
    """

    cutoff: datetime

    @classmethod
    def of(cls, taken_at: datetime, grace: timedelta) -> Grace:
        """Return what is older than ``grace`` at the time of the snapshot.

        Args:
            taken_at: By the clock of the machine that took the snapshot.
            grace: At least the longest time between an object's write and the commit of its row, and the difference
                between that clock and the store's.

        Raises:
            SnapshotError: The snapshot is from the future, so that the clock of the machine is wrong, and nobody knows
                when it was taken.
        """
        now = datetime.now(timezone.utc)
        if taken_at > now + MAX_SKEW:
            raise SnapshotError(
                f"the snapshot says that it was taken at {taken_at.isoformat()}, which is in the future here "
                f"({now.isoformat(timespec='seconds')}): which objects are older can't be told. Nothing was deleted. "
                "Set the clocks of both machines (NTP), and run `airflow async-state export-refs` again"
            )
        try:
            return cls(min(taken_at, now) - grace)
        except OverflowError:
            return cls(datetime.min.replace(tzinfo=timezone.utc))

    def covers(self, entry: Entry) -> bool:
        """Tell whether the object is too young."""
        return entry.modified > self.cutoff


async def find(
    store: Store,
    ledger: Ledger,
    source: Source,
    settings: Settings,
    grace: timedelta,
    progress: Callable[[int], None] = lambda _: None,
) -> Found:
    """Find the orphans, and leave them in the ledger.

    Args:
        store: The store at ``settings.url``.
        ledger: An empty one.
        source: Says to which objects rows refer.
        settings: Of the base URL.
        grace: How old an orphan is at least.
        progress: Is called with the number of objects of each page that is listed.

    Returns:
        How many objects are what.

    Raises:
        SnapshotError, SourceError: The references are not complete.
        StoreError: The store can't be listed.
    """
    cutoff = Grace.of(await source.read(ledger), grace)
    survey = Survey(store, ledger, cutoff, settings.timeout)
    await survey.walk(progress)
    if survey.has_rows:
        await survey.read_rows(of_sweep(settings), settings.max_concurrency)
    await source.resolve(ledger, has_rows=survey.has_rows)
    return survey.found()


class Survey:
    """A walk through everything below a base URL.

    Args:
        store: The store at the base URL.
        ledger: Where the references are, and what is found goes.
        grace: Which objects are too young.
        timeout: Seconds for each page, and for each row that is read.
    """

    def __init__(self, store: Store, ledger: Ledger, grace: Grace, timeout: float) -> None:
        self._store = store
        self._ledger = ledger
        self._grace = grace
        self._timeout = timeout
        self._counted: Counter[Verdict] = Counter()
        self._values = 0
        self.has_rows = False

    async def walk(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """List every object.

        Args:
            progress: Is called with the number of objects of each page.

        Raises:
            StoreError: The store failed.
        """
        async with aclosing(self._store.entries("", timeout=self._timeout)) as pages:
            async for page in pages:
                self._take(page)
                progress(len(page))

    def _take(self, page: Iterable[Entry]) -> None:
        values: list[Entry] = []
        rows: list[str] = []
        for entry in page:
            place = parse_name(entry.name)
            if place is not None and place.side is Side.WORKER:
                values.append(entry)
            elif place is not None:
                rows.append(entry.name)
            elif entry.name != ownership.NAME:
                self._counted[Verdict.FOREIGN] += 1
        referenced = self._ledger.referenced({entry.name for entry in values})
        self._ledger.add_objects(
            (entry, Verdict.TOO_YOUNG if self._grace.covers(entry) else Verdict.ORPHAN)
            for entry in values
            if entry.name not in referenced
        )
        self._ledger.add_rows(rows)
        self.has_rows = self.has_rows or bool(rows)
        self._values += len(values)
        self._counted[Verdict.REFERENCED] += len(referenced) + len(rows)

    async def read_rows(self, references: References, concurrency: int) -> None:
        """Read the rows that the API server's side keeps in the store, and take what they refer to for referenced.

        What a row that can't be read might refer to is in doubt.
        """
        slots = anyio.Semaphore(concurrency)

        async def read(name: str) -> None:
            try:
                body = await self._store.get(name, timeout=self._timeout)
                text = None if body is None else codec.decode(body)
            except (StoreError, CorruptObjectError, ConfigurationError):
                self._ledger.doubt(_reach(name))
            else:
                self._ledger.add_refs(references, references.find(text))
            finally:
                slots.release()

        async with anyio.create_task_group() as group:
            for name in self._ledger.rows():
                await slots.acquire()
                group.start_soon(read, name)

    def found(self) -> Found:
        """Return what was found, once every reference is in the ledger."""
        self._ledger.apply_refs()
        unknown_base = self._ledger.doubt_unknown()
        counted, size = self._counted.copy(), 0
        for verdict, (count, found) in self._ledger.counts().items():
            counted[verdict] += count
            size += found if verdict is Verdict.ORPHAN else 0
        return Found(
            objects=counted.total() if hasattr(counted, "total") else sum(counted.values()),
            referenced=counted[Verdict.REFERENCED],
            too_young=counted[Verdict.TOO_YOUNG],
            in_doubt=counted[Verdict.IN_DOUBT],
            foreign=counted[Verdict.FOREIGN],
            orphans=counted[Verdict.ORPHAN],
            bytes=size,
            values=self._values,
            has_refs=self.has_rows or self._ledger.has_refs(),
            unknown_base=unknown_base,
        )


class Found(NamedTuple):
    """How many objects are what: the first is the sum of the next five.

    Attributes:
        objects: All but the ownership's.
        referenced: As in `Verdict`, and so on.
        bytes: Of the orphans.
        values: The objects that a worker's side has written.
        has_refs: Whether any row was seen at all, which may refer to an object below this URL.
        unknown_base: A base URL below which rows refer to the names of objects that are therefore in doubt.
    """

    objects: int
    referenced: int
    too_young: int
    in_doubt: int
    foreign: int
    orphans: int
    bytes: int
    values: int
    has_refs: bool
    unknown_base: str

    def refusal(self, limit: float) -> str:
        """Return why the orphans must not be deleted, as what was found looks like a mistake; or an empty string.

        Args:
            limit: The largest percentage of the values that may go.
        """
        if self.values and not self.has_refs and limit < 100:
            return (
                f"no row refers to any of the {self.values} values in the store. Most likely the references are of "
                "another Airflow, or its rows are not in its database. If it is true that no state is left, give "
                "--max-orphans 100%"
            )
        if self.orphans * 100 > limit * self.values:
            share = 100 * self.orphans / self.values
            return (
                f"{self.orphans} of {self.values} values ({share:.3g}%) would go, and --max-orphans allows {limit:g}%. "
                "Look at some of them; if they are orphans indeed, give a higher --max-orphans"
            )
        return ""


def _reach(row: str) -> str:
    """Return the prefix of all values to which a row of this name may refer."""
    # The API server names an asset by its id, and workers name it by its name or URI.
    return "v1/asset/" if row.startswith("v1/asset/") else row[: row.rindex(f"{Side.SERVER.value}/")]
