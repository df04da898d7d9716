"""Where a bucket's requests go, read off requests that botocore's client composes and does not send.

Nothing private is needed for that: the client says it itself, in botocore's event ``before-send``. What `direct` would
compose for the same operations is compared with it, so that requests are sent directly only where they are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from async_state.stores.s3 import _botocore, signature

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from types_aiobotocore_s3 import S3Client

#: What is composed for the comparison: each kind of character that is encoded differently somewhere.
_KEY: Final = "v1/a b+%25~:=&@/\N{LATIN SMALL LETTER E WITH ACUTE}\N{GRINNING FACE}"
_BODY: Final = b'"body"'
_CONTENT_TYPE: Final = "application/json"
#: How the names of S3 Express's buckets, and of access points to them, end.
_EXPRESS: Final = ("--x-s3", "--xa-s3")
#: Headers that only tell S3 about the client's own attempts, or that HTTP libraries add.
_NOT_COMPARED: Final = frozenset({"amz-sdk-invocation-id", "amz-sdk-request", "content-length", "expect", "host"})


@dataclass(frozen=True)
class Endpoint:
    """Where a bucket's requests go, and how they are signed: nothing that a forked process may not have.

    Attributes:
        object_url: what an object's encoded key is appended to.
        bucket_url: where requests about the bucket go.
        host: of both, as HTTP's header has it.
        scope: of signatures, as `signature.signed` takes it.
        user_agent: the client's.
        signs_body: whether bodies are signed.
    """

    object_url: str
    bucket_url: str
    host: str
    scope: str
    user_agent: str
    signs_body: bool

    def of_object(self, key: str) -> str:
        """Return the URL of a request about an object."""
        return self.object_url + quote(key, safe="/~")

    def of_list(self, prefix: str, token: str | None) -> str:
        """Return the URL of a request for a page of keys."""
        query = {"list-type": "2", "prefix": prefix}
        if token is not None:
            query["continuation-token"] = token
        query["encoding-type"] = "url"
        return f"{self.bucket_url}?{urlencode(query, quote_via=quote, safe='-_.~')}"

    def signed(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        credentials: ReadOnlyCredentials,
        date: str,
    ) -> dict[str, str]:
        """Return the headers of a request: those given, the client's own, and the signature."""
        given, hashed_body = {"Host": self.host, **headers}, body if self.signs_body else None
        signed = signature.signed(method, url, given, hashed_body, credentials=credentials, scope=self.scope, date=date)
        signed["User-Agent"] = self.user_agent
        return signed


async def resolve(client: S3Client, bucket: str, credentials: ReadOnlyCredentials) -> Endpoint | None:
    """Return the endpoint to which requests may be sent directly, or ``None`` where only the client can compose them.

    That is so behind a proxy, with S3 Express or with signatures of another version; and, with a warning, where what
    would be sent directly differs from what the client composes.

    Args:
        client: composes requests that are not sent.
        bucket: where they go.
        credentials: the client's.

    Raises:
        OSError: the system lacks something, such as descriptors.
    """
    from botocore.exceptions import BotoCoreError

    # Signing for them takes a request of its own, for credentials of the bucket.
    if bucket.endswith(_EXPRESS):
        return None
    # What botocore says is wrong is told by the operation that goes through the client.
    with _botocore.fast_path("way of composing requests"), contextlib.suppress(BotoCoreError, ValueError):
        return await _resolve(client, bucket, credentials)
    return None


async def _resolve(client: S3Client, bucket: str, credentials: ReadOnlyCredentials) -> Endpoint | None:
    listing = await _composed(client, client.list_objects_v2(Bucket=bucket, Prefix=_KEY))
    call = client.put_object(Bucket=bucket, Key=_KEY, Body=_BODY, ContentType=_CONTENT_TYPE)
    put = await _composed(client, call)
    endpoint = _read_off(put, listing)
    if endpoint is None or is_proxied(put.url):
        return None
    theirs, url, given = _compared(put.headers), endpoint.of_object(_KEY), {"Content-Type": _CONTENT_TYPE}
    ours = _compared(endpoint.signed("PUT", url, given, _BODY, credentials, theirs["x-amz-date"]))
    different = {name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)}
    if url != put.url or endpoint.of_list(_KEY, None) != listing.url:
        different.add("the URL")
    if not different:
        return endpoint
    _botocore.warn("way of composing requests", f"{', '.join(sorted(different))} would differ")
    return None


def _read_off(put: Any, listing: Any) -> Endpoint | None:
    headers = _compared(put.headers)
    algorithm, _, authorization = headers.get("authorization", "").partition(" ")
    if algorithm != signature.ALGORITHM:
        return None
    scope = authorization.partition("Credential=")[2].partition(",")[0].split("/")
    return Endpoint(
        object_url=put.url.removesuffix(quote(_KEY, safe="/~")),
        bucket_url=listing.url.partition("?")[0],
        host=_host(put.url),
        scope="/".join(scope[-3:]),
        user_agent=headers["user-agent"],
        signs_body=headers["x-amz-content-sha256"] != signature.UNSIGNED_BODY,
    )


async def _composed(client: S3Client, call: Awaitable[object]) -> Any:
    """Return the request of a client's call, which is not sent."""
    requests: list[Any] = []

    def take(request: Any, **_: Any) -> None:
        requests.append(request)
        raise _NotSentError

    client.meta.events.register_first("before-send.s3", take)
    try:
        with contextlib.suppress(_NotSentError):
            await call
    finally:
        client.meta.events.unregister("before-send.s3", take)
    return requests[0]


def _compared(headers: Mapping[str, Any]) -> dict[str, str]:
    texts = {name.lower(): v.decode() if isinstance(v, bytes) else str(v) for name, v in headers.items()}
    return {name: value for name, value in texts.items() if name not in _NOT_COMPARED}


def _host(url: str) -> str:
    parts = URL(url, encoded=True)
    host = parts.host_subcomponent or ""
    return host if parts.is_default_port() else f"{host}:{parts.port}"


def is_proxied(url: str) -> bool:
    """Tell whether the client sends requests for ``url`` through a proxy; it asks the same of the same library."""
    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.netloc)


class _NotSentError(Exception):
    """Ends a call of the client before its request is sent."""
