"""Texts by object name, on the caller's side of the hop: slots, deadlines, packing, and the connection's look-up.

What it calls in `stores` runs on the I/O thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from async_state import codec, connections, iothread, telemetry, urls
from async_state.codec import Stored
from async_state.connections import Connection
from async_state.errors import (
    ConfigurationError,
    CorruptObjectError,
    StoreCredentialsError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from async_state.limiter import Limiter, NoSlotError, Slot
from async_state.settings import Settings
from async_state.stores import Stores, Tagged

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from async_state.telemetry import Measurement, OperationName

T = TypeVar("T")


@dataclass
class Operation:
    """One operation, which is measured as long as its block runs, and holds a slot in an ``async with`` block.

    A slot is taken before anything else is done: of thousands of operations that start at once, each would do its share
    of packing in the same step of their loop. Waiting for it counts towards ``timeout``.

    Attributes:
        slot: One of ``max_concurrency``.
        until: When its time is over, by `time.monotonic`.
        measurement: ``None`` where telemetry is off.
        bytes: How many bytes of objects it has read or written so far.
        outcome: As in `Measurement.end`.
    """

    slot: StoreSlot
    until: float
    measurement: Measurement | None = None
    bytes: int = 0
    outcome: str = "ok"

    def __enter__(self) -> Operation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.outcome = kind.__name__ if issubclass(kind, Exception) else "cancelled"
        if self.measurement is not None:
            self.measurement.end(self.outcome, self.bytes)

    async def __aenter__(self) -> Operation:
        try:
            await self.slot.__aenter__()
        except BaseException as e:
            self.__exit__(type(e), e, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.slot.__aexit__()
        self.__exit__(kind, error, traceback)


class StoreSlot(Slot):
    """A slot whose error is a store's.

    Args:
        limiter: Of the operations that run at once.
        settings: Which say how long to wait.

    Raises:
        StoreTimeoutError: There was no slot within ``timeout``.
    """

    def __init__(self, limiter: Limiter, settings: Settings) -> None:
        super().__init__(limiter, settings.timeout)
        self._settings = settings

    async def __aenter__(self) -> float:
        try:
            return await super().__aenter__()
        except NoSlotError:
            raise StoreTimeoutError(
                f"no request to {self._settings.url} was sent within {self._settings.timeout:g} s, as "
                f"{self._settings.max_concurrency} others were in flight all the time: check that the store "
                "answers, or raise [async_state] max_concurrency or timeout"
            ) from None


class Objects:
    """What is stored below the settings' URL, and readable below its trusted earlier ones.

    Args:
        settings: of the backend.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limiter = Limiter(settings.max_concurrency)
        self._stores = Stores(settings)
        # By the option that names it, from the first operation that needs it on.
        self._connections: dict[str, Connection] = {}

    @property
    def url(self) -> str:
        """The settings' base URL."""
        return self._settings.url

    def operation(self, name: OperationName, base: str = "") -> Operation:
        """Return an operation that begins now.

        Args:
            name: What is done, for telemetry.
            base: The base URL below which it is done; empty for the settings' URL.
        """
        until = time.monotonic() + self._settings.timeout
        return Operation(self.slot(), until, telemetry.start(name, base or self.url))

    def slot(self) -> StoreSlot:
        """Return a slot to hold in an ``async with`` block."""
        return StoreSlot(self._limiter, self._settings)

    async def fetch(self, base: str, name: str, operation: Operation) -> bytes | None:
        """Return the content of the object ``name`` below ``base``, or ``None`` if there is none.

        Args:
            base: One of the settings' base URLs.
            name: The object's.
            operation: As `operation` gives it.

        Raises:
            CorruptObjectError: The object is damaged; the message has its URL.
            StoreError: The store failed.
        """
        with naming(f"{base}/{name}"):
            body = await self._hop(self._stores.get, base, name, until=operation.until)
        operation.bytes += len(body or b"")
        return body

    async def read(self, base: str, name: str, operation: Operation) -> str | None:
        """Return the text of the object ``name`` below ``base``, or ``None`` if there is none. As `fetch`."""
        found = await self.read_stored(base, name, operation)
        return None if found is None else found.text

    async def read_stored(self, base: str, name: str, operation: Operation) -> Stored | None:
        """Return the text of an object and when it expires. As `read`."""
        body = await self.fetch(base, name, operation)
        if body is None:
            return None
        with naming(f"{base}/{name}"):
            return codec.unpack(body) if iothread.blocks() else await codec.aunpack(body)

    async def write(
        self, name: str, text: str, operation: Operation, *, ending: str = "", expires_at: datetime | None = None
    ) -> None:
        """Write the text, and an ``ending`` behind it, below the settings' URL, compressed as they say.

        Raises:
            InvalidValueError: The text is too large, or ``expires_at`` is no ``datetime``.
            StoreError: The store failed.
        """
        body, content_encoding = await self._packed(text, ending, expires_at)
        await self._hop(self._stores.put, self.url, name, body, content_encoding, until=operation.until)
        operation.bytes += len(body)

    async def read_tagged(self, name: str, operation: Operation) -> tuple[str, Tagged] | None:
        """Return the text of an object below the settings' URL, and what `write_if_unchanged` takes. As `read`."""
        with naming(f"{self.url}/{name}"):
            found = await self._hop(self._stores.get_tagged, self.url, name, until=operation.until)
            if found is None:
                return None
            operation.bytes += len(found.body)
            return codec.decode(found.body) if iothread.blocks() else await codec.adecode(found.body), found

    async def write_if_unchanged(self, name: str, text: str, seen: Tagged | None, operation: Operation) -> bool:
        """Write the text below the settings' URL if the object is as it was ``seen``; tell whether it was written.

        Raises:
            ConditionsError: The store can't tell.
            InvalidValueError, StoreError: As in `write`.
        """
        body, content_encoding = await self._packed(text, codec.ending(), None)
        put = self._stores.put_if_unchanged
        written = await self._hop(put, self.url, name, body, content_encoding, seen, until=operation.until)
        operation.bytes += len(body) if written else 0
        return written

    async def exists(self, name: str, operation: Operation) -> bool:
        """Tell whether there is an object below the settings' URL."""
        return await self._hop(self._stores.exists, self.url, name, until=operation.until)

    async def names(self, prefix: str, operation: Operation) -> list[str]:
        """Return the names below the settings' URL that begin with ``prefix``."""
        return await self._hop(self._stores.names, self.url, prefix, until=operation.until)

    async def purge_names(self, base: str, names: Iterable[str], operation: Operation) -> None:
        """Delete the named objects below ``base``. Errors as in `purge.purge_names`."""
        await self._hop(self._stores.purge_names, base, names, until=operation.until)

    async def purge_prefix(
        self, prefix: str, operation: Operation, selects: Callable[[str], bool] | None = None
    ) -> None:
        """Delete everything below ``prefix``, or of it what ``selects`` says. Errors as in `purge.purge_prefix`."""
        await self._hop(self._stores.purge_prefix, self.url, prefix, selects, until=operation.until)

    async def cleanup(self, operation: Operation) -> int:
        """Delete what has expired below the settings' URL. As `cleanup.delete_expired`."""
        return await self._hop(self._stores.cleanup, self.url, until=operation.until)

    async def pause(self, seconds: float) -> None:
        """Wait, for callers that block as well."""
        await iothread.arun(anyio.sleep, seconds)

    async def aclose(self) -> None:
        """Close the connections of every store that was used, as soon as no operation uses them."""
        await iothread.arun(self._stores.aclose)

    async def _packed(self, text: str, ending: str, expires_at: datetime | None) -> tuple[bytes, str]:
        settings = self._settings
        # Exact only for ASCII, as JSON text from Airflow is; a threshold needs no more.
        compression = settings.compression if len(text) >= settings.compression_threshold else "none"
        if iothread.blocks():
            return codec.encode(text, compression, ending=ending, expires_at=expires_at)
        return await codec.aencode(text, compression, ending=ending, expires_at=expires_at)

    async def _hop(self, function: Callable[..., Coroutine[Any, Any, T]], base: str, *args: object, until: float) -> T:
        """Call a coroutine of `Stores` on the I/O thread, and once more where a newer connection may be accepted."""
        try:
            used = self._connections.get(urls.connection_option(base)) or await self._look_up(base)
            try:
                return await iothread.arun(function, base, used, *args, timeout=until - time.monotonic())
            except StoreCredentialsError:
                newer = await self._newer_than(used, base)
                if newer is None:
                    raise
                return await iothread.arun(function, base, newer, *args, timeout=until - time.monotonic())
        except iothread.NotReadyError as e:
            raise StoreUnavailableError(
                f"nothing was sent to {base}, as this process could not begin to: {e}. The next operation tries again. "
                "Its limits are of open files (ulimit -n) and of threads (ulimit -u, and a container's of processes)"
            ) from e

    async def _look_up(self, base: str) -> Connection:
        option = urls.connection_option(base)
        conn_id = connections.conn_id(base, self._settings)
        # On the calling thread, and so before the hop (CONTRACTS 23).
        if not conn_id:
            with iothread.preparing():
                found = connections.empty(base)
        elif iothread.blocks():
            found = connections.get(option, conn_id)
        else:
            found = await connections.aget(option, conn_id)
        self._connections[option] = found
        return found

    async def _newer_than(self, refused: Connection, base: str) -> Connection | None:
        """Return the connection if it has changed since it was looked up."""
        if not refused.conn_id:
            return None
        # Another operation may have looked it up already.
        known = self._connections[urls.connection_option(base)]
        if known != refused:
            return known
        with contextlib.suppress(ConfigurationError):
            found = await self._look_up(base)
            return found if found != refused else None
        return None


@contextlib.contextmanager
def naming(url: str) -> Iterator[None]:
    """Name the object ``url`` in a `CorruptObjectError` that the block raises."""
    try:
        yield
    except CorruptObjectError as e:
        raise CorruptObjectError(
            f"the object {url} can't be read: {e}. Restore it, or delete the key so that the next set writes it anew"
        ) from None
