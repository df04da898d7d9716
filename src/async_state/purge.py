"""list -> batches -> bounded concurrent deletes -> report: what ``clear`` is.

Page n+1 is listed while page n is deleted. No more than ``concurrency`` batches exist at a time, so memory is constant
at any number of objects.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

import anyio

from async_state.errors import PurgeError, StoreError
from async_state.stores.base import Store

_FIRST_PAUSE: Final = 0.1
_SHOWN: Final = 5


async def purge_prefix(store: Store, prefix: str, *, concurrency: int, attempts: int) -> None:
    """Delete every object whose name starts with ``prefix``.

    Parameters:
        store: where they lie.
        prefix: ends in ``/``.
        concurrency: the most batches that are deleted at once.
        attempts: how often a batch's objects are tried, where the store reports some of them as failed.

    Raises:
        PurgeError: some objects could not be deleted; all that could be are.
        StoreError: the objects could not be listed; those listed until then are deleted.
    """
    async with contextlib.aclosing(store.list(prefix)) as pages:
        await _purge(store, pages, concurrency, attempts)


async def purge_names(store: Store, names: Iterable[str], *, concurrency: int, attempts: int) -> None:
    """Delete the named objects, `Store.delete_limit` a request. Otherwise as `purge_prefix`."""
    async with contextlib.aclosing(_batches(names, store.delete_limit)) as batches:
        await _purge(store, batches, concurrency, attempts)


async def _purge(store: Store, batches: AsyncIterator[Sequence[str]], concurrency: int, attempts: int) -> None:
    remaining: dict[str, str] = {}
    errors: list[StoreError] = []
    slots = anyio.Semaphore(concurrency)

    async def delete(batch: Sequence[str]) -> None:
        try:
            remaining.update(await _delete(store, batch, attempts))
        except StoreError as e:
            remaining.update(dict.fromkeys(batch, "its batch failed"))
            errors.append(e)
        finally:
            slots.release()

    async with anyio.create_task_group() as group:
        try:
            async for batch in batches:
                await slots.acquire()
                # A batch that failed as a whole (denied, unreachable) foretells the others.
                if errors:
                    slots.release()
                    break
                group.start_soon(delete, batch)
        except StoreError as e:
            errors.append(e)
    if remaining:
        raise PurgeError(_report(remaining, errors), remaining) from (errors[0] if errors else None)
    if errors:
        raise errors[0]


async def _delete(store: Store, batch: Sequence[str], attempts: int) -> Mapping[str, str]:
    failed: Mapping[str, str] = {}
    for attempt in range(attempts):
        if attempt:
            # Spread, so that many processes that were told to slow down do not come back at once.
            await anyio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311
        failed = await store.delete(batch)
        if not failed:
            break
        batch = list(failed)
    return failed


def _report(remaining: Mapping[str, str], errors: Sequence[StoreError]) -> str:
    shown = "; ".join(f"{name} ({reason})" for name, reason in list(remaining.items())[:_SHOWN])
    more = f"; and {len(remaining) - _SHOWN} more" if len(remaining) > _SHOWN else ""
    cause = f" First cause: {errors[0]}." if errors else ""
    return (
        f"{len(remaining)} object(s) could not be deleted: {shown}{more}.{cause} What could be deleted is; running "
        "the same clear or purge again takes up the rest."
    )


async def _batches(names: Iterable[str], size: int) -> AsyncGenerator[Sequence[str], None]:
    batch: list[str] = []
    for name in names:
        batch.append(name)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
