"""What is found out once, by a process or by one that it was forked from: a bucket's endpoint and the like.

Airflow runs each task in a process of its own, whose first operation would otherwise do all of this. Whatever belongs
to one process alone is made there: threads, connections, clients and credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from os.path import expanduser
from typing import TYPE_CHECKING, Final

import anyio.lowlevel
from botocore.credentials import ReadOnlyCredentials

from async_state.connections.aws import AwsConnection
from async_state.stores.s3 import _botocore
from async_state.stores.s3.client import open_client
from async_state.stores.s3.endpoint import Endpoint, resolve
from async_state.stores.s3.options import S3Options

if TYPE_CHECKING:
    from aiobotocore.session import AioSession

#: What signs the requests that are composed to find an endpoint, and not sent.
_NO_CREDENTIALS: Final = ReadOnlyCredentials("prefork", "prefork", "prefork")

#: Endpoints by the options and the environment that they were resolved for.
_endpoints: dict[tuple[S3Options, int], Endpoint | None] = {}


def prepare(options: S3Options) -> None:
    """Do what a first operation would otherwise do in this process, or in each that is forked from it.

    It looks no credentials up, and leaves no thread, client or connection. It sends nothing, but for what botocore asks
    the instance where AWS's configuration has ``defaults_mode = auto``.

    Raises:
        Exception: what botocore raises where it can't use the options.
    """
    # Not `asyncio.run`: that leaves this thread, and so each process forked from it, without the event loop that tasks
    # may ask for with `asyncio.get_event_loop`.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(_prepare(options))


async def endpoint(options: S3Options, session: AioSession) -> Endpoint | None:
    """Return what `resolve` finds for the bucket, which is asked once for these options in this environment.

    Args:
        options: the bucket and how to reach it.
        session: builds the client that is asked; its credentials are not used.
    """
    key = replace(options, connection=AwsConnection()), _environment()
    if key not in _endpoints:
        async with open_client(options, session, _NO_CREDENTIALS) as client:
            _endpoints[key] = await resolve(client, options.bucket, _NO_CREDENTIALS)
    return _endpoints[key]


async def _prepare(options: S3Options) -> None:
    # anyio imports what it needs for asyncio when it first meets a loop.
    await anyio.lowlevel.checkpoint()
    session = _botocore.new_session()
    await endpoint(options, session)
    # Making the chain, which is asked for nothing here, imports modules, too.
    with contextlib.suppress(Exception):
        session.get_component("credential_provider")
    _botocore.tls_context(_botocore.ca_bundle(session))
    _botocore.keep_session()


def _environment() -> int:
    """Return a hash of what may change where requests go: AWS's variables and files, and proxies; not credentials."""
    credentials = {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_CREDENTIAL_EXPIRATION",
    }
    variables = {
        (name, value)
        for name, value in os.environ.items()
        if name not in credentials
        and (name.startswith("AWS_") or name == "REQUESTS_CA_BUNDLE" or name.lower().endswith("_proxy"))
    }
    # A profile's region and endpoint may be in either.
    files = (
        _state(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config"),
        _state(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"),
    )
    return hash((frozenset(variables), files))


def _state(file: str) -> tuple[object, ...]:
    # Without a home directory, `expanduser` leaves the path as it is.
    path = expanduser(file)  # noqa: PTH111
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return (path,)
    return path, status.st_ino, status.st_size, status.st_mtime_ns
