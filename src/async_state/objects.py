"""Texts by object name, in the stores that the settings name: packed, bounded, and on the I/O thread.

Everything above this module runs on the caller's side of the hop; stores, packing and purging run on the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from async_state import codec, connection, iothread, purge
from async_state.errors import CorruptObjectError
from async_state.settings import Settings
from async_state.stores import Store, open_store

T = TypeVar("T")
P = ParamSpec("P")


class Objects:
    """What is stored below the settings' URL, and readable below its trusted earlier ones."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = iothread.Slots(settings.max_concurrency)
        self._stores: dict[str, Store] = {}
        # Without a connection to look up, there is nothing to wait for.
        self._credentials: dict[str, str] | None = None if settings.aws_conn_id else {}

    def turn(self) -> asyncio.Semaphore:
        """Return what waits for one of ``max_concurrency`` turns on this loop, and holds it, in ``async with``.

        To be taken before anything is done for an operation: of thousands that start at once, each would do its share
        of packing in the same step of their loop.
        """
        return self._slots.one()

    async def read(self, base: str, name: str) -> str | None:
        """Return the object's text, or ``None`` if there is none.

        Raises:
            CorruptObjectError: it is damaged; the message has its URL.
            StoreError: the store failed.
        """
        return await self._io(self._read, base, name)

    async def write(self, name: str, text: str) -> None:
        """Write the text below the settings' URL, compressed as they say.

        Raises:
            InvalidValueError: the text is too large.
            StoreError: the store failed.
        """
        await self._io(self._write, name, text)

    async def purge_names(self, base: str, names: Iterable[str]) -> None:
        """Delete the named objects. Errors as in `purge.purge_names`."""
        await self._io(self._purge, purge.purge_names, base, names)

    async def purge_prefix(self, prefix: str) -> None:
        """Delete everything below ``prefix``. Errors as in `purge.purge_prefix`."""
        await self._io(self._purge, purge.purge_prefix, self._settings.url, prefix)

    async def aclose(self) -> None:
        """Close the connections of every store that was used."""
        for store in self._stores.values():
            await iothread.arun(store.aclose)

    def connect(self) -> None:
        """Look up ``aws_conn_id``, once, on this thread.

        Raises:
            ConfigurationError: see `connection.get_credentials`.
        """
        if self._credentials is None and self._settings.aws_conn_id:
            self._credentials = connection.get_credentials(self._settings.aws_conn_id)

    async def _connect(self) -> dict[str, str]:
        if self._credentials is None and self._settings.aws_conn_id:
            self._credentials = await connection.aget_credentials(self._settings.aws_conn_id)
        return self._credentials or {}

    async def _io(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        await self._connect()
        return await iothread.arun(function, *args, **kwargs)

    def _store(self, base: str) -> Store:
        store = self._stores.get(base)
        if store is None:
            store = self._stores[base] = open_store(base, self._settings, self._credentials or {})
        return store

    async def _read(self, base: str, name: str) -> str | None:
        body = await self._store(base).get(name, timeout=self._settings.timeout)
        if body is None:
            return None
        with about(f"{base}/{name}"):
            return await codec.adecode(body)

    async def _write(self, name: str, text: str) -> None:
        settings = self._settings
        # Exact only for ASCII, as JSON text from Airflow is; a threshold needs no more.
        compression = settings.compression if len(text) >= settings.compression_threshold else "none"
        body, content_encoding = await codec.aencode(text, compression)
        await self._store(settings.url).put(name, body, content_encoding, timeout=settings.timeout)

    async def _purge(self, purge_what: Callable[..., Coroutine[Any, Any, None]], base: str, what: object) -> None:
        settings = self._settings
        await purge_what(self._store(base), what, concurrency=settings.max_concurrency, timeout=settings.timeout)


@contextlib.contextmanager
def about(url: str) -> Iterator[None]:
    """Name the object ``url`` in a `CorruptObjectError` that the block raises."""
    try:
        yield
    except CorruptObjectError as e:
        raise CorruptObjectError(
            f"the object {url} can't be read: {e}. Restore it, or delete the key so that the next set writes it anew"
        ) from None
