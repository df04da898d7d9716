"""`CloudStore`: objects of one bucket or container, each operation tried until its time is over."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio

from async_state.errors import CorruptObjectError, StoreError
from async_state.stores.base import (
    CHECKSUM,
    UPDATES,
    Details,
    Entry,
    Page,
    Tagged,
    checksum,
    has_number,
    listed,
    numbered,
)
from async_state.stores.cloud import http
from async_state.stores.cloud.errors import CloudError, is_conflict
from async_state.stores.cloud.place import ABSENT, Object, Place, Requests
from async_state.stores.opened import Batch, Opened, Operations
from async_state.stores.retry import attempts

T = TypeVar("T")


class CloudStore:
    """Objects of one bucket or container, below one prefix. Making it opens nothing.

    Args:
        place: where they lie.
    """

    #: More than one request deletes in either cloud, so that a page of a listing is large; `delete` splits them.
    delete_limit = 1000

    def __init__(self, place: Place) -> None:
        self.place = place
        self._operations = Operations(partial(_open, place), place.errors, place.where, place.max_attempts)
        self._batches: tuple[int, anyio.Semaphore] | None = None

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        found = await self._get(name, timeout)
        return found.body if found else None

    async def get_tagged(self, name: str, *, timeout: float) -> Tagged | None:
        ends = anyio.current_time() + timeout
        found = await self._get(name, timeout)
        if found is None:
            return None
        key, got = self.place.prefix + name, found
        metadata = await self._run("get", name, lambda cloud: cloud.metadata(key, got), ends - anyio.current_time())
        return Tagged(found.body, found._replace(metadata=metadata))

    async def _get(self, name: str, timeout: float) -> Object | None:
        key = self.place.prefix + name
        ends = anyio.current_time() + timeout
        # Twice, since it may be damaged on its way only.
        for _ in range(2):
            found = await self._run("get", name, lambda cloud: cloud.get(key), ends - anyio.current_time())
            if found is None or found.is_whole:
                return found
        raise CorruptObjectError("its content does not match the checksum it was written with")

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        key, metadata = self.place.prefix + name, {CHECKSUM: checksum(body)}
        await self._run("put", name, lambda cloud: cloud.put(key, body, content_encoding, metadata), timeout)

    async def put_if_unchanged(
        self, name: str, body: bytes, content_encoding: str, seen: Tagged | None, *, timeout: float
    ) -> bool:
        before: Object | None = seen.tag if seen else None
        number, updates = numbered(before.metadata if before else {})
        metadata = {CHECKSUM: checksum(body), UPDATES: updates}
        condition = before.tag if before else ABSENT
        ends = anyio.current_time() + timeout
        if await self._put_if(name, body, content_encoding, metadata, condition, timeout):
            return True
        # It may have been written by an attempt whose answer was lost.
        found = await self.head(name, timeout=ends - anyio.current_time())
        return found is not None and has_number(found.metadata, number)

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        if len(names) == 1:
            key = self.place.prefix + names[0]
            await self._run("delete", names[0], lambda cloud: cloud.delete(key), timeout)
            return {}
        failed: dict[str, StoreError] = {}
        slots, size = self._slots(), self.place.batch

        async def delete(batch: Sequence[str]) -> None:
            async with slots:
                failed.update(await self._delete_batch(batch, timeout))

        async with anyio.create_task_group() as group:
            for start in range(0, len(names), size):
                group.start_soon(delete, names[start : start + size])
        return failed

    def entries(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[Entry], None]:
        ours = self.place.prefix

        async def ask(token: str | None) -> Page:
            return await self._run("list", prefix, lambda cloud: cloud.list(ours + prefix, token), timeout)

        return listed(ask, ours)

    async def head(self, name: str, *, timeout: float) -> Details | None:
        key = self.place.prefix + name
        found = await self._run("head", name, lambda cloud: cloud.head(key), timeout)
        return found and found._replace(entry=found.entry._replace(name=name))

    async def delete_unchanged(self, seen: Details, *, timeout: float) -> bool:
        name, tag = seen.entry.name, seen.entry.etag
        key = self.place.prefix + name

        async def delete(cloud: Requests) -> bool:
            try:
                await cloud.delete(key, tag)
            except CloudError as e:
                if not is_conflict(e):
                    raise
                # It may be that an attempt whose answer was lost has deleted it.
                return await cloud.head(key) is None
            return True

        return await self._run("delete", name, delete, timeout)

    async def copy_from(self, base_url: str, name: str, seen: Details | None, *, timeout: float) -> bool:
        # Both clouds copy without the content passing here, but not under a condition that all their emulators obey.
        return False

    async def put_over(
        self, name: str, body: bytes, content_encoding: str, seen: Details | None, *, timeout: float
    ) -> None:
        metadata = {CHECKSUM: checksum(body)}
        await self._put_if(name, body, content_encoding, metadata, seen.entry.etag if seen else ABSENT, timeout)

    async def aclose(self) -> None:
        await self._operations.aclose()

    async def _put_if(
        self, name: str, body: bytes, content_encoding: str, metadata: Mapping[str, str], condition: str, timeout: float
    ) -> bool:
        key = self.place.prefix + name

        async def put(cloud: Requests) -> bool:
            try:
                await cloud.put(key, body, content_encoding, metadata, condition)
            except CloudError as e:
                if not is_conflict(e):
                    raise
                return False
            return True

        return await self._run("put", name, put, timeout)

    def _slots(self) -> anyio.Semaphore:
        # A forked process has none of the deletions that its parent was in the middle of.
        if self._batches is None or self._batches[0] != os.getpid():
            self._batches = os.getpid(), anyio.Semaphore(self.place.max_concurrency)
        return self._batches[1]

    async def _delete_batch(self, names: Sequence[str], timeout: float) -> dict[str, StoreError]:
        place, errors = self.place, self.place.errors

        def tell(name: str, error: CloudError) -> StoreError:
            return errors.store_error(error, f"delete {place.url}/{name}", place.where, attempts.get())

        batch = Batch(names, lambda e: errors.is_retryable(e) or errors.is_of_credentials(e), tell)

        async def delete(cloud: Requests) -> None:
            refusals = await cloud.delete_many([place.prefix + name for name in batch.left])
            batch.answered((key.removeprefix(place.prefix), error) for key, error in refusals)

        try:
            await self._run("delete", names[0], delete, timeout, more=len(names) - 1)
        except StoreError as e:
            if not batch.failed:
                return batch.errors | dict.fromkeys(batch.left, e)
        return batch.errors

    async def _run(
        self, verb: str, name: str, ask: Callable[[Requests], Awaitable[T]], timeout: float, more: int = 0
    ) -> T:
        what = f"{verb} {self.place.url}/{name}" + (f" and {more} more" if more else "")
        return await self._operations.run(what, lambda opened: ask(opened.requests), timeout)


class _Cloud(Opened):
    """The connections to a cloud.

    Attributes:
        requests: What is sent over them, once they are open.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: Requests

    async def open(self, place: Place) -> None:
        """Open the connections. They are made when requests need them."""
        made = http.connections(
            place.endpoint,
            limit=place.max_concurrency,
            connect_timeout=place.connect_timeout,
            read_timeout=place.read_timeout,
        )
        self.requests = await self._stack.enter_async_context(
            place.requests(await self._stack.enter_async_context(made))
        )


@asynccontextmanager
async def _open(place: Place) -> AsyncIterator[_Cloud]:
    cloud = _Cloud()
    try:
        await cloud.open(place)
        yield cloud
    finally:
        await cloud.retire()
