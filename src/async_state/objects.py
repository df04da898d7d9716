"""Texts by object name, on the caller's side of the hop: slots, deadlines, packing, and the connection's look-up.

What it calls in `stores` runs on the I/O thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

import anyio

from async_state import codec, connection, iothread
from async_state.connection import Connection
from async_state.errors import ConfigurationError, CorruptObjectError, StoreCredentialsError, StoreTimeoutError
from async_state.limiter import Limiter
from async_state.settings import Settings
from async_state.stores import Stores, Tagged

T = TypeVar("T")


class Objects:
    """What is stored below the settings' URL, and readable below its trusted earlier ones.

    Args:
        settings: of the backend.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limiter = Limiter(settings.max_concurrency)
        self._stores = Stores(settings)
        # Without a connection to look up, there is nothing to wait for.
        self._connection = None if settings.aws_conn_id else Connection()

    @contextlib.asynccontextmanager
    async def operation(self) -> AsyncIterator[float]:
        """Hold one of ``max_concurrency`` slots for the block, and yield when the operation's time is over.

        A slot is taken before anything else is done: of thousands of operations that start at once, each would do its
        share of packing in the same step of their loop. Waiting for it counts towards ``timeout``.

        Raises:
            StoreTimeoutError: there was no slot within ``timeout``.
        """
        until = time.monotonic() + self._settings.timeout
        try:
            slot = self._limiter.slot(self._settings.timeout)
            await slot.__aenter__()
        except TimeoutError:
            raise StoreTimeoutError(
                f"no request to {self._settings.url} was sent within {self._settings.timeout:g} s, as "
                f"{self._settings.max_concurrency} others were in flight all the time: check that the store "
                "answers, or raise [async_state] max_concurrency or timeout"
            ) from None
        try:
            yield until
        finally:
            await slot.__aexit__(None, None, None)

    async def read(self, base: str, name: str, until: float) -> str | None:
        """Return the text of the object ``name`` below ``base``, or ``None`` if there is none.

        Args:
            base: one of the settings' base URLs.
            name: the object's.
            until: as `operation` gives it.

        Raises:
            CorruptObjectError: the object is damaged; the message has its URL.
            StoreError: the store failed.
        """
        with naming(f"{base}/{name}"):
            body = await self._hop(self._stores.get, base, name, until=until)
            if body is None:
                return None
            return codec.decode(body) if iothread.blocks() else await codec.adecode(body)

    async def write(self, name: str, text: str, until: float, ending: str = "") -> None:
        """Write the text, and an ``ending`` behind it, below the settings' URL, compressed as they say.

        Raises:
            InvalidValueError: the text is too large.
            StoreError: the store failed.
        """
        body, content_encoding = await self._packed(text, ending)
        await self._hop(self._stores.put, self._settings.url, name, body, content_encoding, until=until)

    async def read_tagged(self, name: str, until: float) -> tuple[str, Tagged] | None:
        """Return the text of an object below the settings' URL, and what `write_if_unchanged` takes. As `read`."""
        url = self._settings.url
        with naming(f"{url}/{name}"):
            found = await self._hop(self._stores.get_tagged, url, name, until=until)
            if found is None:
                return None
            return codec.decode(found.body) if iothread.blocks() else await codec.adecode(found.body), found

    async def write_if_unchanged(self, name: str, text: str, seen: Tagged | None, until: float) -> bool:
        """Write the text below the settings' URL if the object is as it was ``seen``; tell whether it was written.

        Raises:
            ConditionsError: The store can't tell.
            InvalidValueError, StoreError: As in `write`.
        """
        body, content_encoding = await self._packed(text, codec.ending())
        put = self._stores.put_if_unchanged
        return await self._hop(put, self._settings.url, name, body, content_encoding, seen, until=until)

    async def exists(self, name: str, until: float) -> bool:
        """Tell whether there is an object below the settings' URL."""
        return await self._hop(self._stores.exists, self._settings.url, name, until=until)

    async def names(self, prefix: str, until: float) -> list[str]:
        """Return the names below the settings' URL that begin with ``prefix``."""
        return await self._hop(self._stores.names, self._settings.url, prefix, until=until)

    async def purge_names(self, base: str, names: Iterable[str], until: float) -> None:
        """Delete the named objects below ``base``. Errors as in `purge.purge_names`."""
        await self._hop(self._stores.purge_names, base, names, until=until)

    async def purge_prefix(self, prefix: str, until: float) -> None:
        """Delete everything below ``prefix``. Errors as in `purge.purge_prefix`."""
        await self._hop(self._stores.purge_prefix, self._settings.url, prefix, until=until)

    async def pause(self, seconds: float) -> None:
        """Wait, for callers that block as well."""
        await iothread.arun(anyio.sleep, seconds)

    async def aclose(self) -> None:
        """Close the connections of every store that was used, as soon as no operation uses them."""
        await iothread.arun(self._stores.aclose)

    async def _hop(self, function: Callable[..., Coroutine[Any, Any, T]], base: str, *args: object, until: float) -> T:
        """Call a coroutine of `Stores` on the I/O thread, and once more where a newer connection may be accepted."""
        used = self._connection or await self._look_up()
        try:
            return await iothread.arun(function, base, used, *args, timeout=until - time.monotonic())
        except StoreCredentialsError:
            newer = await self._newer_than(used)
            if newer is None:
                raise
            return await iothread.arun(function, base, newer, *args, timeout=until - time.monotonic())

    async def _packed(self, text: str, ending: str) -> tuple[bytes, str]:
        settings = self._settings
        # Exact only for ASCII, as JSON text from Airflow is; a threshold needs no more.
        compression = settings.compression if len(text) >= settings.compression_threshold else "none"
        if iothread.blocks():
            return codec.encode(text, compression, ending)
        return await codec.aencode(text, compression, ending)

    async def _look_up(self) -> Connection:
        conn_id = str(self._settings.aws_conn_id)
        # On the calling thread, and so before the hop (CONTRACTS 23).
        self._connection = connection.get(conn_id) if iothread.blocks() else await connection.aget(conn_id)
        return self._connection

    async def _newer_than(self, refused: Connection) -> Connection | None:
        """Return the connection if it has changed since it was looked up."""
        if not self._settings.aws_conn_id:
            return None
        # Another operation may have looked it up already.
        if self._connection != refused:
            return self._connection
        with contextlib.suppress(ConfigurationError):
            found = await self._look_up()
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
