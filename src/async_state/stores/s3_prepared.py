"""What one process prepares for those that are forked from it: modules, models, certificates, and the endpoint.

Everything that belongs to a process alone is made there: threads, connections, clients, and credentials.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import anyio

from async_state.stores.s3_client import S3Options, new_session, open_client
from async_state.stores.s3_direct import Endpoint


@dataclass(frozen=True)
class Prepared:
    """What the client resolved for a bucket, and what for.

    Attributes:
        options: that it was opened with, but for credentials.
        bucket: the bucket.
        environment: what botocore reads beside them.
        endpoint: of the bucket.
        http_arguments: of the HTTP session.
    """

    options: S3Options
    bucket: str
    environment: Mapping[str, str]
    endpoint: Endpoint
    http_arguments: Mapping[str, Any]

    def http(self) -> Any:
        """Return a HTTP session like the client's, not entered yet."""
        from async_state.stores.s3_http import HttpSession

        return HttpSession(**self.http_arguments)


_prepared: Prepared | None = None


def prepare(options: S3Options, bucket: str) -> None:
    """Do all that an operation's first need in this process, or in those forked from it, does not have to wait for.

    Sends nothing, looks no credentials up, and leaves no thread, client or connection open.
    """
    # As anyio imports what it needs of itself for asyncio when it first meets a loop.
    anyio.run(_prepare, _bare(options), bucket)
    from async_state.stores.s3_session import keep_spare

    keep_spare()


def find(options: S3Options, bucket: str) -> Prepared | None:
    """Return what was prepared for these options in this environment, if anything."""
    found = _prepared
    wanted = (_bare(options), bucket, _environment())
    return found if found and (found.options, found.bucket, found.environment) == wanted else None


async def _prepare(options: S3Options, bucket: str) -> None:
    global _prepared
    # Given, so that no chain is asked for any, and none of its answers is inherited.
    session = await new_session({"aws_access_key_id": "prepare", "aws_secret_access_key": "prepare"})
    from async_state.stores.s3_http import load_certificates

    load_certificates(session)
    async with open_client(options, session) as client:
        found: list[Endpoint] = []

        def note(params: dict[str, Any], request_signer: Any, context: dict[str, Any], **_: Any) -> None:
            # Other signatures, such as S3 Express's, need more of botocore than its signer.
            if context["auth_type"] == "v4":
                found.append(Endpoint.of_call(params, request_signer, context))
            raise _NotSentError

        client.meta.events.register_last("before-call.s3.PutObject", note)
        with contextlib.suppress(_NotSentError):
            await client.put_object(Bucket=bucket, Key="key", Body=b"")
        http = client._endpoint.http_session
    _prepared = Prepared(options, bucket, _environment(), found[0], http.arguments) if found else None


def _bare(options: S3Options) -> S3Options:
    return replace(options, credentials={})


def _environment() -> Mapping[str, str]:
    # Not what changes nothing about the endpoint: credentials, of which these are the secret ones.
    secret = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in secret and name.upper().startswith(("AWS_", "REQUESTS_CA_BUNDLE", "HTTP", "NO_PROXY", "ALL_"))
    }


class _NotSentError(Exception):
    """Ends a call before it is sent."""
