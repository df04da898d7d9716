"""``s3://bucket/prefix``: S3, and whatever speaks it, through aiobotocore.

One request an operation: no HEAD, no probe of the bucket, and no ``Expect: 100-continue`` for small bodies. aiobotocore
is imported and the client built at the first operation, on the I/O thread.
"""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio

from async_state import iothread
from async_state.errors import CorruptObjectError, StoreAccessError, StoreError
from async_state.stores import s3_prepared
from async_state.stores.base import deadline
from async_state.stores.s3_client import S3Options
from async_state.stores.s3_errors import explained, refused
from async_state.stores.s3_events import Attempts, attempts
from async_state.stores.s3_object import S3Objects, open_objects

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_FIRST_PAUSE: Final = 0.1
_CHECKSUM: Final = "crc32"


class S3Store:
    """Objects of one bucket, below one prefix."""

    #: S3's limit on the keys of one DeleteObjects request.
    delete_limit = 1000

    def __init__(self, url: str, options: S3Options) -> None:
        parts = urlsplit(url)
        self._bucket = parts.netloc
        self._prefix = parts.path.lstrip("/") + "/" if parts.path.strip("/") else ""
        self._options = options
        self._bulk_delete = True
        self._put_arguments = {"ContentType": "application/json"}
        if options.server_side_encryption:
            self._put_arguments["ServerSideEncryption"] = options.server_side_encryption
        if options.sse_kms_key_id:
            self._put_arguments["SSEKMSKeyId"] = options.sse_kms_key_id

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        with self._operation("get", name):
            found = await (await self._objects()).get(self._prefix + name)
            if found is None:
                return None
            body, metadata = found
            # Written by `put`; an object that someone else has put there has none.
            checksum = metadata.get(_CHECKSUM)
            if checksum is not None and checksum != _crc32(body):
                raise CorruptObjectError(
                    f"the object {self._url(name)} is damaged: its content does not match the checksum it was "
                    "written with"
                )
            return body

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        encoding = {"ContentEncoding": content_encoding} if content_encoding else {}
        with self._operation("put", name):
            objects = await self._objects()
            await objects.put(self._prefix + name, body, self._put_arguments | encoding, {_CHECKSUM: _crc32(body)})

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        if len(names) == 1:
            await self._delete_one(names[0])
            return {}
        if self._bulk_delete:
            with contextlib.suppress(_NoBulkDeleteError):
                return await self._delete_many(names)
            self._bulk_delete = False
        return await self._delete_each(names)

    async def list(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[str], None]:
        more: dict[str, Any] = {}
        while True:
            with self._operation("list", prefix):
                client = await (await self._objects()).client()
                page = await client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + prefix, **more)
            names = [item["Key"].removeprefix(self._prefix) for item in page.get("Contents", ())]
            if names:
                yield names
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def prepare(self) -> None:
        """Do beforehand what `s3_prepared.prepare` does, for this bucket."""
        s3_prepared.prepare(self._options, self._bucket)

    async def aclose(self) -> None:
        await iothread.release(self)

    async def _delete_one(self, name: str) -> None:
        with self._operation("delete", name):
            await (await self._objects()).delete(self._prefix + name)

    async def _delete_many(self, names: Sequence[str]) -> dict[str, StoreError]:
        failed: dict[str, StoreError] = {}
        with self._operation("delete", names[0], more=len(names) - 1):
            client = await (await self._objects()).client()
            for attempt in range(1, self._options.max_attempts + 1):
                failed = {name: failed[name] for name in failed if name not in names}
                for name, code, message in await self._delete_objects(client, names):
                    what = f"delete {self._url(name)}"
                    failed[name] = refused(what, self._where, code, f"{message}, attempt {attempt}")
                # botocore tries requests again, but not what failed in a request that succeeded. Denied stays denied.
                names = [name for name in names if name in failed and not isinstance(failed[name], StoreAccessError)]
                if not names or attempt == self._options.max_attempts:
                    break
                # Spread, so that many processes that were told to slow down do not come back at once.
                await anyio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311
        return failed

    async def _delete_objects(self, client: S3Client, names: Sequence[str]) -> Sequence[tuple[str, str, str]]:
        """Ask once, and return name, code and message of each object that is left."""
        try:
            response = await client.delete_objects(
                Bucket=self._bucket,
                Delete={"Objects": [{"Key": self._prefix + name} for name in names], "Quiet": True},
            )
        except client.exceptions.ClientError as e:
            if e.response["Error"]["Code"] in ("NotImplemented", "MethodNotAllowed", "501", "405"):
                raise _NoBulkDeleteError from e
            raise
        return [
            (error["Key"].removeprefix(self._prefix), error.get("Code", "unknown error"), error.get("Message", ""))
            for error in response.get("Errors", ())
        ]

    async def _delete_each(self, names: Sequence[str]) -> dict[str, StoreError]:
        failed: dict[str, StoreError] = {}
        slots = anyio.Semaphore(self._options.max_concurrency)

        async def delete(name: str) -> None:
            async with slots:
                try:
                    await self._delete_one(name)
                except StoreError as e:
                    failed[name] = e

        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(delete, name)
        return failed

    async def _objects(self) -> S3Objects:
        return await iothread.resource(self, lambda: open_objects(self._options, self._bucket))

    @contextlib.contextmanager
    def _operation(self, verb: str, name: str, more: int = 0) -> Iterator[None]:
        what = f"{verb} {self._url(name)}" + (f" and {more} more" if more else "")
        made = Attempts()
        token = attempts.set(made)
        try:
            with explained(what, self._where, made), deadline(self._options.timeout, what, made):
                yield
        finally:
            attempts.reset(token)

    @property
    def _where(self) -> str:
        return f"endpoint {self._options.endpoint_url or 'default'}, region {self._options.region_name or 'default'}"

    def _url(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"


class _NoBulkDeleteError(StoreError):
    """This store does not implement DeleteObjects."""


def _crc32(body: bytes) -> str:
    return f"{zlib.crc32(body):08x}"
