"""Where the objects of a store lie, and the requests that it sends for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from async_state.settings import Settings
from async_state.stores.base import Details, Page
from async_state.stores.cloud.errors import CloudError, CloudErrors
from async_state.stores.cloud.http import Http

#: As a condition of a write: there must be no object.
ABSENT = ""


class Object(NamedTuple):
    """An object's content.

    Attributes:
        body: As it is stored.
        metadata: Its user-defined metadata, by lower-case name.
        tag: What the cloud calls this write of it; the condition of another write.
        is_whole: Whether the content has the checksum that it was written with.
    """

    body: bytes
    metadata: Mapping[str, str]
    tag: str
    is_whole: bool


class Refusal(NamedTuple):
    """A key that a batch did not delete, and why."""

    key: str
    error: CloudError


class Requests(Protocol):
    """The requests of one cloud. Each is sent once, and counted in `retry.attempts`.

    Raises:
        CloudError: the cloud answered with an error.
        NotCloudError: what answered is not the cloud.
        TokenError: there is no token.
        aiohttp.ClientError, OSError: there was no answer.
    """

    async def get(self, key: str) -> Object | None:
        """Return the object, or ``None`` if there is none.

        Raises:
            CorruptObjectError: it is larger than any that this package writes, and is not read.
        """

    async def put(
        self, key: str, body: bytes, content_encoding: str, metadata: Mapping[str, str], condition: str | None = None
    ) -> None:
        """Write the object.

        Args:
            key: Its name in the bucket.
            body: Its content.
            content_encoding: How that is compressed: empty, ``gzip`` or ``zstd``.
            metadata: By lower-case name.
            condition: ``None`` to write whatever is there, `ABSENT`, or the tag of what must be there still.

        Raises:
            CloudError: `errors.is_conflict` tells that the condition did not hold.
        """

    async def delete(self, key: str, condition: str | None = None) -> None:
        """Delete the object, if there is one, and if it is still what has the tag ``condition``.

        Raises:
            CloudError: as for `put`.
        """

    async def delete_many(self, keys: Sequence[str]) -> Sequence[Refusal]:
        """Delete the objects, at most `Place.batch` of them, in one request. Return those that are left."""

    async def list(self, prefix: str, token: str | None) -> Page:
        """Return a page of the keys that begin with ``prefix``; the ``token`` of the page before takes it up there."""

    async def head(self, key: str) -> Details | None:
        """Return what there is to know of the object but its content, or ``None`` if there is none."""

    async def metadata(self, key: str, found: Object) -> Mapping[str, str]:
        """Return the metadata of an object that `get` has found; empty if another write came in between."""

    async def authorize(self) -> None:
        """Find what shows who sends a request, without sending one."""

    async def bucket(self) -> Mapping[str, Any]:
        """Return what the cloud tells of the bucket or container itself, in its own words."""

    async def service(self) -> Mapping[str, Any]:
        """Return what the cloud tells of the account around it, in its own words; empty where it has none."""


@dataclass(frozen=True)
class Place:
    """One bucket or container, the prefix in it, and how to reach it.

    Attributes:
        url: The base URL.
        prefix: What every key begins with: empty, or ending in ``/``.
        endpoint: The service's address, for messages.
        batch: The most objects that one request deletes.
        errors: What the cloud's errors mean.
        requests: Makes what sends the requests.
        max_attempts: The most requests that one operation sends; 0 for any number.
        max_concurrency: The most connections that a process keeps.
        read_timeout: Seconds that one request waits for the cloud to send anything.
        credentials: Where they come from, for the person who asks.
    """

    url: str
    prefix: str
    endpoint: str
    batch: int
    errors: CloudErrors
    requests: Callable[[Http], AbstractAsyncContextManager[Requests]]
    max_attempts: int
    max_concurrency: int
    read_timeout: float
    credentials: str

    @property
    def where(self) -> str:
        """The endpoint, for messages."""
        return f"endpoint {self.endpoint}"

    @property
    def connect_timeout(self) -> float:
        """Seconds that making a connection may take."""
        return min(5.0, self.read_timeout)


class Limits(NamedTuple):
    """What every place takes of the settings, as it is named there."""

    max_attempts: int
    max_concurrency: int
    read_timeout: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return those of the settings."""
        # A request that is answered with nothing leaves time for another one.
        return cls(settings.max_attempts, settings.max_concurrency, settings.timeout / 2)
