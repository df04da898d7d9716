"""``list``: the keys that have an object, as they are listed."""

from __future__ import annotations

import argparse
from typing import Any, Final

import anyio

from async_state.cli import context, filters
from async_state.cli.output import Column, age, rows, size
from async_state.cli.runner import DONE
from async_state.errors import StoreError
from async_state.keys import Place
from async_state.stores.base import Entry, Store

COLUMNS: Final = (
    Column("dag_id"),
    Column("run_id"),
    Column("task_id"),
    Column("map_index"),
    Column("asset"),
    Column("key"),
    Column("size", show=size),
    Column("modified", "age", show=age),
    Column("encoding"),
    Column("plane"),
)
#: For programs, which may go on with it.
_REF: Final = Column("ref")


async def run(args: argparse.Namespace) -> int:
    """Print the selected keys, in constant memory."""
    settings, selected = context.settings(), filters.selection(args)
    columns = _readable(selected.prefix) if args.output == "table" else (*COLUMNS, _REF)
    async with context.opened(settings) as store:
        with rows(args.output, columns) as add:
            async for page in selected.entries(store, settings.timeout):
                encodings: list[str | None] = [None] * len(page)
                if not args.no_encoding:
                    encodings = await _encodings(store, page, settings.max_concurrency, settings.timeout)
                for (entry, place), encoding in zip(page, encodings, strict=True):
                    add(row(settings.url, entry, place, encoding))
    return DONE


def _readable(prefix: str) -> list[Column]:
    """Return the columns of a table, without those that would be empty in all of it."""
    empty = {"v1/task/": COLUMNS[4:5], "v1/asset": COLUMNS[:4]}.get(prefix[:8], ())
    return [column for column in COLUMNS if column not in empty]


def row(url: str, entry: Entry, place: Place, encoding: str | None) -> dict[str, Any]:
    """Return what there is to print of an object.

    Args:
        url: The base URL.
        entry: As listed.
        place: What its name says.
        encoding: How it is compressed; ``None`` where that is not known.
    """
    return {
        "dag_id": place.dag_id or None,
        "run_id": place.run_id or None,
        "task_id": place.task_id + (f"@{place.region}" if place.region else "") or None,
        "map_index": place.map_index,
        "asset": place.asset or None,
        "key": place.key,
        "size": entry.size,
        "modified": entry.modified,
        "encoding": encoding,
        "plane": place.side.value,
        "ref": f"{url}/{entry.name}",
    }


async def _encodings(
    store: Store, page: list[tuple[Entry, Place]], concurrency: int, timeout: float
) -> list[str | None]:
    found: list[str | None] = [None] * len(page)
    slots = anyio.Semaphore(concurrency)
    failures: list[StoreError] = []

    async def ask(index: int, name: str) -> None:
        async with slots:
            try:
                details = await store.head(name, timeout=timeout)
            except StoreError as e:
                failures.append(e)
                group.cancel_scope.cancel()
                return
            if details is not None:
                found[index] = details.content_encoding or "none"

    async with anyio.create_task_group() as group:
        for index, (entry, _) in enumerate(page):
            group.start_soon(ask, index, entry.name)
    if failures:
        raise failures[0]
    return found
