"""``gs://bucket/prefix`` and ``az://container/prefix``: Google Cloud Storage and Azure Blob Storage.

    store.py               CloudStore: what both do, whatever their requests look like
    place.py               where a store's objects lie, and the requests that a cloud's module sends
    google.py              Google's JSON interface
    google_credentials.py  its tokens: Application Default Credentials or a credentials file
    azure.py               Azure's Blob interface
    azure_credentials.py   its account, keys, shared access signatures and tokens
    tokens.py              a token, kept until it ends
    batch.py               many requests in one, in the format that both clouds know
    http.py                one request as one HTTP exchange
    diagnose.py            what the command check asks about a bucket or container
    errors.py              which errors pass, and what each means for the person on call

Each request is sent over aiohttp. The clouds' own libraries give credentials alone, and only where a token is needed.
"""

from __future__ import annotations

import asyncio
import contextlib

import anyio.lowlevel

from async_state.connections import Connection
from async_state.connections.azure import AzureConnection
from async_state.connections.google import GoogleConnection
from async_state.settings import Settings
from async_state.stores.cloud.store import CloudStore


def open_store(url: str, settings: Settings, connection: Connection) -> CloudStore:
    """Return the store at a ``gs://`` or ``az://`` base URL, without any I/O yet.

    Args:
        url: the base URL.
        settings: how to reach it; their endpoint is that of their own ``url``.
        connection: of ``gcp_conn_id`` or ``wasb_conn_id``; an empty one for the cloud's own chain.

    Raises:
        ConfigurationError: nothing names the storage account of an ``az://`` URL, or an extra is not installed.
    """
    if url.startswith("gs://"):
        from async_state.stores.cloud import google

        assert isinstance(connection, GoogleConnection)  # noqa: S101 - for mypy
        return CloudStore(google.place(url, settings, connection))
    from async_state.stores.cloud import azure

    assert isinstance(connection, AzureConnection)  # noqa: S101 - for mypy
    return CloudStore(azure.place(url, settings, connection))


def needs_library(settings: Settings) -> bool:
    """Tell whether requests of the store at ``settings.url`` need the library that asks its cloud for tokens.

    What an Airflow connection holds, only a task can look up, so that one is taken to hold keys.

    Raises:
        ConfigurationError: nothing names the storage account of an ``az://`` URL.
    """
    if settings.url.startswith("gs://"):
        from async_state.stores.cloud import google_credentials

        return google_credentials.are_needed(settings, GoogleConnection())
    from async_state.stores.cloud import azure_credentials

    return not settings.wasb_conn_id and azure_credentials.account_of(settings, AzureConnection()).needs_identity


def prepare(settings: Settings) -> None:
    """Import what the store at ``settings.url`` needs, and read certificates, for processes forked from this one.

    It looks no credentials up, and leaves no thread, client or connection.
    """
    from async_state.stores.cloud import http

    needed = needs_library(settings)
    if settings.url.startswith("gs://"):
        from async_state.stores.cloud import google, google_credentials  # noqa: F401 - google is for the processes

        if needed:
            google_credentials.prepare()
    else:
        from async_state.stores.cloud import azure, azure_credentials  # noqa: F401 - so is azure

        if needed:
            azure_credentials.prepare()
    http.tls_context()
    # anyio imports what it needs for asyncio when it first meets a loop. Not `asyncio.run`, which would leave this
    # thread, and so each forked process, without the event loop that tasks may ask for with `asyncio.get_event_loop`.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(anyio.lowlevel.checkpoint())
