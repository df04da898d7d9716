"""Signed HTTP exchanges with a bucket, past botocore's client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from async_state.stores.s3_events import count_attempt

if TYPE_CHECKING:
    from aiobotocore.awsrequest import AioAWSResponse
    from botocore.awsrequest import AWSPreparedRequest

#: The kind of signature that needs the signer alone. Others, such as S3 Express's, need more of the client.
SIGNED_DIRECTLY: Final = "v4"


@dataclass(frozen=True)
class Endpoint:
    """Where a bucket's requests go, and how they are signed, as the client resolved it.

    There is nothing of a connection or of credentials in it, so that forked processes may have it.
    """

    url: str
    user_agent: str
    #: What the signer is made with.
    region_name: str | None
    signing_name: str
    signature_version: str
    #: As botocore gives it to the signer with each request.
    context: Mapping[str, Any]

    @classmethod
    def of_call(cls, params: Mapping[str, Any], request_signer: Any, context: Mapping[str, Any]) -> Endpoint:
        """Return what a call to one object had by the time of its event ``before-call``, whose arguments these are."""
        return cls(
            url=params["url"].removesuffix(params["url_path"]) + "/",
            user_agent=params["headers"]["User-Agent"],
            region_name=request_signer.region_name,
            signing_name=request_signer.signing_name,
            signature_version=request_signer.signature_version,
            context={name: context[name] for name in ("auth_type", "signing", "client_config")},
        )


@dataclass(frozen=True)
class Direct:
    """One bucket's endpoint, with what signs and what sends."""

    endpoint: Endpoint
    signer: Any
    http_session: Any

    async def exchange(
        self, operation: str, method: str, key: str, headers: Mapping[str, str] | None, body: bytes
    ) -> AioAWSResponse:
        """Send one request, and return the answer, its content unread.

        Parameters:
            operation: as S3 calls it.
            method: of HTTP.
            key: the object's.
            headers: those that are the operation's own.
            body: the object's content, if any.

        Raises:
            botocore.exceptions.BotoCoreError, aiohttp.ClientError, OSError: there was no answer.
        """
        request = await self.signed(operation, method, key, headers, body)
        count_attempt()
        response: AioAWSResponse = await self.http_session.send(request)
        return response

    async def signed(
        self, operation: str, method: str, key: str, headers: Mapping[str, str] | None, body: bytes
    ) -> AWSPreparedRequest:
        """Return the request that `exchange` sends."""
        from botocore.awsrequest import AWSRequest

        request = AWSRequest(method, self.endpoint.url + quote(key, safe="/~"), headers=headers, data=body)
        request.headers["User-Agent"] = self.endpoint.user_agent
        request.context.update(self.endpoint.context)
        await self.signer.sign(operation, request)
        return request.prepare()


@contextlib.asynccontextmanager
async def connected(endpoint: Endpoint, credentials: Any, session: Any, http_session: Any) -> AsyncIterator[Direct]:
    """Sign and send without a client, and close the connections in the end.

    Parameters:
        endpoint: of the bucket.
        credentials: what the `AioSession` has found.
        session: that session.
        http_session: what sends; it is entered here.
    """
    from aiobotocore.signers import AioRequestSigner
    from botocore.model import ServiceId

    signer = AioRequestSigner(
        ServiceId("S3"),
        endpoint.region_name,
        endpoint.signing_name,
        endpoint.signature_version,
        credentials,
        session.get_component("event_emitter"),
    )
    async with http_session:
        yield Direct(endpoint, signer, http_session)
