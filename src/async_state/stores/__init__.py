"""Object stores, opened by URL. A store's module, and what it depends on, is imported when one is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_state.connection import Connection
from async_state.settings import Settings
from async_state.stores.base import Store as Store

if TYPE_CHECKING:
    from async_state.stores.s3 import S3Store


def open_store(url: str, settings: Settings, connection: Connection) -> Store:
    """Return the store at ``url``, without any I/O yet.

    Parameters:
        url: a base URL that `Settings` has accepted.
        settings: how to reach it.
        connection: of ``aws_conn_id``; an empty one for botocore's own chain. Its endpoint and region serve where the
            settings have none.
    """
    scheme = url.partition("://")[0]
    if scheme == "memory":
        from async_state.stores.memory import MemoryStore

        return MemoryStore(url)
    if scheme == "file":
        from async_state.stores.file import FileStore

        return FileStore(url, settings.timeout)
    return _s3_store(url, settings, connection)


def prepare(settings: Settings) -> None:
    """Import, parse and resolve what `settings.url` needs, for processes forked from this one to inherit.

    No thread, client or connection is left open. May take half a second, and is not for an event loop's thread.
    """
    if settings.url.startswith("s3://"):
        _s3_store(settings.url, settings, Connection()).prepare()


def _s3_store(url: str, settings: Settings, connection: Connection) -> S3Store:
    from async_state.stores.s3 import S3Store
    from async_state.stores.s3_client import S3Options

    keys = {
        "aws_access_key_id": connection.access_key_id,
        "aws_secret_access_key": connection.secret_access_key,
        "aws_session_token": connection.session_token,
    }
    return S3Store(
        url,
        S3Options(
            timeout=settings.timeout,
            max_attempts=settings.max_attempts or 4,
            max_concurrency=settings.max_concurrency,
            endpoint_url=settings.endpoint_url or connection.endpoint_url,
            region_name=settings.region_name or connection.region_name,
            server_side_encryption=settings.server_side_encryption,
            sse_kms_key_id=settings.sse_kms_key_id,
            credentials={name: key for name, key in keys.items() if key},
        ),
    )
