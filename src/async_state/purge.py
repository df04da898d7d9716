"""list -> batches -> bounded concurrent deletes -> report: what ``clear`` is.

Page n+1 is listed while page n is deleted. No more than ``concurrency`` batches exist at a time, so memory is constant
at any number of objects.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final

import anyio

from async_state.errors import PurgeError, StoreError
from async_state.stores.base import Store

_SHOWN: Final = 5


async def purge_prefix(
    store: Store,
    prefix: str,
    *,
    concurrency: int,
    timeout: float,
    selects: Callable[[str], bool] | None = None,
) -> None:
    """Delete every object whose name starts with ``prefix``.

    Args:
        store: where they lie.
        prefix: ends in ``/``.
        concurrency: the most batches that are deleted at once.
        timeout: seconds for each page listed and for each batch deleted. A clear of a million keys may take its time,
            as long as it gets on.
        selects: tells which of the names are deleted; ``None`` for all.

    Raises:
        PurgeError: some objects could not be deleted; all that could be are.
        StoreError: the objects could not be listed; those listed until then are deleted.
    """
    async with contextlib.aclosing(_pages_of_names(store, prefix, selects, timeout)) as pages:
        await _purge(store, pages, concurrency, timeout)


async def purge_names(store: Store, names: Iterable[str], *, concurrency: int, timeout: float) -> None:
    """Delete the named objects, `Store.delete_limit` a request. Otherwise as `purge_prefix`."""
    async with contextlib.aclosing(_batches(names, store.delete_limit)) as batches:
        await _purge(store, batches, concurrency, timeout)


async def _purge(store: Store, batches: AsyncIterator[Sequence[str]], concurrency: int, timeout: float) -> None:
    remaining: dict[str, StoreError] = {}
    broken: list[StoreError] = []
    slots = anyio.Semaphore(concurrency)

    async def delete(batch: Sequence[str]) -> None:
        try:
            remaining.update(await store.delete(batch, timeout=timeout))
        except StoreError as e:
            remaining.update(dict.fromkeys(batch, e))
            broken.append(e)
        finally:
            slots.release()

    async with anyio.create_task_group() as group:
        try:
            async for batch in batches:
                await slots.acquire()
                # A batch that failed as a whole (denied, unreachable) foretells the others.
                if broken:
                    break
                group.start_soon(delete, batch)
        except StoreError as e:
            broken.append(e)
    if remaining:
        raise PurgeError(_report(remaining), {name: str(e) for name, e in remaining.items()}) from next(
            iter(remaining.values())
        )
    if broken:
        raise broken[0]


def _report(remaining: Mapping[str, StoreError]) -> str:
    names = ", ".join(list(remaining)[:_SHOWN])
    more = f" and {len(remaining) - _SHOWN} more" if len(remaining) > _SHOWN else ""
    first = str(next(iter(remaining.values()))).rstrip(". ")
    return (
        f"{len(remaining)} object(s) could not be deleted: {names}{more}. First cause: {first}. What could be deleted "
        "is; running the same clear or purge again takes up the rest."
    )


async def _pages_of_names(
    store: Store, prefix: str, selects: Callable[[str], bool] | None, timeout: float
) -> AsyncGenerator[Sequence[str], None]:
    async with contextlib.aclosing(store.entries(prefix, timeout=timeout)) as pages:
        async for page in pages:
            names = [entry.name for entry in page if selects is None or selects(entry.name)]
            if names:
                yield names


async def _batches(names: Iterable[str], size: int) -> AsyncGenerator[Sequence[str], None]:
    batch: list[str] = []
    for name in names:
        batch.append(name)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
