"""Object stores, by URL. A store's module, and what it depends on, is imported when one is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from async_state import cleanup, connections, iothread, purge
from async_state.connections import Connection
from async_state.settings import Settings
from async_state.stores.base import Store as Store
from async_state.stores.base import Tagged as Tagged
from async_state.stores.base import without_collections

#: The schemes of Google Cloud Storage and Azure Blob Storage.
_CLOUDS: Final = ("gs", "az")


class Stores:
    """The stores below the base URLs of some settings. Everything here runs on the I/O thread.

    Args:
        settings: the base URLs, and how to reach them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, tuple[Connection, Store]] = {}

    async def get(self, base: str, connection: Connection, name: str, *, timeout: float) -> bytes | None:
        """Return the content of an object below ``base``. As `Store.get`."""
        return await self._at(base, connection).get(name, timeout=timeout)

    async def put(
        self, base: str, connection: Connection, name: str, body: bytes, content_encoding: str, *, timeout: float
    ) -> None:
        """Write an object below ``base``. As `Store.put`."""
        await self._at(base, connection).put(name, body, content_encoding, timeout=timeout)

    async def get_tagged(self, base: str, connection: Connection, name: str, *, timeout: float) -> Tagged | None:
        """Return the content of an object below ``base``, and its tag. As `Store.get_tagged`."""
        return await self._at(base, connection).get_tagged(name, timeout=timeout)

    async def put_if_unchanged(
        self,
        base: str,
        connection: Connection,
        name: str,
        body: bytes,
        content_encoding: str,
        seen: Tagged | None,
        *,
        timeout: float,
    ) -> bool:
        """Write an object below ``base`` if it is as it was ``seen``. As `Store.put_if_unchanged`."""
        store = self._at(base, connection)
        return await store.put_if_unchanged(name, body, content_encoding, seen, timeout=timeout)

    async def names(self, base: str, connection: Connection, prefix: str, *, timeout: float) -> list[str]:
        """Return the names below ``base`` that begin with ``prefix``."""
        pages = self._at(base, connection).entries(prefix, timeout=timeout)
        return [entry.name async for page in pages for entry in page]

    async def exists(self, base: str, connection: Connection, name: str, *, timeout: float) -> bool:
        """Tell whether there is an object below ``base``."""
        return await self._at(base, connection).head(name, timeout=timeout) is not None

    async def purge_names(self, base: str, connection: Connection, names: Iterable[str], *, timeout: float) -> None:
        """Delete objects below ``base``. As `purge.purge_names`."""
        bound = self._settings.max_concurrency
        await purge.purge_names(self._at(base, connection), names, concurrency=bound, timeout=timeout)

    async def purge_prefix(
        self,
        base: str,
        connection: Connection,
        prefix: str,
        selects: Callable[[str], bool] | None = None,
        *,
        timeout: float,
    ) -> None:
        """Delete every object below ``base`` whose name begins with ``prefix``. As `purge.purge_prefix`."""
        bound, store = self._settings.max_concurrency, self._at(base, connection)
        await purge.purge_prefix(store, prefix, concurrency=bound, timeout=timeout, selects=selects)

    async def cleanup(self, base: str, connection: Connection, *, timeout: float) -> int:
        """Delete what has expired below ``base``. As `cleanup.delete_expired`."""
        bound = self._settings.max_concurrency
        return await cleanup.delete_expired(self._at(base, connection), concurrency=bound, timeout=timeout)

    async def aclose(self) -> None:
        """Close the connections of every store; the next operation opens them anew."""
        for _, store in list(self._open.values()):
            await store.aclose()

    def _at(self, base: str, connection: Connection) -> Store:
        known = self._open.get(base)
        # The store of a connection that was replaced closes once no operation uses it any more.
        if known is None or known[0] != connection:
            with iothread.preparing():
                known = self._open[base] = connection, open_store(base, self._settings, connection)
        return known[1]


def open_store(url: str, settings: Settings, connection: Connection) -> Store:
    """Return the store at ``url``, without any I/O yet.

    Args:
        url: a base URL that `Settings` has accepted.
        settings: how to reach it.
        connection: of the kind that the URL's store takes, as `connections.empty` returns an empty one.
    """
    scheme = url.partition("://")[0]
    if scheme == "memory":
        from async_state.stores.memory import MemoryStore

        return MemoryStore(url)
    if scheme == "file":
        from async_state.stores.file import FileStore

        return FileStore(url)
    if scheme in _CLOUDS:
        from async_state.stores import cloud

        return cloud.open_store(url, settings, connection)
    with without_collections():
        from async_state.stores.s3 import S3Options, S3Store

    return S3Store(S3Options.of(url, settings, connection))


def prepare(settings: Settings) -> None:
    """Import, parse and resolve what `settings.url` needs, for processes forked from this one to inherit.

    It leaves no thread, client or connection. It may take half a second, and is not for an event loop's thread.
    """
    scheme = settings.url.partition("://")[0]
    if scheme == "s3":
        with without_collections():
            from async_state.stores import s3

        s3.prepare(s3.S3Options.of(settings.url, settings, connections.empty(settings.url)))
    elif scheme in _CLOUDS:
        from async_state.stores import cloud

        cloud.prepare(settings)
