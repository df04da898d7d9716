"""Object stores, opened by URL. A store's module, and what it depends on, is imported when one is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from async_state.settings import Settings
from async_state.stores.base import Store as Store

if TYPE_CHECKING:
    from async_state.stores.s3 import S3Store


def open_store(url: str, settings: Settings, credentials: Mapping[str, str]) -> Store:
    """Return the store at ``url``, without any I/O yet.

    Parameters:
        url: a base URL that `Settings` has accepted.
        settings: how to reach it.
        credentials: of ``aws_conn_id``, as arguments for botocore's client; empty for botocore's own chain. An
            ``endpoint_url`` and a ``region_name`` among them serve where the settings have none.
    """
    scheme = url.partition("://")[0]
    if scheme == "memory":
        from async_state.stores.memory import MemoryStore

        return MemoryStore(url)
    if scheme == "file":
        from async_state.stores.file import FileStore

        return FileStore(url)
    return _s3_store(url, settings, credentials)


def prepare(settings: Settings) -> None:
    """Import, parse and resolve what `settings.url` needs, for processes forked from this one to inherit.

    No thread, client or connection is left open. May take half a second, and is not for an event loop's thread.
    """
    if settings.url.startswith("s3://"):
        _s3_store(settings.url, settings, {}).prepare()


def _s3_store(url: str, settings: Settings, credentials: Mapping[str, str]) -> S3Store:
    from async_state.stores.s3 import S3Store
    from async_state.stores.s3_client import S3Options

    keys = dict(credentials)
    endpoint_url, region_name = keys.pop("endpoint_url", None), keys.pop("region_name", None)
    return S3Store(
        url,
        S3Options(
            timeout=settings.timeout,
            max_attempts=settings.max_attempts,
            max_concurrency=settings.max_concurrency,
            endpoint_url=settings.endpoint_url or endpoint_url,
            region_name=settings.region_name or region_name,
            server_side_encryption=settings.server_side_encryption,
            sse_kms_key_id=settings.sse_kms_key_id,
            credentials=keys,
        ),
    )
