"""aiobotocore's S3 client: built late, quickly, and without what an operation has no use for."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import anyio

from async_state import __version__, iothread

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

#: From this size on, asking first whether the store takes the body saves more than the round trip costs.
EXPECT_CONTINUE_FROM_BYTES: Final = 1024 * 1024
_CONNECT_TIMEOUT: Final = 5.0
#: What the answers' bodies hold; nothing at all where it is empty.
_ANSWERS: Final = {
    "ListObjectsV2": b"ListBucketResult",
    "DeleteObjects": b"DeleteResult",
    "PutObject": b"",
    "DeleteObject": b"",
}


#: Their debug lines have the headers of requests, session tokens included, and the bodies of answers: credentials, too,
#: where these come from another AWS service.
_TELLING_LOGGERS: Final = ("botocore.auth", "botocore.endpoint", "botocore.parsers")


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


@dataclass
class Attempts:
    """How many requests an operation has sent, retries included."""

    sent: int = 0

    def __str__(self) -> str:
        return f"{self.sent} attempt{'s' * (self.sent != 1)}"


#: Of the running operation; `s3.S3Store` begins a new one for each. Not botocore's own count, which knows nothing of
#: what went past the client, and which connection errors and timeouts do not have.
attempts: ContextVar[Attempts] = ContextVar("async_state_attempts")


def count_attempt(**_: Any) -> None:
    """Count a request that is about to be sent."""
    attempts.get(Attempts()).sent += 1


#: botocore's loader, with the models that it has parsed: kept for the next client, and by forked processes.
_loader: Any = None
#: A session that has made no client and looked nothing up, for the first client of each forked process.
_spare: Any = None


@contextlib.asynccontextmanager
async def open_client(options: S3Options) -> AsyncIterator[S3Client]:
    """Build a client, and close its connections in the end."""
    with _without_collections():
        config, session = _config(options), _session()
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
        client.meta.events.register_last("before-call.s3", _expect_only_for_large_bodies)
        client.meta.events.register_first("before-send.s3", count_attempt)
        client.meta.events.register_last("request-created.s3.GetObject", _read_within_the_attempt)
        client.meta.events.register_first("after-call.s3.GetObject", _body_as_read)
        for operation in _ANSWERS:
            client.meta.events.register_first(f"after-call.s3.{operation}", _check_answer)
        yield client


def preload() -> None:
    """Import aiobotocore, parse S3's models and load certificates, so that forked processes need not."""
    global _spare

    async def build() -> None:
        # With credentials, so that no chain is asked for any, and none of its answers is inherited.
        anyone = {"aws_access_key_id": "preload", "aws_secret_access_key": "preload"}
        async with open_client(S3Options(region_name="us-east-1", credentials=anyone)) as client:
            # Not in older versions of aiobotocore; and what can't be loaded is told by the operation that needs it.
            with contextlib.suppress(AttributeError, OSError):
                client._endpoint.http_session._build_ssl_contexts(None)

    # As anyio imports what it needs of itself for asyncio when it first meets a loop.
    anyio.run(build)
    _spare = _session()


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


def _session() -> Any:
    global _loader, _spare
    from aiobotocore.session import get_session

    for name in _TELLING_LOGGERS:
        logging.getLogger(name).addFilter(_discreet)
    session, _spare = _spare or get_session(), None
    # A listing has a thousand of them, and reading them with dateutil is half of what a clear computes.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    if _loader is None:
        _loader = session.get_component("data_loader")
    else:
        session.register_component("data_loader", _loader)
    return session


def _discreet(record: logging.LogRecord) -> bool:
    # What others do with botocore in this process is theirs to log.
    return record.levelno > logging.DEBUG or record.threadName != iothread.THREAD_NAME


def _timestamp(value: Any) -> datetime:
    # As S3 writes it; anything else, of the services that credentials come from say, is botocore's to read.
    if isinstance(value, str) and value.endswith("Z"):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(value[:-1] + "+00:00")
    from botocore.utils import parse_timestamp

    found: datetime = parse_timestamp(value)
    return found


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


def _expect_only_for_large_bodies(params: dict[str, Any], **_: Any) -> None:
    # botocore asks for it on every PUT from a file-like object, which it makes of every body: a second round trip.
    if int(params["headers"].get("Content-Length", _body_length(params))) < EXPECT_CONTINUE_FROM_BYTES:
        params["headers"].pop("Expect", None)


def _read_within_the_attempt(request: Any, **_: Any) -> None:
    # Otherwise the body is read when the attempt is over, and one that is cut off, even an error's, ends the operation.
    request.stream_output = False


async def _body_as_read(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
    if "Body" in parsed:
        parsed["Body"] = await http_response.content


async def _check_answer(http_response: Any, model: Any, **_: Any) -> None:
    from botocore.parsers import ResponseParserError

    # botocore takes any document under 200 for success, so a proxy's page for an empty listing or a finished write.
    expected, content = _ANSWERS[model.name], await http_response.content
    if http_response.status_code < 300 and (expected not in content if expected else content.strip()):
        raise ResponseParserError(f"what answered {model.name} under {http_response.status_code} is not S3")


def _body_length(params: dict[str, Any]) -> int:
    body = params.get("body")
    return body.getbuffer().nbytes if isinstance(body, io.BytesIO) else len(body or b"")
