"""One request of S3 as one signed HTTP exchange, past botocore's client.

For each call the client resolves the endpoint, lets some thirty handlers change the request and parses the answer by
its model: two thirds of the CPU time of a small put, for the same outcome each time.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
from yarl import URL

from async_state import threads
from async_state.stores import _aiohttp
from async_state.stores.base import Page, check_size
from async_state.stores.retry import count_attempt
from async_state.stores.s3 import _botocore, documents, signature
from async_state.stores.s3.client import error_of
from async_state.stores.s3.endpoint import Endpoint
from async_state.stores.s3.operations import NotS3Error, Object, Refusal, S3Error
from async_state.stores.s3.options import S3Options, put_headers

if TYPE_CHECKING:
    import ssl

_METADATA: Final = "x-amz-meta-"
#: From this size on, a body is hashed for its signature on another thread.
_OFFLOAD_BYTES: Final = 256 * 1024


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Direct:
    """`operations.Operations` without a client.

    Attributes:
        endpoint: the bucket's.
        credentials: an `AioCredentials`, asked before each request, as they may be renewed.
        http: what sends.
    """

    endpoint: Endpoint
    credentials: Any
    http: aiohttp.ClientSession

    async def get(self, key: str) -> Object | None:
        answer = await self._send("GetObject", "GET", self.endpoint.of_object(key))
        if answer.status == 404 and documents.error(answer.content).get("Code") == "NoSuchKey":
            return None
        if answer.status != 200:
            raise _error("GetObject", answer)
        named = ((name.lower(), value) for name, value in answer.headers.items())
        metadata = {name.removeprefix(_METADATA): value for name, value in named if name.startswith(_METADATA)}
        return Object(answer.content, metadata, answer.headers.get("ETag", ""))

    async def put(self, key: str, body: bytes, arguments: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        headers = put_headers(arguments) | {_METADATA + name: value for name, value in metadata.items()}
        answer = await self._send("PutObject", "PUT", self.endpoint.of_object(key), headers, body)
        _expect_nothing("PutObject", answer)

    async def delete(self, key: str) -> None:
        _expect_nothing("DeleteObject", await self._send("DeleteObject", "DELETE", self.endpoint.of_object(key)))

    async def delete_many(self, keys: Sequence[str]) -> Sequence[Refusal]:
        body = documents.delete_document(keys)
        # A checksum is required, and this is the one that all stores know.
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        answer = await self._send(
            "DeleteObjects", "POST", f"{self.endpoint.bucket_url}?delete", {"Content-MD5": digest}, body
        )
        if answer.status != 200:
            raise _error("DeleteObjects", answer)
        return documents.refusals(answer.content)

    async def list(self, prefix: str, token: str | None) -> Page:
        answer = await self._send("ListObjectsV2", "GET", self.endpoint.of_list(prefix, token))
        if answer.status != 200:
            raise _error("ListObjectsV2", answer)
        return documents.page(answer.content)

    async def _send(
        self, operation: str, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> _Answer:
        with error_of(operation):
            credentials = await self.credentials.get_frozen_credentials()
        sign, date = self.endpoint.signed, signature.current_date()
        if len(body) < _OFFLOAD_BYTES:
            signed = sign(method, url, headers or {}, body, credentials, date)
        else:
            signed = await threads.call(sign, method, url, headers or {}, body, credentials, date)
        signed["Accept-Encoding"] = "identity"
        if method == "DELETE":
            signed["Content-Length"] = "0"
        count_attempt()
        async with self.http.request(
            method, URL(url, encoded=True), headers=signed, data=_payload(body), allow_redirects=False
        ) as response:
            check_size(response.content_length)
            return _Answer(response.status, response.headers, await response.read())


@asynccontextmanager
async def connections(options: S3Options, context: ssl.SSLContext | None) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a connection pool for `Direct`, and close it in the end.

    Args:
        options: how many connections, and how long they wait.
        context: what verifies certificates; ``None`` for an endpoint without TLS.
    """
    opened = _aiohttp.session(
        context,
        limit=options.max_concurrency,
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
    )
    async with opened as http:
        _botocore.send_once(http)
        yield http


def _payload(body: bytes) -> bytes | io.BytesIO | None:
    # A large body is written in pieces, so that the loop serves others in between.
    return io.BytesIO(body) if len(body) >= _OFFLOAD_BYTES else body or None


def _expect_nothing(operation: str, answer: _Answer) -> None:
    if answer.status in (200, 204) and not answer.content:
        return
    # S3 may answer 200 and put an error into the body.
    if answer.status not in (200, 204) or documents.error(answer.content):
        raise _error(operation, answer)
    if answer.content.strip():
        raise NotS3Error(f"what answered {operation} under {answer.status} is not S3")


def _error(operation: str, answer: _Answer) -> S3Error:
    fields = documents.error(answer.content)
    return S3Error(
        fields.get("Code", ""),
        fields.get("Message", ""),
        status=answer.status,
        request_id=answer.headers.get("x-amz-request-id", ""),
        operation=operation,
        retry_after=answer.headers.get("Retry-After", ""),
    )
