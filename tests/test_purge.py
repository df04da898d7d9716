"""How a purge goes through its batches: how large they are, how many are under way, and what a failure does.

No real store can be asked how many deletions are under way, or fails for one batch and not for the next one. The stores
here are what someone outside of this project would write against the `Store` protocol.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import datetime, timezone

import anyio
import pytest
from anyio.lowlevel import checkpoint

from async_state.errors import PurgeError, StoreError, StoreUnavailableError
from async_state.purge import purge_names, purge_prefix
from async_state.stores.base import Details, Entry, Store, Tagged

pytestmark = pytest.mark.anyio

LIMIT = 3


class CountingStore:
    """A dict's worth of names, and what was asked of them.

    Parameters:
        names: what it holds.
        refused: names that it says it can't delete, one by one.
        broken: a batch that has one of these fails as a whole.
        pages_before_failure: how many pages its listing yields before it fails; ``None`` lists everything.
    """

    delete_limit = LIMIT

    def __init__(
        self,
        names: Sequence[str] = (),
        *,
        refused: Collection[str] = (),
        broken: Collection[str] = (),
        pages_before_failure: int | None = None,
    ) -> None:
        self.names = list(names)
        self.batches: list[list[str]] = []
        #: The seconds that each request was given.
        self.timeouts: list[object] = []
        self.pages = 0
        self.under_way = 0
        self.listing_closed = False
        #: Deletions wait for it.
        self.gate = anyio.Event()
        self.gate.set()
        self._refused = refused
        self._broken = broken
        self._pages_before_failure = pages_before_failure

    async def get(self, name: str, **_: object) -> bytes | None:
        raise NotImplementedError

    async def put(self, name: str, body: bytes, content_encoding: str, **_: object) -> None:
        raise NotImplementedError

    async def get_tagged(self, name: str, **_: object) -> Tagged | None:
        raise NotImplementedError

    async def put_if_unchanged(
        self, name: str, body: bytes, content_encoding: str, seen: Tagged | None, **_: object
    ) -> bool:
        raise NotImplementedError

    async def delete(self, names: Sequence[str], **options: object) -> Mapping[str, StoreError]:
        self.batches.append(list(names))
        self.timeouts.append(options["timeout"])
        self.under_way += 1
        try:
            await self.gate.wait()
            await checkpoint()
        finally:
            self.under_way -= 1
        if any(name in self._broken for name in names):
            raise StoreUnavailableError("the store is away")
        gone = [name for name in names if name not in self._refused]
        self.names = [name for name in self.names if name not in gone]
        return {name: StoreError(f". {name} is kept by X. ") for name in names if name in self._refused}

    async def entries(self, prefix: str, **options: object) -> AsyncGenerator[Sequence[Entry], None]:
        self.timeouts.append(options["timeout"])
        now = datetime.now(timezone.utc)
        found = [Entry(name, 1, now, "") for name in self.names if name.startswith(prefix)]
        try:
            for start in range(0, len(found), LIMIT):
                if self.pages == self._pages_before_failure:
                    raise StoreUnavailableError("the listing broke off")
                self.pages += 1
                yield found[start : start + LIMIT]
        finally:
            self.listing_closed = True

    async def head(self, name: str, **_: object) -> Details | None:
        raise NotImplementedError

    async def delete_unchanged(self, seen: Details, **_: object) -> bool:
        raise NotImplementedError

    async def copy_from(self, base_url: str, name: str, seen: Details | None, **_: object) -> bool:
        raise NotImplementedError

    async def put_over(self, name: str, body: bytes, content_encoding: str, seen: Details | None, **_: object) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


def named(count: int) -> list[str]:
    return [f"p/{number}" for number in range(count)]


async def start(way: str, store: CountingStore, concurrency: int) -> None:
    """Purge all that the store holds, in one of the two ways."""
    purged: Store = store
    if way == "names":
        await purge_names(purged, list(store.names), concurrency=concurrency, timeout=20)
    else:
        await purge_prefix(purged, "p/", concurrency=concurrency, timeout=20)


async def purge(way: str, store: CountingStore, concurrency: int) -> None:
    """Purge all that the store holds, and fail where that never ends."""
    outcome: list[StoreError | None] = []

    async def run() -> None:
        try:
            await start(way, store, concurrency)
            outcome.append(None)
        except StoreError as e:
            outcome.append(e)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        # No store here waits for time: what has not ended by then never does.
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert outcome, f"the purge waits for ever after the batches {store.batches}"
    if outcome[0] is not None:
        raise outcome[0]


each_way = pytest.mark.parametrize("way", ["names", "prefix"])


@each_way
@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (LIMIT, [3]), (LIMIT + 1, [3, 1]), (2 * LIMIT, [3, 3])]
)
async def test_no_batch_is_larger_than_the_store_takes(way: str, count: int, sizes: list[int]) -> None:
    store = CountingStore(named(count))
    await purge(way, store, 1)
    assert [len(batch) for batch in store.batches] == sizes
    assert sorted(name for batch in store.batches for name in batch) == named(count)


@each_way
async def test_each_request_has_the_whole_time(way: str) -> None:
    store = CountingStore(named(2 * LIMIT))
    await purge(way, store, 1)
    assert store.timeouts == [20] * (3 if way == "prefix" else 2)


async def test_what_is_not_selected_stays() -> None:
    store = CountingStore([*named(LIMIT), "q/0"])
    await purge_prefix(store, "p/", concurrency=1, timeout=20, selects=lambda name: name != "p/1")
    assert store.batches == [["p/0", "p/2"]]
    nothing = CountingStore(named(LIMIT))
    await purge_prefix(nothing, "p/", concurrency=1, timeout=20, selects=lambda _: False)
    assert nothing.batches == []


@each_way
@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_as_many_batches_at_once_as_it_may(way: str, concurrency: int) -> None:
    store = CountingStore(named(8 * LIMIT))
    store.gate = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(start, way, store, concurrency)
        await anyio.wait_all_tasks_blocked()
        assert store.under_way == concurrency
        # A page that waits for its turn, and none beyond: memory is constant.
        assert store.pages <= concurrency + 1
        store.gate.set()
    assert len(store.batches) == 8


@each_way
@pytest.mark.parametrize("refused", [(), named(8 * LIMIT)], ids=["deleted", "refused"])
async def test_a_batch_that_ends_makes_room_for_the_next_one(way: str, refused: Sequence[str]) -> None:
    store = CountingStore(named(8 * LIMIT), refused=refused)
    with pytest.raises(PurgeError) if refused else contextlib.nullcontext():
        await purge(way, store, 2)
    assert len(store.batches) == 8


@each_way
async def test_nothing_more_is_tried_after_a_batch_that_failed_as_a_whole(way: str) -> None:
    store = CountingStore(named(8 * LIMIT), broken=["p/4"])
    with pytest.raises(PurgeError, match="the store is away") as caught:
        await purge(way, store, 1)
    assert store.batches == [["p/0", "p/1", "p/2"], ["p/3", "p/4", "p/5"]]
    assert list(caught.value.remaining) == ["p/3", "p/4", "p/5"]
    assert isinstance(caught.value.__cause__, StoreUnavailableError)
    assert store.listing_closed == (way == "prefix")


@each_way
async def test_names_that_are_refused_do_not_keep_the_others(way: str) -> None:
    refused = [f"p/{number}" for number in range(0, 8 * LIMIT, 4)]
    store = CountingStore(named(8 * LIMIT), refused=refused)
    with pytest.raises(PurgeError) as caught:
        await purge(way, store, 1)
    assert store.names == refused
    assert caught.value.remaining == {name: f". {name} is kept by X. " for name in refused}
    assert str(caught.value) == (
        "6 object(s) could not be deleted: p/0, p/4, p/8, p/12, p/16 and 1 more. First cause: . p/0 is kept by X. What "
        "could be deleted is; running the same clear or purge again takes up the rest."
    )
    assert str(caught.value.__cause__) == ". p/0 is kept by X. "


async def test_a_few_that_are_left_are_all_named() -> None:
    store = CountingStore(named(5), refused=named(5))
    with pytest.raises(PurgeError, match=r"deleted: p/0, p/1, p/2, p/3, p/4\. First"):
        await purge("names", store, 1)


async def test_what_was_listed_before_the_listing_failed_is_deleted() -> None:
    store = CountingStore(named(8 * LIMIT), pages_before_failure=2)
    with pytest.raises(StoreUnavailableError, match="the listing broke off"):
        await purge("prefix", store, 1)
    assert store.names == named(8 * LIMIT)[2 * LIMIT :]


async def test_names_that_are_left_are_told_before_a_listing_that_failed() -> None:
    store = CountingStore(named(8 * LIMIT), refused=["p/1"], pages_before_failure=2)
    with pytest.raises(PurgeError) as caught:
        await purge("prefix", store, 1)
    assert list(caught.value.remaining) == ["p/1"]
