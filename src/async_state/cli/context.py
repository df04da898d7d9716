"""What every command needs: the settings, and a store that is open while the command runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from async_state import connections, threads, urls
from async_state.connections import Connection
from async_state.settings import Settings
from async_state.stores import open_store
from async_state.stores.base import Store


def settings() -> Settings:
    """Return the settings that Airflow's configuration has on this machine.

    Raises:
        ConfigurationError: An option can't be used.
    """
    from async_state.compat import airflow_conf

    return Settings.from_conf(airflow_conf())


async def connection_of(settings: Settings, base: str) -> Connection:
    """Look up the connection for a base URL's store; an empty one stands for the cloud's own chain.

    Raises:
        ConfigurationError: There is no such connection, or it can't be used.
    """
    conn_id = connections.conn_id(base, settings)
    if not conn_id:
        return connections.empty(base)
    # On a thread: the look-up blocks, and this is the I/O thread's event loop.
    return await threads.call(connections.get, urls.connection_option(base), conn_id)


@contextlib.asynccontextmanager
async def opened(settings: Settings, base: str = "") -> AsyncIterator[Store]:
    """Open the store below one of the settings' base URLs for the block.

    Args:
        settings: How to reach it.
        base: The base URL; empty for `Settings.url`.

    Yields:
        The store, on the I/O thread, where every command runs.
    """
    base = base or settings.url
    store = open_store(base, settings, await connection_of(settings, base))
    try:
        yield store
    finally:
        await store.aclose()
