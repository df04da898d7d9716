"""aiobotocore's S3 client: built late, quickly, and without what an operation has no use for."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from async_state import __version__
from async_state.stores import s3_events

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_CONNECT_TIMEOUT: Final = 5.0
_CREDENTIALS: Final = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


@dataclass(frozen=True)
class S3Options:
    """How to reach S3. What is ``None`` or empty is left to botocore's own chain."""

    timeout: float = 20.0
    max_attempts: int = 4
    max_concurrency: int = 24
    endpoint_url: str | None = None
    region_name: str | None = None
    server_side_encryption: str | None = None
    sse_kms_key_id: str | None = None
    #: ``aws_access_key_id``, ``aws_secret_access_key``, ``aws_session_token``; not shown, as they are secret.
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


def new_session(credentials: Mapping[str, str]) -> Any:
    """Return an `AioSession`.

    Parameters:
        credentials: as in `S3Options`; empty for botocore's own chain, which is asked when they are first needed.

    Raises:
        botocore.exceptions.PartialCredentialsError: a key's id in the environment has no secret.
    """
    with _without_collections():
        from async_state.stores.s3_session import environments_credentials, make_session

        session = make_session()
    if credentials:
        session.set_credentials(*(credentials.get(name) for name in _CREDENTIALS))
    elif found := environments_credentials():
        session.set_credentials(*found)
    return session


@contextlib.asynccontextmanager
async def open_client(options: S3Options, session: Any) -> AsyncIterator[S3Client]:
    """Build a client, and close its connections in the end.

    Parameters:
        options: but for their credentials, which are the session's.
        session: an `AioSession` that has its credentials already, as getting them may take a request.
    """
    from async_state.stores.s3_http import begin_to_load_certificates

    async with contextlib.AsyncExitStack() as stack:
        with _without_collections():
            config = _config(options)
            begin_to_load_certificates(session)
            endpoint, region = options.endpoint_url or None, options.region_name or None
            creating = session.create_client("s3", endpoint_url=endpoint, region_name=region, config=config)
            client = await stack.enter_async_context(creating)
        s3_events.register(client)
        yield client


def http_session(client: S3Client) -> Any:
    """Return the `HttpSession` that the client sends with."""
    # The one thing of a client that has no public name; all versions have it.
    return client._endpoint.http_session


def _config(options: S3Options) -> Any:
    from aiobotocore.config import AioConfig

    from async_state.stores.s3_http import HttpSession

    return AioConfig(
        connect_timeout=min(_CONNECT_TIMEOUT, options.timeout),
        read_timeout=options.timeout,
        max_pool_connections=options.max_concurrency,
        retries={"mode": "standard", "total_max_attempts": options.max_attempts},
        # The default appends a checksum in a trailer, which not everything that speaks S3 takes; `put` stores one
        # as metadata, which everything keeps.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # What is sent is made here, from names that were checked; S3 judges the bucket.
        parameter_validation=False,
        # botocore otherwise composes its own anew for each request, for a seventh of the request's CPU time.
        user_agent=_user_agent(),
        http_session_cls=HttpSession,
    )


def _user_agent() -> str:
    import aiobotocore

    return f"async-state/{__version__} aiobotocore/{aiobotocore.__version__}"


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    # Importing aiobotocore and building a client make so many objects that Python looks for garbage among all that the
    # process holds, which in an Airflow process takes far longer, and stands in the way of every thread.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
