"""Deletes orphans: each one is looked at again, and deleted only if nobody has written it since it was listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum

import anyio

from async_state.errors import StoreError
from async_state.stores.base import Entry, Store


class Outcome(str, Enum):
    """What became of an orphan."""

    DELETED = "deleted"
    #: It was written again since it was listed, and is kept.
    CHANGED = "changed"
    #: Somebody else has deleted it.
    GONE = "gone"
    FAILED = "failed"


async def remove(store: Store, listed: Entry, timeout: float) -> Outcome:
    """Delete the object if it is still the one that was listed.

    Raises:
        StoreError: The store failed.
    """
    seen = await store.head(listed.name, timeout=timeout)
    if seen is None:
        return Outcome.GONE
    if seen.entry != listed:
        return Outcome.CHANGED
    return Outcome.DELETED if await store.delete_unchanged(seen, timeout=timeout) else Outcome.CHANGED


async def remove_all(
    store: Store,
    orphans: Iterator[Entry],
    *,
    concurrency: int,
    timeout: float,
    done: Callable[[Entry, Outcome, str], None],
) -> Counter[Outcome]:
    """Delete the objects, so many at once.

    Args:
        store: Where they are.
        orphans: As they were listed.
        concurrency: How many at once.
        timeout: Seconds for each request.
        done: Is called after each object with what became of it, and why where it failed.

    Returns:
        How many had which outcome. Where so many objects in a row fail, as are deleted at once, the store is taken to
        refuse all of them, and the rest is not tried.
    """
    outcomes: Counter[Outcome] = Counter()
    failures_in_a_row = 0

    async def work() -> None:
        nonlocal failures_in_a_row
        while failures_in_a_row < concurrency:
            entry = next(orphans, None)
            if entry is None:
                return
            reason = ""
            try:
                outcome = await remove(store, entry, timeout)
                failures_in_a_row = 0
            except StoreError as e:
                outcome, reason = Outcome.FAILED, str(e)
                failures_in_a_row += 1
            outcomes[outcome] += 1
            done(entry, outcome, reason)

    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(work)
    return outcomes
