"""The filters of a command: which part of the store is listed, and what is taken of it."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import NamedTuple

from async_state import keys
from async_state.cli.runner import UsageError
from async_state.keys import Place
from async_state.stores.base import Entry, Store

_OF_TASKS = ("dag_id", "run_id", "task_id", "map_index")
_OF_ASSETS = ("asset_name", "asset_uri")


class Selection(NamedTuple):
    """What the filters select.

    Attributes:
        prefix: The narrowest one that has all of it.
        segments: What a name must have at each place that a filter is about, encoded as in a name, so that identifiers
            match whose end is cut off there.
    """

    prefix: str
    segments: dict[int, str]

    def place(self, name: str) -> Place | None:
        """Return what the name says if it is selected, or ``None``."""
        parts = name.split("/")
        for index, segment in self.segments.items():
            if index >= len(parts) or (parts[index] != segment and not _has_region(index, parts, segment)):
                return None
        return keys.parse_name(name)

    async def entries(self, store: Store, timeout: float) -> AsyncIterator[list[tuple[Entry, Place]]]:
        """Yield what is selected in the store, a page at a time.

        Args:
            store: Where it lies.
            timeout: Seconds for each page.

        Raises:
            StoreError: The store failed.
        """
        async with aclosing(store.entries(self.prefix, timeout=timeout)) as pages:
            async for page in pages:
                yield [(entry, place) for entry in page if (place := self.place(entry.name)) is not None]


def selection(args: argparse.Namespace) -> Selection:
    """Return what the arguments select; everything that is a key if there is no filter.

    Raises:
        UsageError: No key can be selected by all of them.
    """
    tasks, assets = _given(args, _OF_TASKS), _given(args, _OF_ASSETS)
    if tasks and assets:
        raise UsageError(f"{tasks[0]} and {assets[0]} exclude each other: a key belongs to a task or to an asset")
    if len(assets) == 2:
        raise UsageError(
            "--asset-name and --asset-uri exclude each other: what was stored by an asset's name is found by it, and "
            "what was stored by its URI by that"
        )
    if assets:
        kind = "name" if args.asset_name is not None else "uri"
        identifier = keys.id_segment(args.asset_name if kind == "name" else args.asset_uri)
        segments, prefix = {2: kind, 3: identifier}, f"v1/asset/{kind}/{identifier}/"
    else:
        segments, prefix = _of_task(args) if tasks else ({}, "v1/")
    if args.key is not None:
        key = keys.key_segment(args.key)
        return Selection(prefix, {**segments, (5 if assets else 7 if tasks else -1): key})
    return Selection(prefix, segments)


def is_empty(args: argparse.Namespace) -> bool:
    """Tell whether there is no filter."""
    return not _given(args, (*_OF_TASKS, *_OF_ASSETS, "key"))


def _of_task(args: argparse.Namespace) -> tuple[dict[int, str], str]:
    segments = {1: "task"}
    prefix, narrows = "v1/task/", True
    for index, value in enumerate((args.dag_id, args.run_id, args.task_id), start=2):
        narrows = narrows and value is not None
        if value is not None:
            segments[index] = keys.id_segment(value)
            # A task's region follows its id in the same segment.
            if narrows and index < 4:
                prefix += f"{segments[index]}/"
    if args.map_index is not None:
        segments[5] = str(args.map_index)
    return segments, prefix


def _has_region(index: int, parts: list[str], segment: str) -> bool:
    return index == 4 and parts[1] == "task" and parts[4].startswith(f"{segment}@")


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
