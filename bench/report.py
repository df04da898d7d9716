"""The figures as the page on performance has them, and the five of README."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clients import VALUE
from bench.samples import Found, Series
from bench.servers import DELAY

_OURS = "async_state"
_OURS_64 = "async_state, 64 at once"
_TIMES = " \N{MULTIPLICATION SIGN}"
#: By how much a client must be better to be listed: less is noise.
_NOISE = 1.05


def into_page(page: Path, marker: str, text: str) -> None:
    """Put the text between the two comments of a Markdown file that have this name."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    before = page.read_text()
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    assert pattern.search(before), f"{page.name} has no {begin}"
    page.write_text(pattern.sub(lambda _: f"{begin}\n{text}{end}", before))


def five(found: Found) -> str:
    """Return README's table: what users of Airflow notice most, beside common-io's backend."""
    figures: list[tuple[str, str, str, dict[str, Any]]] = [
        ("the first operation of a forked task", "first", "ms", {"process": "forked"}),
        ("memory that it adds to the task", "first", "MB", {"process": "forked"}),
        (f"a `set` at {DELAY} ms a request", "latency", "ms", {"operation": "put", "mode": "sync", "delay": DELAY}),
        (f"longest stop of an event loop, puts at once at {DELAY} ms", "lag", "ms", {"phase": "puts at once"}),
        ("a clear of 10,000 keys", "clear", "s", {"keys": 10_000, "delay": 0}),
    ]
    rows = []
    for what, measure, unit, case in figures:
        ours, theirs = (found.get(measure, name, unit=unit, **case) for name in (_OURS, "common-io"))
        cells = [f"{_number(series.median)} {unit}" if series else "not measured" for series in (ours, theirs)]
        rows.append(f"| {what} | {cells[0]} | {cells[1]} |\n")
    return "| | async_state | common-io on s3fs |\n|---|---|---|\n" + "".join(rows)


def text(found: Found, results: dict[str, Any], drawn: Sequence[tuple[str, str]], pictures: Path) -> str:
    """Return what stands between the comments of the page.

    Parameters:
        found: all series.
        results: what else results.json says.
        drawn: file and description of each plot.
        pictures: their directory, as the page shall name it.
    """
    parts = [_head(results), _targets(found, results.get("mapped")), _losses(found)]
    parts += ["## Plots\n"] if drawn else []
    parts += [f"![{description}]({(pictures / name).as_posix()})\n" for name, description in drawn]
    tables = (_outage, _first, _latency, _throughput, _clear, _memory, _lag, _cpu)
    parts += ["## Every figure\n", *(table for make in tables if (table := make(found)))]
    return "\n".join(parts)


def mapped_ratio(file: Path) -> float | None:
    """Return how long a DAG run takes by the metadata database's time, of what `bench.mapped` has written."""
    if not file.exists():
        return None
    walls: dict[str, list[float]] = {}
    for run in json.loads(file.read_text()):
        walls.setdefault(run["backend"], []).append(run["dag_run"])
    # Of runs that were neighbours, as `bench.mapped` itself has it.
    pairs = list(zip(walls.get(_OURS, ()), walls.get("metastore", ()), strict=False))
    return statistics.median(ours / other for ours, other in pairs) if pairs else None


def _head(results: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in results["libraries"].items())
    taken = list(results["taken"].values())
    rounds = " or ".join(str(rounds) for rounds in sorted({run["rounds"] for run in taken}))
    day = max((run["at"] for run in taken), default="")[:10]
    machine = f"Python {results['python']}, {results['cpus']} CPUs for client and server"
    small = sorted({run["sizes"] for run in taken} - {"full"})
    warning = f" **Not to be quoted: sizes are those of --{' and --'.join(small)}.**" if small else ""
    return f"""## How it is measured

`make bench` measures all of this in one run of ten minutes, rounds alternating between the clients: common-io's backend
on s3fs, boto3, and a bare aiobotocore client on the caller's own loop. obstore (a client in Rust) and aiohttp (the HTTP
exchange alone, signed beforehand) are the limits. Figures are medians of {rounds} rounds, with the least and the most,
of {day}: {machine}.{warning}

<sub>{libraries}</sub>
"""


@dataclass
class Target:
    """A row of the table of targets."""

    what: str
    limit: float | None
    measured: float | None
    #: Better, and not promised.
    aim: float | None = None
    unit: str = _TIMES
    least: bool = False
    note: str = ""

    def row(self) -> str:
        at = "at least" if self.least else "at most"
        targets = [f"{at} {_ratio(self.limit, self.unit)}"] if self.limit else []
        targets += [f"aim {_ratio(self.aim, self.unit)}"] if self.aim else []
        verdicts = []
        if self.measured is not None:
            if self.limit:
                verdicts.append("met" if self._reaches(self.limit) else "**missed**")
            if self.aim and "**missed**" not in verdicts:
                verdicts.append("aim met" if self._reaches(self.aim) else "aim missed")
        measured = "not measured" if self.measured is None else _ratio(self.measured, self.unit) + self.note
        return f"| {self.what} | {', '.join(targets)} | {measured} | {', '.join(verdicts)} |\n"

    def _reaches(self, limit: float) -> bool:
        assert self.measured is not None
        return self.measured >= limit if self.least else self.measured <= limit


def _ratio(value: float, unit: str) -> str:
    if unit == _TIMES and 0 < value < 0.2:
        parts = 1 / value
        return f"1/{parts:,.0f}" if parts >= 10 else f"1/{parts:.3g}"
    return f"{value:.3g}{unit}"


def _targets(found: Found, mapped: float | None) -> str:
    def ratio(measure: str, client: str, ours: str = _OURS, **case: Any) -> float | None:
        mine, other = found.median(measure, ours, **case), found.median(measure, client, **case)
        return mine / other if mine and other else None

    def sync_to_aiobotocore(operation: str, delay: int) -> float | None:
        mine = found.median("latency", _OURS, operation=operation, mode="sync", delay=delay)
        other = found.median("latency", "aiobotocore", operation=operation, mode="async", delay=delay)
        return mine / other if mine and other else None

    targets = [
        Target(
            "first operation in a forked task, of common-io's", 1 / 6, ratio("first", "common-io", process="forked")
        ),
        Target("the same, in time", None, found.median("first", _OURS, process="forked"), 50, " ms"),
        Target(
            "first operation in a fresh interpreter, of common-io's",
            1 / 2,
            ratio("first", "common-io", process="fresh"),
        ),
        Target("memory added to a forked task", 18, _of(found, "MB", "first", process="forked"), 12, " MB"),
        *(
            Target(
                f"sync {operation}, {said(delay)}, of bare aiobotocore's",
                limit,
                sync_to_aiobotocore(operation, delay),
            )
            for operation, delay, limit in (
                ("put", 0, 1.35),
                ("get", 0, 1.35),
                ("put", DELAY, 0.55),
                ("get", DELAY, 1.03),
            )
        ),
        Target(
            "puts a second, 64 at once, of bare aiobotocore's",
            0.9,
            ratio("throughput", "aiobotocore", at_once=64),
            2,
            least=True,
        ),
        Target(
            "the same with `max_concurrency = 64`",
            0.9,
            ratio("throughput", "aiobotocore", _OURS_64, at_once=64),
            2,
            least=True,
        ),
        Target("200 mapped tasks in a real Airflow, of the metadata database's time", 1.15, mapped),
        *(_clear_target(found, delay, limit) for delay, limit in ((0, 1 / 20), (DELAY, 1 / 200))),
    ]
    rows = "".join(target.row() for target in targets)
    return (
        f"## What we hold ourselves to\n\n| | target | measured | |\n|---|---|---|---|\n{rows}\n"
        "Mapped tasks are measured by themselves: `python -m bench.mapped 200 6 --json docs/bench/mapped.json`.\n"
    )


def _of(found: Found, unit: str, measure: str, **case: Any) -> float | None:
    series = found.get(measure, _OURS, unit=unit, **case)
    return series.median if series else None


def _clear_target(found: Found, delay: int, limit: float) -> Target:
    keys = 10_000
    what = f"clear of {keys:,} keys, {said(delay)}, of common-io's"
    mine = found.get("clear", _OURS, unit="s", keys=keys, delay=delay)
    theirs = [s for s in _along(found, "clear", "common-io", "s", "keys", delay=delay) if s.case["keys"] <= keys]
    if mine is None or not theirs:
        return Target(what, limit, None)
    last = theirs[-1]
    seconds = last.median * keys / last.case["keys"]
    note = "" if last.case["keys"] == keys else f" (its time extrapolated from {last.case['keys']:,} keys)"
    return Target(what, limit, mine.median / seconds, note=note)


def _losses(found: Found) -> str:
    rows = []
    for series in found.series:
        if series.client != _OURS or series.unit == "requests":
            continue
        more_is_better = series.measure in ("throughput", "outage")
        better = []
        for other in found.series:
            if (other.measure, other.case, other.unit) != (series.measure, series.case, series.unit):
                continue
            if other.client.startswith(_OURS) or not series.median or not other.median:
                continue
            factor = other.median / series.median if more_is_better else series.median / other.median
            if factor > _NOISE:
                better.append(f"{other.client} {_number(other.median)} ({factor:.1f}{_TIMES})")
        if better:
            rows.append(f"| {_described(series)} | {_number(series.median)} {series.unit} | {', '.join(better)} |\n")
    if not rows:
        return ""
    return (
        "## Where we lose\n\nEvery figure in which another client is better by more than "
        f"{_NOISE - 1:.0%}.\n\n| | ours | better |\n|---|---|---|\n{''.join(rows)}"
    )


def _described(series: Series) -> str:
    case = dict(series.case)
    words = [{"first": "first operation", "clear": "clear", "lag": "worst gap"}.get(series.measure, series.measure)]
    if series.unit == "MB":
        words.append("memory")
    if "keys" in case:
        words.append(f"{case.pop('keys'):,} keys")
    if "at_once" in case:
        words.append(f"{case.pop('at_once')} at once")
    delay = case.pop("delay", None)
    words += ["whole process" if value == "wall" else str(value) for value in case.values()]
    return ", ".join([*words, *([said(delay)] if delay is not None else [])])


def _latency(found: Found) -> str:
    columns = [(operation, delay) for delay in (0, DELAY) for operation in ("put", "get")]
    rows = []
    for mode in "sync", "async":
        for name in _names(found, "latency"):
            base = [found.get("latency", _OURS, operation=o, mode=mode, delay=d) for o, d in columns]
            cells = [found.get("latency", name, operation=o, mode=mode, delay=d) for o, d in columns]
            rows.append((f"{name}, {mode}", cells, base))
    titles = [f"{operation}, {said(delay)}" for operation, delay in columns]
    return _table("latency", f"one operation on {len(VALUE)} bytes, ms", titles, rows)


def _throughput(found: Found) -> str:
    columns = _values(found, "throughput", "at_once")
    base = [found.get("throughput", _OURS, at_once=level) for level in columns]
    rows = [
        (name, [found.get("throughput", name, at_once=level) for level in columns], base)
        for name in _names(found, "throughput")
    ]
    return _table("throughput", "puts a second by how many are started at once", [str(c) for c in columns], rows)


def _clear(found: Found) -> str:
    keyed = sorted({(s.case["delay"], s.case["keys"]) for s in found.series if s.measure == "clear" and s.unit == "s"})
    base = [found.get("clear", _OURS, unit="s", keys=keys, delay=delay) for delay, keys in keyed]
    rows = []
    for name in _names(found, "clear"):
        cells = [found.get("clear", name, unit="s", keys=keys, delay=delay) for delay, keys in keyed]
        rows.append((name, cells, base))
    titles = [f"{keys:,}, {said(delay)}" for delay, keys in keyed]
    requests = []
    for name in _names(found, "clear"):
        cells = [found.get("clear", name, unit="requests", keys=keys, delay=delay) for delay, keys in keyed]
        requests.append((f"{name}, requests", cells, [None] * len(cells)))
    return _table("clear", "clearing a scope, s, and requests at the server", titles, [*rows, *requests])


def _memory(found: Found) -> str:
    columns = sorted({s.case["keys"] for s in found.series if s.measure == "clear" and s.unit == "MB"})
    base = [found.get("clear", _OURS, unit="MB", keys=keys) for keys in columns]
    rows = [
        (name, [found.get("clear", name, unit="MB", keys=keys) for keys in columns], base)
        for name in _names(found, "clear")
    ]
    return _table("clear", "memory that clearing a scope takes, MB", [f"{keys:,}" for keys in columns], rows)


def _first(found: Found) -> str:
    columns: list[tuple[str, str, dict[str, Any]]] = [
        ("fresh, ms", "ms", {"process": "fresh"}),
        ("fresh, the whole process, ms", "ms", {"process": "fresh", "clock": "wall"}),
        ("forked, ms", "ms", {"process": "forked"}),
        ("forked, MB", "MB", {"process": "forked"}),
    ]
    base = [found.get("first", _OURS, unit=unit, **case) for _, unit, case in columns]
    rows = [
        (name, [found.get("first", name, unit=unit, **case) for _, unit, case in columns], base)
        for name in _names(found, "first")
    ]
    return _table("first", "a process's first operation", [title for title, _, _ in columns], rows)


def _lag(found: Found) -> str:
    columns = ["first use", "puts at once", "large set", "large read"]
    base = [found.get("lag", _OURS, phase=phase) for phase in columns]
    rows = [(name, [found.get("lag", name, phase=phase) for phase in columns], base) for name in _names(found, "lag")]
    return _table(
        "lag",
        f"worst gap of the caller's loop at {DELAY} ms, ms",
        columns,
        rows,
        "Common-io's first use fails on a loop, and is in a thread here. Large: 8 MB of JSON in 20,000 rows.",
    )


def _cpu(found: Found) -> str:
    columns = [(operation, mode) for mode in ("sync", "async") for operation in ("put", "get")]
    base = [found.get("cpu", _OURS, operation=operation, mode=mode) for operation, mode in columns]
    rows = [
        (name, [found.get("cpu", name, operation=operation, mode=mode) for operation, mode in columns], base)
        for name in _names(found, "cpu")
    ]
    note = "Obstore can't be the backend's client: it survives no fork, and lacks botocore's chain of credentials."
    titles = [f"{mode} {operation}" for operation, mode in columns]
    return _table("cpu", "CPU time of an operation, ms", titles, rows, note)


def _outage(found: Found) -> str:
    columns = ["set", "get"]
    names = _names(found, "outage")
    rows = [(n, [found.get("outage", n, operation=o) for o in columns], [None, None]) for n in names]
    return _table("outage", "how many of 12 succeed that meet a 503 of 10 s", columns, rows)


#: A table's row: a series of each column, where there is one.
Cells = Sequence[Series | None]


def _table(
    measure: str, title: str, columns: Sequence[str], rows: Sequence[tuple[str, Cells, Cells]], note: str = ""
) -> str:
    return table(title, columns, rows, f"By `python -m bench {measure}`. {note}".rstrip())


def table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Cells, Cells]], note: str = "") -> str:
    """Return a table below its heading; nothing if no row has figures.

    Parameters:
        title: the heading.
        columns: their titles.
        rows: each one's title, its series, and those that they are compared with.
        note: what stands above the table.
    """
    rows = [(name, cells, base) for name, cells, base in rows if any(cells)]
    if not rows:
        return ""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(_cell(cell, of) for cell, of in zip(cells, base, strict=True)) + " |"
        for name, cells, base in rows
    ]
    parts = [f"### {title[0].upper()}{title[1:]}", *([note] if note else []), "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _cell(series: Series | None, base: Series | None) -> str:
    if series is None:
        return ""
    least, most = min(series.samples), max(series.samples)
    shown = _number(series.median)
    if len(series.samples) > 1 and least != most:
        shown += f" <sub>{_number(least)} to {_number(most)}</sub>"
    elif len(series.samples) == 1 and series.unit != "requests":
        shown += " <sub>once</sub>"
    if base is not None and base is not series and base.median:
        ratio = series.median / base.median
        shown += f", {ratio:,.0f}{_TIMES}" if ratio >= 10 else f", {ratio:.2g}{_TIMES}"
    return shown


def _names(found: Found, measure: str) -> list[str]:
    return list(dict.fromkeys(series.client for series in found.series if series.measure == measure))


def _values(found: Found, measure: str, along: str) -> list[int]:
    return sorted({series.case[along] for series in found.series if series.measure == measure})


def _along(found: Found, measure: str, client: str, unit: str, along: str, **case: Any) -> list[Series]:
    fitting = [
        series
        for series in found.series
        if (series.measure, series.client, series.unit) == (measure, client, unit)
        and {name: value for name, value in series.case.items() if name != along} == case
    ]
    return sorted(fitting, key=lambda series: int(series.case[along]))


def said(delay: int) -> str:
    """Return a delay in milliseconds in words."""
    return f"{delay} ms" if delay else "no delay"


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
