"""Google Cloud Storage's JSON interface.

It is what Google's own libraries speak, and what emulators of it know. An object's metadata comes with its content in
some answers only, so the content is verified by the checksum that the service itself keeps.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlencode

from async_state.connections.google import GoogleConnection
from async_state.settings import Settings
from async_state.stores.base import CHECKSUM, Details, Entry, Page, bucket_and_prefix
from async_state.stores.cloud import batch, google_credentials
from async_state.stores.cloud.errors import Advice, CloudError, CloudErrors, NotCloudError
from async_state.stores.cloud.http import Answer, Http, md5, not_expected
from async_state.stores.cloud.place import ABSENT, Limits, Object, Place, Refusal
from async_state.stores.cloud.tokens import Tokens

ENDPOINT: Final = "https://storage.googleapis.com"
#: Google's limit on the calls of one batch.
_BATCH: Final = 100
_METADATA: Final = "x-goog-meta-"
_FIELDS: Final = "name,size,updated,generation,crc32c"
#: Of a bucket: what may hurt state.
_SETTINGS: Final = "location,storageClass,versioning,lifecycle,retentionPolicy,defaultEventBasedHold,softDeletePolicy"
_ADVICE: Final = Advice(
    credentials=(
        "Give this process Google's Application Default Credentials (workload identity, a service account of the "
        "instance, or GOOGLE_APPLICATION_CREDENTIALS), or name an Airflow connection in [async_state] gcp_conn_id"
    ),
    access=(
        "Grant storage.objects.get, storage.objects.create, storage.objects.delete and storage.objects.list on the "
        "bucket, as the role Storage Object User (roles/storage.objectUser) does"
    ),
    place="Create the bucket, or correct [async_state] url",
)


def place(url: str, settings: Settings, connection: GoogleConnection) -> Place:
    """Return where the objects below a base URL lie.

    Args:
        url: ``gs://bucket/prefix``, as `Settings` has accepted it.
        settings: limits, and the endpoint if ``url`` is of its kind.
        connection: of ``gcp_conn_id``, or an empty one.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    bucket, prefix = bucket_and_prefix(url)
    endpoint = endpoint_of(settings, connection)
    needs_token = google_credentials.are_needed_at(endpoint)
    if needs_token:
        google_credentials.check_installed()
    return Place(
        url=url,
        prefix=prefix,
        endpoint=endpoint,
        batch=_BATCH,
        errors=CloudErrors(_ADVICE),
        requests=partial(_requests, bucket, endpoint, connection, needs_token),
        credentials=google_credentials.described(connection, endpoint),
        **Limits.of(settings)._asdict(),
    )


def endpoint_of(settings: Settings, connection: GoogleConnection) -> str:
    """Return the service's address, without a slash at its end."""
    given = (settings.endpoint_url if settings.url.startswith("gs://") else None) or connection.endpoint_url
    # As Google's own libraries read it.
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if not given and emulator:
        given = emulator if "://" in emulator else f"http://{emulator}"
    return (given or ENDPOINT).rstrip("/")


@asynccontextmanager
async def _requests(
    bucket: str, endpoint: str, connection: GoogleConnection, needs_token: bool, http: Http
) -> AsyncIterator[Google]:
    tokens = Tokens(partial(google_credentials.fetch, connection)) if needs_token else None
    try:
        yield Google(http, endpoint, bucket, tokens)
    finally:
        if tokens is not None:
            await tokens.aclose()


class Google:
    """`place.Requests` of Google Cloud Storage.

    Args:
        http: Sends them.
        endpoint: The service's address.
        bucket: The bucket's name.
        tokens: Of access; ``None`` where none may be sent, since the endpoint has no TLS.
    """

    def __init__(self, http: Http, endpoint: str, bucket: str, tokens: Tokens | None) -> None:
        self._http = http
        self._endpoint = endpoint
        self._bucket = f"/storage/v1/b/{bucket}"
        self._upload = f"/upload/storage/v1/b/{bucket}/o"
        self._tokens = tokens

    async def get(self, key: str) -> Object | None:
        # Where the header is missing, Google decompresses what is stored with Content-Encoding: gzip.
        answer = await self._send("GET", f"{self._object(key)}?alt=media", {"Accept-Encoding": "gzip"})
        if _is_no_object(answer):
            return None
        _expect(answer, 200)
        tag = answer.headers.get("x-goog-generation")
        if tag is None:
            raise NotCloudError("the answer lacks the generation that Google gives each object")
        return Object(answer.content, answer.metadata(_METADATA), tag, await _is_whole(answer))

    async def put(
        self, key: str, body: bytes, content_encoding: str, metadata: Mapping[str, str], condition: str | None = None
    ) -> None:
        described: dict[str, Any] = {
            "name": key,
            "contentType": "application/json",
            "md5Hash": await md5(body),
            "metadata": dict(metadata),
        }
        if content_encoding:
            described["contentEncoding"] = content_encoding
        boundary = secrets.token_hex(16)
        content = b"".join(
            (
                f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode(),
                json.dumps(described).encode(),
                f"\r\n--{boundary}\r\nContent-Type: application/json\r\n\r\n".encode(),
                body,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        target = f"{self._upload}?uploadType=multipart{_if(condition)}"
        headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
        answer = await self._send("POST", target, headers, content)
        _expect(answer, 200)
        if "generation" not in _document(answer):
            raise NotCloudError("the answer lacks the generation that Google gives each object")

    async def delete(self, key: str, condition: str | None = None) -> None:
        answer = await self._send("DELETE", f"{self._object(key)}?{_if(condition)[1:]}".rstrip("?"))
        if not _is_no_object(answer):
            _expect(answer, 200, 204)
            if _is_page(answer):
                raise NotCloudError("the answer is a page of HTML")

    async def delete_many(self, keys: Sequence[str]) -> Sequence[Refusal]:
        content_type, body = batch.compose(batch.Part("DELETE", self._object(key), {}) for key in keys)
        answer = await self._send("POST", "/batch/storage/v1", {"Content-Type": content_type}, body)
        _expect(answer, 200)
        answers = zip(keys, batch.answers(answer, len(keys)), strict=True)
        return [
            Refusal(key, _error(each))
            for key, each in answers
            if each.status not in (200, 204) and not _is_no_object(each)
        ]

    async def list(self, prefix: str, token: str | None) -> Page:
        asked = {"prefix": prefix, "maxResults": "1000", "fields": f"nextPageToken,items({_FIELDS})"}
        if token is not None:
            asked["pageToken"] = token
        answer = await self._send("GET", f"{self._bucket}/o?{urlencode(asked, quote_via=quote)}")
        _expect(answer, 200)
        found = _document(answer)
        return Page([_entry(item) for item in found.get("items", ())], found.get("nextPageToken") or None)

    async def head(self, key: str) -> Details | None:
        return await self._details(key, "")

    async def metadata(self, key: str, found: Object) -> Mapping[str, str]:
        # What we have written has some.
        if CHECKSUM in found.metadata:
            return found.metadata
        details = await self._details(key, f"&generation={found.tag}")
        return details.metadata if details else {}

    async def authorize(self) -> None:
        if self._tokens is not None:
            await self._tokens.get()

    async def bucket(self) -> Mapping[str, Any]:
        answer = await self._send("GET", f"{self._bucket}?fields={quote(_SETTINGS)}")
        _expect(answer, 200)
        return _document(answer)

    async def service(self) -> Mapping[str, Any]:
        return {}

    async def _details(self, key: str, generation: str) -> Details | None:
        fields = quote(f"{_FIELDS},contentEncoding,metadata")
        answer = await self._send("GET", f"{self._object(key)}?fields={fields}{generation}")
        if _is_no_object(answer):
            return None
        _expect(answer, 200)
        found = _document(answer)
        metadata = {name.lower(): str(value) for name, value in found.get("metadata", {}).items()}
        return Details(_entry(found), found.get("contentEncoding", ""), metadata, "")

    async def _send(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        sent = dict(headers or {})
        if self._tokens is not None:
            sent["Authorization"] = f"Bearer {await self._tokens.get()}"
        return await self._http.send(method, self._endpoint + target, sent, body)

    def _object(self, key: str) -> str:
        return f"{self._bucket}/o/{quote(key, safe='')}"


def _if(condition: str | None) -> str:
    """Return a write's condition as a parameter of its URL: on the generation, which is 0 where there is no object."""
    if condition is None:
        return ""
    return f"&ifGenerationMatch={0 if condition == ABSENT else condition.partition('/')[0]}"


def _entry(item: Mapping[str, Any]) -> Entry:
    try:
        # To the second, as other stores have it.
        modified = datetime.fromisoformat(f"{item['updated'][:19]}+00:00").astimezone(timezone.utc)
        # With the checksum, so that objects of two buckets never seem to be one.
        etag = f"{item['generation']}/{item.get('crc32c', '')}"
        return Entry(item["name"], int(item["size"]), modified, etag)
    except (KeyError, TypeError, ValueError) as e:
        raise NotCloudError(f"the answer lacks what Google says of an object: {type(e).__name__}: {e}") from None


async def _is_whole(answer: Answer) -> bool:
    """Compare the content with the MD5 hash that Google names, unless it was put together of several objects."""
    hashes = answer.headers.getall("x-goog-hash", [])
    named = [each for text in hashes for each in text.replace(" ", "").split(",") if each.startswith("md5=")]
    return not named or named == [f"md5={await md5(answer.content)}"]


def _is_no_object(answer: Answer) -> bool:
    # The other thing that may be missing is the bucket.
    return answer.status == 404 and not _is_page(answer) and b"bucket does not exist" not in answer.content


def _is_page(answer: Answer) -> bool:
    # Google has text under Content-Type: text/html, but no tags.
    return answer.content.lstrip().startswith(b"<")


def _document(answer: Answer) -> dict[str, Any]:
    try:
        found = json.loads(answer.content)
    except ValueError as e:
        raise NotCloudError(f"the answer is no JSON: {type(e).__name__}") from None
    if not isinstance(found, dict):
        raise NotCloudError("the answer is no JSON object")
    return found


def _expect(answer: Answer, *statuses: int) -> None:
    if answer.status not in statuses:
        raise _error(answer) if answer.status >= 400 else not_expected(answer)


def _error(answer: Answer) -> CloudError:
    code, message = "", answer.content[:300].decode(errors="replace")
    try:
        found = json.loads(answer.content)["error"]
        code = str(next((each.get("reason", "") for each in found.get("errors", ())), found.get("status", "")))
        message = str(found.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return CloudError(
        code,
        message,
        status=answer.status,
        request_id=answer.headers.get("x-guploader-uploadid", ""),
        retry_after=answer.headers.get("retry-after", ""),
    )
