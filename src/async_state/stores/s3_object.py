"""One object of S3 in one signed HTTP exchange, with botocore's machinery only where it is needed.

For each call botocore resolves the endpoint, lets some thirty handlers change the request and parses the answer by its
model: two thirds of the CPU time of a small put. All of that comes out as before as long as calls succeed. So once a
call has gone through the client and succeeded, the next go directly: to the endpoint that it went to, signed by the
client's signer, over the client's connections. Where the endpoint was resolved beforehand (`s3_prepared`), the first
one goes directly too, and there is no client until one is needed. What the client might do better at (a failing store,
a lost connection, a redirect to another region) is asked again through it, and so are all calls after that until one
succeeds. What went directly counts as the first of the tries that the settings allow. A refusal stays one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from async_state.stores import s3_direct, s3_prepared
from async_state.stores.s3_client import S3Options, http_session, new_session, open_client
from async_state.stores.s3_direct import SIGNED_DIRECTLY, Direct, Endpoint
from async_state.stores.s3_events import EXPECT_CONTINUE_FROM_BYTES, Attempts, attempts

if TYPE_CHECKING:
    from aiobotocore.awsrequest import AioAWSResponse
    from types_aiobotocore_s3 import S3Client

_HEADER: Final = {
    "ContentType": "Content-Type",
    "ContentEncoding": "Content-Encoding",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
}
_METADATA: Final = "x-amz-meta-"

#: What asking again changes nothing about. 400 may stand for the wrong region, and 408 and 429 pass.
_REFUSALS: Final = frozenset(range(401, 500)) - {408, 429}

#: What the client tries again besides server errors: botocore's transient errors and those of its throttling that S3
#: and what speaks it send.
_TRIED_AGAIN: Final = {
    "RequestTimeout",
    "RequestTimeoutException",
    "PriorRequestNotComplete",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
}


@contextlib.asynccontextmanager
async def open_objects(options: S3Options, bucket: str) -> AsyncIterator[S3Objects]:
    """Open the bucket, and close its connections in the end."""
    async with contextlib.AsyncExitStack() as stack:
        objects = S3Objects(options, bucket, new_session(options.credentials), stack)
        await objects.open()
        try:
            yield objects
        finally:
            objects.closed = True


class S3Objects:
    """Gets, puts and deletes single objects of one bucket directly where that is safe, and else through a client.

    Parameters:
        options: how to reach S3. With ``max_attempts = 1``, everything goes through the client.
        bucket: the bucket.
        session: makes the client.
        stack: closes what is opened.
    """

    def __init__(self, options: S3Options, bucket: str, session: Any, stack: contextlib.AsyncExitStack) -> None:
        self._options = options
        self._bucket = bucket
        self._session = session
        self._stack = stack
        self._client: S3Client | None = None
        self._opening = asyncio.Lock()
        self._direct: Direct | None = None
        # With one try, it is the client's, as it tells more of what went wrong.
        self._may_go_directly = options.max_attempts > 1
        self.closed = False

    async def open(self) -> None:
        """Open what the first operation needs."""
        credentials = await self._session.get_credentials()
        prepared = s3_prepared.find(self._options, self._bucket) if self._may_go_directly else None
        # Without credentials, the client tells what is wrong.
        if prepared is None or credentials is None:
            await self.client()
            return
        connected = s3_direct.connected(prepared.endpoint, credentials, self._session, prepared.http_session())
        self._direct = await self._stack.enter_async_context(connected)

    async def client(self) -> S3Client:
        """Return the client, which is built when it is first asked for.

        Raises:
            ConnectionAbortedError: the bucket was closed, or is closed meanwhile.
        """
        async with self._opening:
            if self._client is None and not self.closed:
                client = await self._stack.enter_async_context(open_client(self._options, self._session))
                if self._may_go_directly:
                    self._learn_from(client)
                self._client = client
            found = self._client
        if found is None or self.closed:
            # With what was opened too late to be closed with the rest.
            await self._stack.aclose()
            raise ConnectionAbortedError("the backend was closed during this operation")
        return found

    async def get(self, key: str) -> tuple[bytes, Mapping[str, str]] | None:
        """Return content and metadata, or ``None`` if there is no such object."""
        response = await self._directly("GetObject", "GET", key)
        if response is not None:
            if response.status_code == 404:
                return None
            named = response.headers.items()
            metadata = {name.removeprefix(_METADATA): value for name, value in named if name.startswith(_METADATA)}
            return await response.content, metadata
        client = await self.client()
        try:
            answer = await client.get_object(Bucket=self._bucket, Key=key)
        except client.exceptions.NoSuchKey:
            return None
        # Read by then, as `s3_events` has it.
        return cast("bytes", answer["Body"]), answer.get("Metadata", {})

    async def put(self, key: str, body: bytes, arguments: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Write the object.

        Parameters:
            key: the object's key.
            body: its content.
            arguments: more of what PutObject takes: those of ``_HEADER``.
            metadata: by lower-case name.
        """
        headers = {_HEADER[name]: value for name, value in arguments.items()}
        headers |= {_METADATA + name: value for name, value in metadata.items()}
        if not await self._directly("PutObject", "PUT", key, headers, body):
            client = await self.client()
            await client.put_object(Bucket=self._bucket, Key=key, Body=body, Metadata=metadata, **arguments)

    async def delete(self, key: str) -> None:
        """Delete the object, if there is one."""
        if not await self._directly("DeleteObject", "DELETE", key):
            client = await self.client()
            await client.delete_object(Bucket=self._bucket, Key=key)

    async def _directly(
        self, operation: str, method: str, key: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> AioAWSResponse | None:
        """Return the answer of an exchange past the client, if there was one and it succeeded.

        Raises:
            botocore.exceptions.ClientError: S3 refused it.
        """
        # Large bodies wait for the store's consent, which the client asks for.
        if self._direct is None or len(body) >= EXPECT_CONTINUE_FROM_BYTES:
            return None
        from aiohttp import ClientError as HttpError
        from botocore.exceptions import BotoCoreError

        try:
            response = await self._direct.exchange(operation, method, key, headers, body)
            content = await response.content
        except (BotoCoreError, HttpError, OSError):
            self._direct = None
            return None
        if _succeeded(method, response.status_code, content):
            return response
        if response.status_code in _REFUSALS:
            raise _refusal(operation, response, content)
        self._direct = None
        return None

    def _learn_from(self, client: S3Client) -> None:
        http = http_session(client)

        def note(params: dict[str, Any], request_signer: Any, context: dict[str, Any], **_: Any) -> None:
            context["async_state"] = Direct(Endpoint.of_call(params, request_signer, context), request_signer, http)

        def learn(http_response: AioAWSResponse, context: Mapping[str, Any], **_: Any) -> None:
            if http_response.status_code < 300 and context["auth_type"] == SIGNED_DIRECTLY:
                self._direct = context["async_state"]

        for operation in ("GetObject", "PutObject", "DeleteObject"):
            client.meta.events.register_last(f"before-call.s3.{operation}", note)
            client.meta.events.register_first(f"needs-retry.s3.{operation}", self._stop_in_time)
            client.meta.events.register_last(f"after-call.s3.{operation}", learn)

    def _stop_in_time(
        self,
        response: tuple[AioAWSResponse, dict[str, Any]] | None,
        caught_exception: Exception | None,
        operation: Any,
        **_: Any,
    ) -> None:
        # The client would go on, as it knows of its own attempts alone, and not that its connections were closed.
        if attempts.get(Attempts()).sent < self._options.max_attempts and not self.closed:
            return
        if caught_exception is not None:
            raise caught_exception
        if response is None:
            return
        http_response, answer = response
        if http_response.status_code >= 500 or answer.get("Error", {}).get("Code") in _TRIED_AGAIN:
            from botocore.exceptions import ClientError

            raise ClientError(answer, operation.name)  # type: ignore[arg-type]


def _succeeded(method: str, status: int, content: bytes) -> bool:
    if method == "GET":
        return status == 200 or (status == 404 and b"<Code>NoSuchKey</Code>" in content)
    # S3 may answer 200 and put an error into the body.
    return status in (200, 204) and not content


def _refusal(operation: str, response: AioAWSResponse, content: bytes) -> Exception:
    from botocore.exceptions import ClientError
    from botocore.parsers import create_parser

    answer = {"status_code": response.status_code, "headers": response.headers, "body": content}
    return ClientError(create_parser("rest-xml").parse(answer, None), operation)  # type: ignore[arg-type]
