"""The requests of S3 through aiobotocore's client, by its documented interface alone.

Everything works this way. It serves what `direct` does not: proxies, S3 Express, other signatures, a bucket in another
region than expected, and versions of botocore that nobody here has seen.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from async_state import __version__
from async_state.stores.base import Entry, Page, check_size, without_collections
from async_state.stores.retry import count_attempt
from async_state.stores.s3.operations import NotS3Error, Object, Refusal, S3Error
from async_state.stores.s3.options import S3Options

if TYPE_CHECKING:
    from aiobotocore.session import AioSession
    from botocore.credentials import ReadOnlyCredentials
    from types_aiobotocore_s3 import S3Client

#: What the answers' bodies hold; nothing at all where it is empty.
_ANSWERS: Final = {
    "ListObjectsV2": b"ListBucketResult",
    "DeleteObjects": b"DeleteResult",
    "PutObject": b"",
    "DeleteObject": b"",
}


@dataclass(frozen=True)
class Client:
    """`operations.Operations` through an `aiobotocore` client that tries nothing again."""

    client: S3Client
    bucket: str

    async def get(self, key: str) -> Object | None:
        with error_of("GetObject"):
            try:
                answer = await self.client.get_object(Bucket=self.bucket, Key=key)
            except self.client.exceptions.NoSuchKey:
                return None
            async with answer["Body"] as body:
                check_size(answer.get("ContentLength"))
                return Object(await body.read(), answer.get("Metadata", {}), answer.get("ETag", ""))

    async def put(self, key: str, body: bytes, arguments: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        with error_of("PutObject"):
            named: Any = arguments
            await self.client.put_object(Bucket=self.bucket, Key=key, Body=body, Metadata=metadata, **named)

    async def delete(self, key: str) -> None:
        with error_of("DeleteObject"):
            await self.client.delete_object(Bucket=self.bucket, Key=key)

    async def delete_many(self, keys: Sequence[str]) -> Sequence[Refusal]:
        with error_of("DeleteObjects"):
            answer = await self.client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
            )
            return [
                Refusal(refused["Key"], refused.get("Code", ""), refused.get("Message", ""))
                for refused in answer.get("Errors", ())
            ]

    async def list(self, prefix: str, token: str | None) -> Page:
        with error_of("ListObjectsV2"):
            more: Any = {} if token is None else {"ContinuationToken": token}
            answer = await self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **more)
            entries = [
                entry(item["Key"], item["Size"], item["LastModified"], item.get("ETag", ""))
                for item in answer.get("Contents", ())
            ]
            return Page(entries, answer["NextContinuationToken"] if answer.get("IsTruncated") else None)


def entry(key: str, size: int, modified: datetime, etag: str) -> Entry:
    """Return what S3 says of an object, with its time as HEAD has it, in whole seconds."""
    return Entry(key, size, modified.replace(microsecond=0), etag.strip('"'))


@asynccontextmanager
async def open_client(
    options: S3Options, session: AioSession, credentials: ReadOnlyCredentials | None = None
) -> AsyncIterator[S3Client]:
    """Build a client, and close its connections in the end.

    Args:
        options: how to reach the bucket.
        session: it has looked its credentials up already, as that may take a request, unless others are given.
        credentials: to sign with in place of the session's.
    """
    from aiobotocore.config import AioConfig

    config = AioConfig(
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        max_pool_connections=options.max_concurrency,
        # The one retry loop is `retry.until`.
        retries={"mode": "standard", "total_max_attempts": 1},
        # The default appends a checksum in a trailer, which not everything that speaks S3 takes; `store` keeps one as
        # metadata, which everything keeps.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # What is sent is made here, from names that were checked; S3 judges the bucket.
        parameter_validation=False,
        # botocore otherwise composes its own anew for each request, for a seventh of the request's CPU time.
        user_agent=f"async-state/{__version__}",
    )
    with without_collections():
        creating = session.create_client(
            "s3",
            options.region_name,
            endpoint_url=options.endpoint_url,
            config=config,
            aws_access_key_id=credentials and credentials.access_key,
            aws_secret_access_key=credentials and credentials.secret_key,
            aws_session_token=credentials and credentials.token,
        )
        client = await creating.__aenter__()
    try:
        events: Any = client.meta.events
        events.register_last("before-call.s3", _ask_nothing_first)
        events.register_last("before-call.s3.DeleteObjects", _add_digest)
        # Last, so that requests which `endpoint` takes before they are sent are not counted.
        events.register_last("before-send.s3", count_attempt)
        for operation in _ANSWERS:
            events.register_first(f"after-call.s3.{operation}", _check_answer)
        yield client
    finally:
        await creating.__aexit__(None, None, None)


@contextmanager
def error_of(operation: str) -> Iterator[None]:
    """Turn an error that botocore's client raises in the block into the one that `direct` raises.

    Args:
        operation: what is asked of S3 in the block. What botocore asks another service meanwhile has a name of its own.
    """
    try:
        yield
    except ClientError as e:
        error, metadata = e.response.get("Error", {}), e.response.get("ResponseMetadata", {})
        status = metadata.get("HTTPStatusCode") or 0
        code = error.get("Code", "")
        raise S3Error(
            # botocore gives the status for a code where the answer has none.
            "" if code == str(status) else code,
            error.get("Message", ""),
            status=status,
            request_id=metadata.get("RequestId", ""),
            operation=e.operation_name or operation,
            retry_after=metadata.get("HTTPHeaders", {}).get("retry-after", ""),
        ) from None
    except (ResponseParserError, KeyError) as e:
        raise NotS3Error(f"what answered {operation} is not S3: {type(e).__name__}: {e}") from None


def _ask_nothing_first(params: dict[str, Any], **_: Any) -> None:
    # botocore asks on each PUT whether the store takes the body: a second round trip, and a store or proxy that ignores
    # the question is waited for until the end.
    params["headers"].pop("Expect", None)


def _add_digest(params: dict[str, Any], **_: Any) -> None:
    # Older MinIO, Ceph and Google's S3 interface know no other checksum for this request, which requires one.
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


async def _check_answer(http_response: Any, model: Any, **_: Any) -> None:
    # botocore takes any document under 200 for success, so a proxy's page for an empty listing or a finished write.
    expected, content = _ANSWERS[model.name], await http_response.content
    if http_response.status_code < 300 and (expected not in content if expected else content.strip()):
        raise NotS3Error(f"what answered {model.name} under {http_response.status_code} is not S3")
