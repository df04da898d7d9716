"""aiobotocore's S3 client: built late, quickly, and without what an operation has no use for."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio

from async_state import __version__
from async_state.stores import s3_events

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_CONNECT_TIMEOUT: Final = 5.0


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


@contextlib.asynccontextmanager
async def open_client(options: S3Options) -> AsyncIterator[S3Client]:
    """Build a client, and close its connections in the end."""
    with _without_collections():
        from async_state.stores.s3_http import load_certificates
        from async_state.stores.s3_session import new_session

        config, session = _config(options), new_session()
    load_certificates(session.get_config_variable("ca_bundle"))
    if not options.credentials:
        # May go over the network, so not in the block below; the session keeps what it finds.
        await session.get_credentials()
    async with contextlib.AsyncExitStack() as stack:
        with _without_collections():
            client = await stack.enter_async_context(
                session.create_client(
                    "s3",
                    endpoint_url=options.endpoint_url or None,
                    region_name=options.region_name or None,
                    config=config,
                    **options.credentials,
                )
            )
        s3_events.register(client)
        yield client


def preload() -> None:
    """Import aiobotocore, parse S3's models and load certificates, so that forked processes need not."""

    async def build() -> None:
        # With credentials, so that no chain is asked for any, and none of its answers is inherited.
        anyone = {"aws_access_key_id": "preload", "aws_secret_access_key": "preload"}
        async with open_client(S3Options(region_name="us-east-1", credentials=anyone)):
            # Certificates are loaded on a thread, which ends with this loop.
            pass

    # As anyio imports what it needs of itself for asyncio when it first meets a loop.
    anyio.run(build)
    from async_state.stores.s3_session import keep_spare

    keep_spare()


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
