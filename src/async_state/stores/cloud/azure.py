"""Azure's Blob interface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

from async_state.connections.azure import AzureConnection
from async_state.errors import ConfigurationError
from async_state.settings import Settings
from async_state.stores.base import CHECKSUM, Details, Entry, Page, bucket_and_prefix, checksum
from async_state.stores.cloud import azure_credentials, batch
from async_state.stores.cloud.azure_credentials import Authorizer
from async_state.stores.cloud.errors import Advice, CloudError, CloudErrors, NotCloudError, TokenError
from async_state.stores.cloud.http import Answer, Http, md5, not_expected
from async_state.stores.cloud.place import ABSENT, Limits, Object, Place, Refusal

#: Azure's limit on the requests of one batch.
_BATCH: Final = 256
_METADATA: Final = "x-ms-meta-"
_ADVICE: Final = Advice(
    credentials=(
        "Give this process an identity (workload identity, managed identity, or AZURE_CLIENT_ID with its secret), an "
        "account key or a shared access signature in AZURE_STORAGE_*, or name an Airflow connection in [async_state] "
        "wasb_conn_id; renew what has ended, and check this machine's clock"
    ),
    access=(
        "Grant the role Storage Blob Data Contributor on the container, or the permissions read, create, write, delete "
        "and list to the shared access signature, and let the account's firewall admit this host"
    ),
    place="Create the container, or correct [async_state] url and azure_account",
)


def place(url: str, settings: Settings, connection: AzureConnection) -> Place:
    """Return where the objects below a base URL lie.

    Args:
        url: ``az://container/prefix``, as `Settings` has accepted it.
        settings: limits, the account, and the endpoint if ``url`` is of its kind.
        connection: of ``wasb_conn_id``, or an empty one.

    Raises:
        ConfigurationError: nothing names the account, or nothing gives access to it.
    """
    container, prefix = bucket_and_prefix(url)
    account = azure_credentials.account_of(settings, connection)
    azure_credentials.check(account)
    return Place(
        url=url,
        prefix=prefix,
        endpoint=account.endpoint,
        batch=_BATCH,
        errors=CloudErrors(_ADVICE),
        requests=partial(_requests, container, account.endpoint, settings, connection),
        credentials=account.source,
        **Limits.of(settings)._asdict(),
    )


@asynccontextmanager
async def _requests(
    container: str, endpoint: str, settings: Settings, connection: AzureConnection, http: Http
) -> AsyncIterator[Azure]:
    # Looked up anew, as key or signature may have been replaced.
    try:
        account = azure_credentials.account_of(settings, connection)
        azure_credentials.check(account)
    except ConfigurationError as e:
        raise TokenError(str(e), passes=True) from None
    authorizer = azure_credentials.authorizer(account, connection)
    try:
        yield Azure(http, endpoint, container, authorizer)
    finally:
        await authorizer.aclose()


class Azure:
    """`place.Requests` of Azure Blob Storage.

    Args:
        http: Sends them.
        endpoint: The address of the account's blobs.
        container: The container's name.
        authorizer: Makes them acceptable.
    """

    def __init__(self, http: Http, endpoint: str, container: str, authorizer: Authorizer) -> None:
        self._http = http
        self._account = endpoint
        self._container = f"{endpoint}/{container}"
        self._authorizer = authorizer

    async def get(self, key: str) -> Object | None:
        answer = await self._send("GET", self._blob(key))
        if _is_no_blob(answer):
            return None
        _expect(answer, 200)
        tag = answer.headers.get("ETag", "").strip('"')
        if not tag or "x-ms-request-id" not in answer.headers:
            raise NotCloudError("the answer lacks the headers that Azure gives each blob")
        metadata = answer.metadata(_METADATA)
        is_whole = metadata.get(CHECKSUM) in (None, checksum(answer.content))
        return Object(answer.content, metadata, tag, is_whole)

    async def put(
        self, key: str, body: bytes, content_encoding: str, metadata: Mapping[str, str], condition: str | None = None
    ) -> None:
        headers = {
            "Content-Type": "application/json",
            "Content-MD5": await md5(body),
            "x-ms-blob-type": "BlockBlob",
            **{_METADATA + name: value for name, value in metadata.items()},
            **_if(condition),
        }
        if content_encoding:
            headers["x-ms-blob-content-encoding"] = content_encoding
        _expect(await self._send("PUT", self._blob(key), headers, body), 201)

    async def delete(self, key: str, condition: str | None = None) -> None:
        answer = await self._send("DELETE", self._blob(key), _if(condition))
        if not _is_no_blob(answer):
            _expect(answer, 202)

    async def delete_many(self, keys: Sequence[str]) -> Sequence[Refusal]:
        parts = []
        for key in keys:
            url = self._blob(key)
            headers = await self._authorizer.headers("DELETE", url, {"Content-Length": "0"})
            parts.append(batch.Part("DELETE", _target(self._authorizer.url(url)), headers))
        content_type, body = batch.compose(parts)
        asked = f"{self._container}?restype=container&comp=batch"
        answer = await self._send("POST", asked, {"Content-Type": content_type}, body)
        _expect(answer, 202)
        answers = zip(keys, batch.answers(answer, len(keys)), strict=True)
        return [Refusal(key, _error(each)) for key, each in answers if each.status != 202 and not _is_no_blob(each)]

    async def list(self, prefix: str, token: str | None) -> Page:
        asked = {"restype": "container", "comp": "list", "prefix": prefix, "maxresults": "1000"}
        if token is not None:
            asked["marker"] = token
        answer = await self._send("GET", f"{self._container}?{urlencode(asked, quote_via=quote)}")
        _expect(answer, 200)
        return _page(answer.content)

    async def head(self, key: str) -> Details | None:
        answer = await self._send("HEAD", self._blob(key))
        # An answer to HEAD has no content, but its header names what is missing.
        if _is_no_blob(answer):
            return None
        _expect(answer, 200)
        entry = Entry(
            key,
            int(answer.headers.get("Content-Length", 0)),
            _time(answer.headers.get("Last-Modified", "")),
            answer.headers.get("ETag", "").strip('"'),
        )
        return Details(entry, answer.headers.get("Content-Encoding", ""), answer.metadata(_METADATA), "")

    async def metadata(self, key: str, found: Object) -> Mapping[str, str]:
        return found.metadata

    async def authorize(self) -> None:
        await self._authorizer.headers("GET", self._container, {})

    async def bucket(self) -> Mapping[str, Any]:
        answer = await self._send("GET", f"{self._container}?restype=container")
        _expect(answer, 200)
        return {name.lower(): value for name, value in answer.headers.items()}

    async def service(self) -> Mapping[str, Any]:
        answer = await self._send("GET", f"{self._account}/?restype=service&comp=properties")
        _expect(answer, 200)
        root = _parsed(answer.content, "StorageServiceProperties")
        # By the path of each.
        return {f"{part.tag}/{each.tag}": each.text or "" for part in root for each in part}

    async def _send(self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        sent = {"x-ms-version": azure_credentials.VERSION, **(headers or {}), "Content-Length": str(len(body))}
        authorized = await self._authorizer.headers(method, url, sent)
        return await self._http.send(method, self._authorizer.url(url), authorized, body)

    def _blob(self, key: str) -> str:
        return f"{self._container}/{quote(key, safe='/~')}"


def _if(condition: str | None) -> dict[str, str]:
    """Return a write's condition as a header."""
    if condition is None:
        return {}
    return {"If-None-Match": "*"} if condition == ABSENT else {"If-Match": f'"{condition}"'}


def _target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _parsed(content: bytes, tag: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - a cloud can harm those who trust it with state anyway
    except ElementTree.ParseError as e:
        raise NotCloudError(f"the answer is no XML document: {e}") from None
    if root.tag != tag:
        raise NotCloudError(f"the answer is no {tag}")
    return root


def _page(content: bytes) -> Page:
    root = _parsed(content, "EnumerationResults")
    entries = [
        Entry(
            blob.findtext("Name") or "",
            int(blob.findtext("Properties/Content-Length") or 0),
            _time(blob.findtext("Properties/Last-Modified") or ""),
            (blob.findtext("Properties/Etag") or "").strip('"'),
        )
        for blob in root.iterfind("Blobs/Blob")
        # Accounts with a hierarchical namespace list these as well.
        if blob.findtext("Properties/ResourceType") != "directory"
    ]
    return Page(entries, root.findtext("NextMarker") or None)


def _time(text: str) -> datetime:
    try:
        return parsedate_to_datetime(text).astimezone(timezone.utc)
    except ValueError:
        raise NotCloudError(f"the answer has a time that is none: {text!r}") from None


def _is_no_blob(answer: Answer) -> bool:
    return answer.status == 404 and answer.headers.get("x-ms-error-code") == "BlobNotFound"


def _expect(answer: Answer, status: int) -> None:
    if answer.status != status:
        raise _error(answer) if answer.status >= 400 else not_expected(answer)


def _error(answer: Answer) -> CloudError:
    code, message = answer.headers.get("x-ms-error-code", ""), ""
    try:
        root = ElementTree.fromstring(answer.content)  # noqa: S314 - as above
        code = code or root.findtext("Code") or ""
        # What follows are the request's id and the time.
        message = (root.findtext("Message") or "").partition("\n")[0]
    except ElementTree.ParseError:
        message = answer.content[:300].decode(errors="replace")
    return CloudError(
        code,
        message,
        status=answer.status,
        request_id=answer.headers.get("x-ms-request-id", ""),
        retry_after=answer.headers.get("Retry-After", ""),
    )
