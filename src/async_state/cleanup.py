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
from async_state.stores.base import Entry, Store

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

    async def clean(entry: Entry) -> None:
        nonlocal deleted
        try:
            if await _delete_if_expired(store, entry, timeout):
                deleted += 1
        except CorruptObjectError as e:
            log.warning("The object %s can't be read, so it is left, whether it has expired or not: %s", entry.name, e)
        except StoreError as e:
            failed.append(e)
        finally:
            slots.release()

    for prefix in _PREFIXES:
        async with contextlib.aclosing(store.entries(prefix, timeout=timeout)) as pages:
            async for page in pages:
                async with anyio.create_task_group() as group:
                    for entry in filter(_is_row, page):
                        await slots.acquire()
                        # One that failed (denied, unreachable) foretells the others.
                        if failed:
                            slots.release()
                            break
                        group.start_soon(clean, entry)
                if failed:
                    raise failed[0]
    return deleted


async def _delete_if_expired(store: Store, entry: Entry, timeout: float) -> bool:
    body = await store.get(entry.name, timeout=timeout)
    if body is None or not (await codec.aunpack(body)).has_expired:
        return False
    # What was read may be newer than what was listed. If it is, the store says something else of it.
    seen = await store.head(entry.name, timeout=timeout)
    return (
        seen is not None and _has_content_of(seen.entry, entry) and await store.delete_unchanged(seen, timeout=timeout)
    )


def _has_content_of(entry: Entry, other: Entry) -> bool:
    """Tell whether the content is the same, and so the time of expiry.

    Times are not compared where the ETag tells: rclone's server lists a copy with the time of its original, and tells
    whoever asks for the object the time of the copy.
    """
    return entry == other or (entry.size == other.size and entry.etag == other.etag != "")


def _is_row(entry: Entry) -> bool:
    # Most names are told apart without being decoded.
    place = keys.parse_name(entry.name) if "/server/" in entry.name else None
    return place is not None and place.side is keys.Side.SERVER
