"""The figures of `bench.clouds` as the page on performance has them."""

from __future__ import annotations

import statistics
from typing import Any

from bench.clients import VALUE
from bench.report import Target, said, table
from bench.samples import Found, Series
from bench.servers import DELAY

_OURS, _COMMON_IO = "async_state", "common-io"
_CLOUDS = {"gs": "Google", "az": "Azure"}


def text(found: Found, results: dict[str, Any]) -> str:
    """Return what stands between the comments of the page.

    Parameters:
        found: all series.
        results: what else clouds.json says.
    """
    tables = (_first, _latency, _throughput, _clear, _cpu)
    return "\n".join([_head(results), _targets(found), *(made for make in tables if (made := make(found)))])


def _head(results: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in results["libraries"].items())
    size = results["sizes"]
    warning = "" if size == "full" else f" **Not to be quoted: sizes are those of --{size}.**"
    return (
        f"Medians of {results['rounds']} rounds, with the least and the most, of {results['at'][:10]}: Python "
        f"{results['python']}, {results['cpus']} CPUs for client and server.{warning}\n\n<sub>{libraries}</sub>\n"
    )


def _targets(found: Found) -> str:
    targets = []
    for cloud, title in _CLOUDS.items():
        first = _ratio(found, "first", unit="ms", cloud=cloud, process="forked")
        targets.append(Target(f"{title}: first operation in a forked task, of common-io's", 1 / 3, first))
        puts = _ratio(found, "throughput", cloud=cloud, at_once=64)
        targets.append(Target(f"{title}: async puts a second, 64 at once, of common-io's", 3, puts, least=True))
        for delay in 0, DELAY:
            clear = _ratio(found, "clear", cloud=cloud, keys=1_000, delay=delay)
            targets.append(Target(f"{title}: clear of 1,000 keys, {said(delay)}, of common-io's", 1 / 20, clear))
    rows = "".join(target.row() for target in targets)
    return f"| | target | measured | |\n|---|---|---|---|\n{rows}"


def _ratio(found: Found, measure: str, **case: Any) -> float | None:
    """Return the median of the ratios of those rounds that have both, whose samples were taken one after the other."""
    ours, theirs = found.get(measure, _OURS, **case), found.get(measure, _COMMON_IO, **case)
    if ours is None or theirs is None:
        return None
    return statistics.median(mine / other for mine, other in zip(ours.samples, theirs.samples, strict=False))


def _first(found: Found) -> str:
    columns: list[tuple[str, str, dict[str, Any]]] = [
        ("fresh, ms", "ms", {"process": "fresh"}),
        ("forked, ms", "ms", {"process": "forked"}),
        ("forked, MB", "MB", {"process": "forked"}),
    ]
    return _both(found, "first", "a process's first operation", columns)


def _latency(found: Found) -> str:
    return "\n".join(
        _both(found, "latency", f"one operation on {len(VALUE)} bytes, {said(delay)}, ms", _operations(delay=delay))
        for delay in (0, DELAY)
    )


def _cpu(found: Found) -> str:
    return _both(found, "cpu", "CPU time of an operation, ms", _operations())


def _throughput(found: Found) -> str:
    levels = sorted({series.case["at_once"] for series in found.series if series.measure == "throughput"})
    columns = [(str(level), "puts/s", {"at_once": level}) for level in levels]
    return _both(found, "throughput", "async puts a second by how many are started at once", columns)


def _clear(found: Found) -> str:
    cases = sorted({(s.case["delay"], s.case["keys"]) for s in found.series if s.measure == "clear"})
    columns = [(f"{keys:,} keys, {said(delay)}", "s", {"keys": keys, "delay": delay}) for delay, keys in cases]
    return _both(found, "clear", "clearing a scope, s", columns)


def _operations(**case: Any) -> list[tuple[str, str, dict[str, Any]]]:
    ways = [(mode, operation) for mode in ("sync", "async") for operation in ("put", "get")]
    return [(f"{mode} {operation}", "ms", {"operation": operation, "mode": mode, **case}) for mode, operation in ways]


def _both(found: Found, measure: str, title: str, columns: list[tuple[str, str, dict[str, Any]]]) -> str:
    """Return a table with a row for each client of each cloud."""
    rows = []
    for cloud, name in _CLOUDS.items():

        def cells(client: str, cloud: str = cloud) -> list[Series | None]:
            return [found.get(measure, client, unit=unit, cloud=cloud, **case) for _, unit, case in columns]

        clients = dict.fromkeys(series.client for series in found.series if series.measure == measure)
        rows += [(f"{name}, {client}", cells(client), cells(_OURS)) for client in clients]
    return table(title, [title for title, _, _ in columns], rows)
