"""The operations of S3 that a store uses, each sent once: `direct.Direct` and `client.Client` both have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from async_state.stores.base import AnswerError, Page


@dataclass(eq=False, kw_only=True)
class S3Error(AnswerError):
    """S3 answered a request with an error.

    Attributes:
        operation: the request, by its name in the AWS API. It may be another service's, which gives credentials.
    """

    operation: str = ""


class NotS3Error(Exception):
    """What answered does not speak S3: a proxy's page, or a document without what S3 always says."""


class Object(NamedTuple):
    """An object's content, its metadata by lower-case name, and its ETag as it was sent."""

    body: bytes
    metadata: Mapping[str, str]
    etag: str


class Refusal(NamedTuple):
    """A key that DeleteObjects did not delete, with S3's code and message."""

    key: str
    code: str
    message: str


class Operations(Protocol):
    """Each method sends one request, counts it in `retry.attempts`, and tries nothing again.

    Raises:
        S3Error: S3 answered with an error.
        NotS3Error: what answered is not S3.
        aiohttp.ClientError, botocore.exceptions.BotoCoreError, OSError: there was no answer.
    """

    async def get(self, key: str) -> Object | None:
        """Return the object, or ``None`` if there is none.

        Raises:
            CorruptObjectError: it is larger than any that this package writes, and is not read.
        """

    async def put(self, key: str, body: bytes, arguments: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        """Write the object, with more arguments of PutObject and with metadata by lower-case name.

        Raises:
            S3Error: `errors.is_conflict` tells that a condition among the arguments did not hold.
        """

    async def delete(self, key: str) -> None:
        """Delete the object, if there is one."""

    async def delete_many(self, keys: Sequence[str]) -> Sequence[Refusal]:
        """Delete at most 1,000 objects, and return those that are left."""

    async def list(self, prefix: str, token: str | None) -> Page:
        """Return a page of the keys that begin with ``prefix``; the ``token`` of the page before takes it up there."""
