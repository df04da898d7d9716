"""What one process prepares for those that are forked from it: modules, models, certificates, and the endpoint.

Everything that belongs to a process alone is made there: threads, connections, clients, and credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from async_state.stores.s3_client import S3Options, http_session, new_session, open_client
from async_state.stores.s3_direct import SIGNED_DIRECTLY, Endpoint, connected

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client


@dataclass(frozen=True)
class Prepared:
    """What the client resolved for a bucket, and what for.

    Attributes:
        options: those that the client was opened with; credentials are not among them.
        bucket: the bucket.
        environment: a hash of what botocore reads beside the options, some of which may be secret.
        endpoint: the bucket's.
        http_arguments: those that the client made its HTTP session with.
    """

    options: S3Options
    bucket: str
    environment: int
    endpoint: Endpoint
    http_arguments: Mapping[str, Any] = field(repr=False)

    def http_session(self) -> Any:
        """Return a HTTP session like the client's, not entered yet."""
        from async_state.stores.s3_http import HttpSession

        return HttpSession(**self.http_arguments)


_prepared: Prepared | None = None


def prepare(options: S3Options, bucket: str) -> None:
    """Do all that an operation's first need in this process, or in those forked from it, does not have to wait for.

    Looks no credentials up, and leaves no thread, client or connection open. Sends nothing, but for what botocore asks
    the instance about where AWS's configuration has ``defaults_mode = auto``.
    """
    # Not `asyncio.run`: that leaves this thread, and so each process forked from it, without the event loop that tasks
    # may ask for with `asyncio.get_event_loop`.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(_prepare(_bare(options), bucket))
    from async_state.stores.s3_session import keep_spare

    keep_spare()


def find(options: S3Options, bucket: str) -> Prepared | None:
    """Return what was prepared for these options in this environment, if anything."""
    found = _prepared
    if found is None or (found.options, found.bucket, found.environment) != (_bare(options), bucket, _environment()):
        return None
    return found


async def _prepare(options: S3Options, bucket: str) -> None:
    global _prepared
    # As anyio imports what it needs for asyncio when it first meets a loop.
    await anyio.lowlevel.checkpoint()
    # With credentials, so that no chain is asked for any, and none of its answers is inherited.
    session = new_session({"aws_access_key_id": "prepare", "aws_secret_access_key": "prepare"})
    from async_state.stores.s3_http import load_certificates

    load_certificates(session)
    async with open_client(options, session) as client:
        endpoint = await _resolve(client, bucket)
        http_arguments = http_session(client).arguments
    # Making the chain, which is asked for nothing, and signing for nothing: a first time of either imports modules and
    # fills caches, such as Python's of what is an instance of what, and forked processes inherit these.
    session.get_component("credential_provider")
    if endpoint is not None:
        prepared = Prepared(options, bucket, _environment(), endpoint, http_arguments)
        async with connected(endpoint, await session.get_credentials(), session, prepared.http_session()) as direct:
            await direct.signed("PutObject", "PUT", "key", {"Content-Type": "text/plain"}, b"body")
        _prepared = prepared


async def _resolve(client: S3Client, bucket: str) -> Endpoint | None:
    """Return the endpoint of a call that is not sent, unless only the client knows how to sign it."""
    found: list[Endpoint] = []

    def note(params: dict[str, Any], request_signer: Any, context: dict[str, Any], **_: Any) -> None:
        if context["auth_type"] == SIGNED_DIRECTLY:
            found.append(Endpoint.of_call(params, request_signer, context))
        raise _NotSentError

    client.meta.events.register_last("before-call.s3.PutObject", note)
    with contextlib.suppress(_NotSentError):
        await client.put_object(Bucket=bucket, Key="key", Body=b"")
    return found[0] if found else None


def _bare(options: S3Options) -> S3Options:
    return replace(options, credentials={})


def _environment() -> int:
    """Return a hash of what may change where requests go: AWS's variables and file, and proxies; not credentials."""
    from botocore.credentials import EnvProvider

    credentials = {*EnvProvider.TOKENS, EnvProvider.ACCESS_KEY, EnvProvider.SECRET_KEY, EnvProvider.EXPIRY_TIME}
    variables = {
        (name, value)
        for name, value in os.environ.items()
        if name not in credentials
        and (name.startswith("AWS_") or name == "REQUESTS_CA_BUNDLE" or name.lower().endswith("_proxy"))
    }
    file = Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    try:
        status = file.stat()
        written = (status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        written = None
    return hash((frozenset(variables), file, written))


class _NotSentError(Exception):
    """Ends a call before it is sent."""
