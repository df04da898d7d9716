"""list -> read -> delete what has expired -> count: what ``cleanup`` is. All of it runs on the I/O thread.

A name says nothing about expiry, as references are deterministic, so each of the API server's objects is read: one
request for each, of which no more than ``concurrency`` run at once. Pages are worked off one after the other, so memory
is constant at any number of objects.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

import anyio

from async_state import codec, keys
from async_state.errors import CorruptObjectError, StoreError
from async_state.stores.base import Store

log = logging.getLogger(__name__)

#: What the names of tasks' and assets' objects start with.
_PREFIXES: Final = ("v1/task/", "v1/asset/")


async def delete_expired(store: Store, *, concurrency: int, timeout: float) -> int:
    """Delete every object of the API server's side that has expired.

    A row that is set again meanwhile stays: an object is deleted only if it is the one that was seen to have expired.
    The time of expiry is part of its content, and so of its ETag.

    Args:
        store: Where the objects lie.
        concurrency: The most objects that are read at once.
        timeout: Seconds for each page listed and for each request. All together may take its time.

    Returns:
        How many objects were deleted.

    Raises:
        StoreError: The store failed. What was deleted until then is deleted; another call takes up the rest.
    """
    deleted = 0
    failed: list[StoreError] = []
    slots = anyio.Semaphore(concurrency)

    async def clean(name: str) -> None:
        nonlocal deleted
        try:
            deleted += await _delete_if_expired(store, name, timeout)
        except CorruptObjectError as e:
            log.warning("The object %s can't be read, so it may have expired and is left behind: %s", name, e)
        except StoreError as e:
            failed.append(e)
        finally:
            slots.release()

    for prefix in _PREFIXES:
        async with contextlib.aclosing(store.list(prefix, timeout=timeout)) as pages:
            async for page in pages:
                async with anyio.create_task_group() as group:
                    for name in page:
                        if _is_row(name):
                            await slots.acquire()
                            # One that failed (denied, unreachable) foretells the others.
                            if failed:
                                slots.release()
                                break
                            group.start_soon(clean, name)
                if failed:
                    raise failed[0]
    return deleted


async def _delete_if_expired(store: Store, name: str, timeout: float) -> bool:
    if not await _has_expired(store, name, timeout):
        return False
    seen = await store.head(name, timeout=timeout)
    # What is read after `head` is what it saw, or newer, and then it is not deleted.
    return (
        seen is not None
        and await _has_expired(store, name, timeout)
        and await store.delete_unchanged(seen, timeout=timeout)
    )


async def _has_expired(store: Store, name: str, timeout: float) -> bool:
    body = await store.get(name, timeout=timeout)
    return body is not None and (await codec.aunpack(body)).has_expired


def _is_row(name: str) -> bool:
    # Most names are told apart without being decoded.
    return "/server/" in name and (place := keys.parse_name(name)) is not None and place.side is keys.Side.SERVER
