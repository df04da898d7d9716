"""``usage``: objects and bytes by Dag, run or asset, largest first."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from async_state.cli import context, filters
from async_state.cli.output import Column, Progress, print_rows, size
from async_state.cli.runner import DONE
from async_state.keys import Place


class _Group(NamedTuple):
    """What is counted for."""

    columns: tuple[str, ...]
    of: Callable[[Place], tuple[Any, ...]]


_GROUPS: Final = {
    "dag": _Group(("dag_id",), lambda place: (place.dag_id,)),
    "run": _Group(("dag_id", "run_id"), lambda place: (place.dag_id, place.run_id)),
    "asset": _Group(("asset", "named_by"), lambda place: (place.asset, place.asset_by)),
}


async def run(args: argparse.Namespace) -> int:
    """Count what is selected. The memory that this takes grows with the number of Dags, runs or assets alone."""
    settings, selected, group = context.settings(), filters.selection(args), _GROUPS[args.by]
    counts: dict[tuple[Any, ...], list[int]] = {}
    async with context.opened(settings) as store:
        with Progress("Counting") as progress:
            async for page in selected.entries(store, settings.timeout):
                for entry, place in page:
                    if bool(place.asset) is (args.by == "asset"):
                        count = counts.setdefault(group.of(place), [0, 0])
                        count[0] += 1
                        count[1] += entry.size
                progress.add(len(page))
    columns = [*map(Column, group.columns), Column("objects", show="{:,}".format), Column("bytes", show=size)]
    largest_first = sorted(counts.items(), key=lambda item: (-item[1][1], item[0]))
    print_rows(
        args.output,
        columns,
        (dict(zip((*group.columns, "objects", "bytes"), (*of, *count), strict=True)) for of, count in largest_first),
    )
    return DONE
