"""`S3Store`: objects of one bucket, each operation tried until its time is over."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import anyio

from async_state.errors import CorruptObjectError, StoreError
from async_state.stores import opened
from async_state.stores.base import CHECKSUM, Details, Entry, Page, Tagged, bucket_and_prefix, checksum, listed
from async_state.stores.retry import attempts
from async_state.stores.s3 import commands, errors
from async_state.stores.s3.bucket import Bucket, open_bucket
from async_state.stores.s3.client import Client
from async_state.stores.s3.conditions import Conditions
from async_state.stores.s3.errors import (
    is_not_implemented,
    is_of_region,
    is_retryable,
    store_error,
)
from async_state.stores.s3.operations import Object, Operations, S3Error
from async_state.stores.s3.options import S3Options

T = TypeVar("T")


class S3Store:
    """Objects of one bucket, below one prefix. Making it opens nothing."""

    #: S3's limit on the keys of one DeleteObjects request.
    delete_limit = 1000

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._has_delete_many = True
        self._conditions = Conditions(options)
        self._operations = opened.Operations(partial(open_bucket, options), errors, options.where, options.max_attempts)

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        found = await self._get(name, timeout)
        return found.body if found else None

    async def get_tagged(self, name: str, *, timeout: float) -> Tagged | None:
        found = await self._get(name, timeout)
        return Tagged(found.body, found) if found else None

    async def _get(self, name: str, timeout: float) -> Object | None:
        key = self._options.prefix + name
        ends = anyio.current_time() + timeout
        # Twice, since it may be damaged on its way only.
        for _ in range(2):
            found = await self._run("get", name, lambda s3: s3.get(key), ends - anyio.current_time())
            if found is None:
                return None
            # Written by `put`; an object that someone else has put there has none.
            if found.metadata.get(CHECKSUM) in (None, checksum(found.body)):
                return found
        raise CorruptObjectError("its content does not match the checksum it was written with")

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        key, arguments = self._options.prefix + name, self._options.put_arguments_of(content_encoding)
        metadata = {CHECKSUM: checksum(body)}
        await self._run("put", name, lambda s3: s3.put(key, body, arguments, metadata), timeout)

    async def put_if_unchanged(
        self, name: str, body: bytes, content_encoding: str, seen: Tagged | None, *, timeout: float
    ) -> bool:
        return await self._conditions.put(self._run, name, body, content_encoding, seen and seen.tag, timeout)

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        if len(names) == 1:
            await self._delete_one(names[0], timeout)
            return {}
        if self._has_delete_many:
            try:
                return await self._delete_many(names, timeout)
            except _NoDeleteManyError:
                self._has_delete_many = False
        return await self._delete_each(names, timeout)

    def entries(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[Entry], None]:
        ours = self._options.prefix

        async def ask(token: str | None) -> Page:
            return await self._run("list", prefix, lambda s3: s3.list(ours + prefix, token), timeout)

        return listed(ask, ours)

    async def head(self, name: str, *, timeout: float) -> Details | None:
        found = await self._command("head", name, commands.head, timeout)
        return found and found._replace(entry=found.entry._replace(name=name))

    async def delete_unchanged(self, seen: Details, *, timeout: float) -> bool:
        if seen.version:
            delete = partial(commands.delete_version, version=seen.version)
        else:
            delete = partial(commands.delete_if_match, etag=seen.entry.etag)
        return await self._command("delete", seen.entry.name, delete, timeout)

    async def copy_from(self, base_url: str, name: str, seen: Details | None, *, timeout: float) -> bool:
        # A bucket of the same name may be here as well, with other objects.
        if not base_url.startswith("s3://"):
            return False
        bucket, prefix = bucket_and_prefix(base_url)
        source = {"Bucket": bucket, "Key": prefix + name}
        copy = partial(commands.copy, source=source, arguments=dict(self._options.put_arguments), seen=seen)
        return await self._command("copy to", name, copy, timeout)

    async def put_over(
        self, name: str, body: bytes, content_encoding: str, seen: Details | None, *, timeout: float
    ) -> None:
        arguments, metadata = self._options.put_arguments_of(content_encoding), {CHECKSUM: checksum(body)}
        put = partial(commands.put_over, body=body, arguments=arguments, metadata=metadata, seen=seen)
        await self._command("put", name, put, timeout)

    async def aclose(self) -> None:
        await self._operations.aclose()

    async def _delete_one(self, name: str, timeout: float) -> None:
        key = self._options.prefix + name
        await self._run("delete", name, lambda s3: s3.delete(key), timeout)

    async def _delete_many(self, names: Sequence[str], timeout: float) -> dict[str, StoreError]:
        options = self._options

        def tell(name: str, error: S3Error) -> StoreError:
            return store_error(error, f"delete {options.url(name)}", options.where, attempts.get())

        batch = opened.Batch(names, is_retryable, tell)

        async def delete(s3: Operations) -> None:
            try:
                refusals = await s3.delete_many([options.prefix + name for name in batch.left])
            except S3Error as e:
                if is_not_implemented(e):
                    raise _NoDeleteManyError from e
                raise
            batch.answered((key.removeprefix(options.prefix), S3Error(code, text)) for key, code, text in refusals)

        try:
            await self._run("delete", names[0], delete, timeout, more=len(names) - 1)
        except StoreError:
            if not batch.failed:
                raise
        return batch.errors

    async def _delete_each(self, names: Sequence[str], timeout: float) -> dict[str, StoreError]:
        failed: dict[str, StoreError] = {}
        slots = anyio.Semaphore(self._options.max_concurrency)

        async def delete(name: str) -> None:
            async with slots:
                try:
                    await self._delete_one(name, timeout)
                except StoreError as e:
                    failed[name] = e

        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(delete, name)
        return failed

    async def _run(
        self, verb: str, name: str, call: Callable[[Operations], Awaitable[T]], timeout: float, more: int = 0
    ) -> T:
        """Send the operation, directly or through the client. As `_try`."""
        return await self._try(verb, name, partial(_send, call), timeout, more)

    async def _command(self, verb: str, name: str, call: Callable[[Client, str], Awaitable[T]], timeout: float) -> T:
        """Send what only the client composes, for an object's key. As `_try`."""

        async def send(bucket: Bucket) -> T:
            return await call(await bucket.client(), self._options.prefix + name)

        return await self._try(verb, name, send, timeout)

    async def _try(
        self, verb: str, name: str, ask: Callable[[Bucket], Awaitable[T]], timeout: float, more: int = 0
    ) -> T:
        """Ask the bucket until that succeeds or ``timeout`` seconds are over.

        Raises:
            StoreError: it failed; the message says what, where, how often it was tried, and what to change.
        """
        what = f"{verb} {self._options.url(name)}" + (f" and {more} more" if more else "")
        return await self._operations.run(what, ask, timeout)


async def _send(call: Callable[[Operations], Awaitable[T]], bucket: Bucket) -> T:
    if bucket.direct is not None:
        try:
            return await call(bucket.direct)
        except S3Error as e:
            if not is_of_region(e):
                raise
        # From now on: it finds the right region, and composes what the direct way can't.
        bucket.direct = None
    return await call(await bucket.client())


class _NoDeleteManyError(StoreError):
    """This store does not know DeleteObjects."""
