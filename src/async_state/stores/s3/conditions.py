"""Writes on a condition: an object is made, or replaced, only if nobody else wrote it meanwhile.

S3 has ``If-None-Match: *`` and ``If-Match`` for that. Not everything that speaks S3 obeys them, and what does not
answers as if it had, so the store is asked with a probe first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import anyio

from async_state import keys
from async_state.errors import ConditionsError
from async_state.stores.base import CHECKSUM, UPDATES, checksum, has_number, numbered
from async_state.stores.retry import attempts
from async_state.stores.s3.errors import is_conflict
from async_state.stores.s3.operations import Object, Operations, S3Error
from async_state.stores.s3.options import S3Options

T = TypeVar("T")

#: No content has it.
_NO_ETAG: Final = '"00000000000000000000000000000000"'


class _Run(Protocol):
    """`S3Store._run`."""

    async def __call__(self, verb: str, name: str, call: Callable[[Operations], Awaitable[T]], timeout: float) -> T: ...


class Conditions:
    """The conditional writes of one store.

    Args:
        options: The store's.
    """

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._are_obeyed = False

    async def put(
        self, run: _Run, name: str, body: bytes, content_encoding: str, seen: Object | None, timeout: float
    ) -> bool:
        """Write an object if it still is what was seen. As `Store.put_if_unchanged`.

        Args:
            run: Sends an operation until it succeeds or its time is over.
            name: The object's, like the arguments that follow.
        """
        ends = anyio.current_time() + timeout
        if not self._are_obeyed:
            await self._check(run, timeout)
        arguments = self._options.put_arguments_of(content_encoding)
        arguments |= {"IfMatch": seen.etag} if seen else {"IfNoneMatch": "*"}
        number, updates = numbered(seen.metadata if seen else {})
        metadata = {CHECKSUM: checksum(body), UPDATES: updates}

        async def put(s3: Operations) -> bool | None:
            try:
                await s3.put(self._options.prefix + name, body, arguments, metadata)
            except S3Error as e:
                if not is_conflict(e):
                    raise
                return False if attempts.get().sent == 1 else None
            return True

        written = await run("put", name, put, ends - anyio.current_time())
        if written is None:
            key = self._options.prefix + name
            found = await run("get", name, lambda s3: s3.get(key), ends - anyio.current_time())
            written = found is not None and has_number(found.metadata, number)
        return written

    async def _check(self, run: _Run, timeout: float) -> None:
        """Ask the store with a probe, which is deleted in the end.

        Raises:
            ConditionsError: It does not obey.
        """
        ends = anyio.current_time() + timeout
        name = keys.probe_name()
        key, arguments = self._options.prefix + name, self._options.put_arguments_of("")

        async def refuses(condition: dict[str, str]) -> bool:
            async def put(s3: Operations) -> bool:
                try:
                    await s3.put(key, b"null", arguments | condition, {})
                except S3Error as e:
                    if not is_conflict(e):
                        raise
                    return True
                return False

            return await run("put", name, put, ends - anyio.current_time())

        await refuses({})
        try:
            self._are_obeyed = await refuses({"IfNoneMatch": "*"}) and await refuses({"IfMatch": _NO_ETAG})
        finally:
            await run("delete", name, lambda s3: s3.delete(key), ends - anyio.current_time())
        if not self._are_obeyed:
            raise ConditionsError(
                f"the store of {self._options.url('')} ({self._options.where}) ignores If-Match or If-None-Match, so "
                "that two writers at once would overwrite each other: update needs a store that obeys them, such as "
                "AWS S3, MinIO, Ceph, R2 or SeaweedFS"
            )
