"""What a store keeps open on the I/O thread, and the operations that are tried on it until their time is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from typing import Any, Generic, Protocol, TypeVar

import anyio

from async_state import iothread
from async_state.errors import StoreError
from async_state.stores.retry import Attempts, Kinds, attempts, limit, until

T = TypeVar("T")


class Opened:
    """Connections that are closed once nobody uses them any more.

    Attributes:
        retired: whether they close as soon as that is so.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._users = 0
        self.retired = False

    def enter(self) -> None:
        """Keep connections open until `leave`, whoever retires them meanwhile."""
        self._users += 1

    async def leave(self) -> None:
        """Take back one `enter`."""
        self._users -= 1
        if self.retired:
            await self._close_if_unused()

    async def retire(self) -> None:
        """Close connections as soon as nobody uses them any more; the next operation opens new ones."""
        self.retired = True
        await self._close_if_unused()

    async def _close_if_unused(self) -> None:
        if not self._users:
            with anyio.CancelScope(shield=True):
                await self._stack.aclose()


O = TypeVar("O", bound=Opened)  # noqa: E741 - the conventional kind of name, and no zero


class Batch:
    """Objects that one request deletes. Those whose errors pass are tried again; each that is left has its error.

    Args:
        names: the objects'.
        passes: tells whether an error may pass.
        tell: returns the `StoreError` of a name's error.

    Attributes:
        left: the names that the next request has to delete.
        failed: the errors that may pass, of the latest request.
    """

    def __init__(
        self, names: Sequence[str], passes: Callable[[Any], bool], tell: Callable[[str, Any], StoreError]
    ) -> None:
        self._passes = passes
        self._tell = tell
        self._refused: dict[str, StoreError] = {}
        self.left = list(names)
        self.failed: dict[str, StoreError] = {}

    @property
    def errors(self) -> dict[str, StoreError]:
        """The error of each object that is left."""
        return self._refused | self.failed

    def answered(self, refusals: Iterable[tuple[str, Exception]]) -> None:
        """Note what an answer says of the names that were left.

        Args:
            refusals: the names that were not deleted, each with its error.

        Raises:
            Exception: the first error that passes, so that the rest is tried again.
        """
        self.failed.clear()
        passing: list[Exception] = []
        for name, error in refusals:
            told = self._tell(name, error)
            if self._passes(error):
                self.failed[name] = told
                passing.append(error)
            else:
                self._refused[name] = told
        self.left = list(self.failed)
        if passing:
            raise passing[0]


class Errors(Kinds, Protocol):
    """What the errors of a kind of store mean for its operations."""

    def is_of_credentials(self, e: Exception, /) -> bool:
        """Tell whether the credentials are refused as such, so that newer ones may be accepted."""

    def is_of_certificates(self, e: Exception, /) -> bool:
        """Tell whether the store's certificate was not accepted."""

    def map_exceptions(self, what: str, where: str, attempts: Attempts, /) -> AbstractContextManager[None]:
        """Raise a `StoreError` for what the store and its libraries raise in the block.

        Args:
            what: the operation and its object, such as ``get s3://bucket/key``.
            where: the endpoint, for messages.
            attempts: those of the operation.
        """


class Operations(Generic[O]):
    """The operations of one store.

    Args:
        open_: opens what they need, on the I/O thread, and retires it in the end.
        errors: what errors mean.
        where: the endpoint, for messages.
        max_attempts: the most requests of one operation; 0 for any number.
    """

    def __init__(
        self, open_: Callable[[], AbstractAsyncContextManager[O]], errors: Errors, where: str, max_attempts: int
    ) -> None:
        self._open = open_
        self._errors = errors
        self._where = where
        self._max_attempts = max_attempts

    async def run(self, what: str, ask: Callable[[O], Awaitable[T]], timeout: float) -> T:
        """Ask what is open until that succeeds or ``timeout`` seconds are over.

        Args:
            what: the operation and its object, for messages.
            ask: sends a request and counts it in `retry.attempts`.
            timeout: seconds for everything.

        Raises:
            StoreError: it failed; the message says what, where, how often it was tried, and what to change.
        """
        made, renewed = Attempts(), False

        async def send() -> T:
            nonlocal renewed
            opened = await iothread.resource(self, self._open)
            opened.enter()
            try:
                return await ask(opened)
            except Exception as e:
                capped = 0 < self._max_attempts <= made.sent
                replaceable = self._errors.is_of_credentials(e) or self._errors.is_of_certificates(e)
                if renewed or capped or not replaceable:
                    raise
                # Both may have been replaced since this process read them.
                renewed = True
                await self._retire(opened)
            finally:
                await opened.leave()
            return await send()

        token = attempts.set(made)
        try:
            with (
                self._errors.map_exceptions(what, self._where, made),
                limit(timeout, made, self._errors) as deadline,
            ):
                return await until(deadline, send, made, self._max_attempts, self._errors)
        finally:
            attempts.reset(token)

    async def aclose(self) -> None:
        """Close what is open; the next operation opens it anew."""
        await iothread.release(self)

    async def _retire(self, opened: O) -> None:
        # Another operation may have opened a new one already.
        if not opened.retired:
            opened.retired = True
            await iothread.release(self)
