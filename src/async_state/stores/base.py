"""What every store does, and nothing about any one of them."""

from __future__ import annotations

import contextlib
import gc
import secrets
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import anyio

from async_state.codec import MAX_BODY_BYTES
from async_state.errors import CorruptObjectError, StoreError, StoreTimeoutError

#: The metadata in which a store that keeps metadata has an object's `checksum`.
CHECKSUM: Final = "crc32"
#: Metadata of an object that was written on a condition: random numbers of its latest writes, the last one first.
UPDATES: Final = "updates"
_KEPT_UPDATES: Final = 64


@dataclass(eq=False)
class AnswerError(Exception):
    """A store answered a request with an error.

    Attributes:
        code: the store's own word, such as ``AccessDenied``; empty where the answer has none.
        message: its sentence about it.
        status: of HTTP.
        request_id: by which the store's operators find the request.
        retry_after: the ``Retry-After`` header as it was sent, or an empty string.
    """

    code: str
    message: str
    _: KW_ONLY
    status: int = 0
    request_id: str = ""
    retry_after: str = ""

    def __post_init__(self) -> None:
        # Airflow masks secrets in an exception's arguments.
        super().__init__(f"{self.code or f'HTTP {self.status}'}: {self.message}")


class Entry(NamedTuple):
    """What a listing says of an object. `Store.head` says the same as long as the object is not written again.

    Attributes:
        name: The object's name, below the base URL.
        size: The stored bytes.
        modified: When it was last written, by the store's clock, with a time zone; in object stores to the second.
        etag: What the store calls this content, without quotes; another content has another one.
    """

    name: str
    size: int
    modified: datetime
    etag: str


class Details(NamedTuple):
    """What the store says of one object.

    Attributes:
        entry: As in a listing.
        content_encoding: How it is compressed: empty, ``gzip`` or ``zstd``.
        metadata: Its user-defined metadata, by lower-case name.
        version: The id of this version, where the store keeps the earlier versions of an object, or an empty string.
    """

    entry: Entry
    content_encoding: str
    metadata: Mapping[str, str]
    version: str


class Page(NamedTuple):
    """A part of a listing, its entries named by key, and the token for the next part, or ``None`` after the last."""

    entries: Sequence[Entry]
    token: str | None


class Tagged(NamedTuple):
    """An object's content, and what tells whether it was written since.

    Attributes:
        body: The content as it was put.
        tag: The store's own; another write has another one.
    """

    body: bytes
    tag: Any


class Store(Protocol):
    """Objects by name, below one base URL.

    All methods run on the I/O thread. Each succeeds or raises within ``timeout`` seconds; a listing has that time for
    each page. What fails raises a `StoreError`, which is a `StoreTimeoutError` where the store did not answer.
    """

    #: The most names that one `delete` takes.
    delete_limit: int

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        """Return the object's content as it was put, or ``None`` if there is none.

        Raises:
            CorruptObjectError: it is not what was put; whoever calls adds the object's URL to the message.
        """

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        """Write the object whole, or leave it as it was; visible to every later `get` once this returns."""

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        """Delete the objects; missing ones count as deleted. Return the error of each that is left, or raise one."""

    def entries(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[Entry], None]:
        """Yield the objects whose names start with ``prefix``, in pages of at most `delete_limit`, in constant memory.

        What others have put there is listed as well. The order is the store's: that of the names' bytes in the clouds,
        but not in all that speaks S3.

        Args:
            prefix: Ends in ``/``, or is empty for everything below the base URL.
            timeout: Seconds for each page.
        """

    async def head(self, name: str, *, timeout: float) -> Details | None:
        """Return what the store says of the object, or ``None`` if there is none."""

    async def delete_unchanged(self, seen: Details, *, timeout: float) -> bool:
        """Delete the object if it is still the one that `head` has seen. Nothing that was written since is deleted.

        Where the store keeps versions, the version that was seen is deleted by its id, after all earlier ones of the
        same name, so that none of them comes back. An S3 store that ignores ``If-Match`` deletes whatever is there:
        call `head` immediately before, and what remains is the time between the two requests.

        Returns:
            Whether the object is gone; ``True`` also where somebody else has deleted it, and ``False`` where another
            one has its name by now, which is kept.
        """

    async def copy_from(self, base_url: str, name: str, seen: Details | None, *, timeout: float) -> bool:
        """Copy the object ``name`` from below ``base_url``, another base URL of any kind, inside the store.

        Nothing is copied over what was written since `head` has ``seen`` what is here, as in `put_over`.

        Returns:
            Whether the store can do it. Where it can't, get the object there and use `put_over`. Whether something was
            copied, `head` tells.
        """

    async def put_over(
        self, name: str, body: bytes, content_encoding: str, seen: Details | None, *, timeout: float
    ) -> None:
        """Write the object if what has its name is still what `head` has ``seen``; ``None`` where there was nothing.

        Whether it was written, `head` tells. An S3 store that ignores ``If-Match`` or ``If-None-Match`` writes over
        whatever is there: call `head` immediately before, and what remains is the time between the two requests.
        """

    async def get_tagged(self, name: str, *, timeout: float) -> Tagged | None:
        """As `get`, with what `put_if_unchanged` takes."""

    async def put_if_unchanged(
        self, name: str, body: bytes, content_encoding: str, seen: Tagged | None, *, timeout: float
    ) -> bool:
        """Write the object if nobody has written or deleted it since it was ``seen``; tell whether it was written.

        Args:
            name: The object's.
            body: Its new content, which no other write may have: it is by this that a write is recognised.
            content_encoding: As in `put`.
            seen: What `get_tagged` returned; ``None`` where there was no object.
            timeout: The seconds that are left.

        Raises:
            ConditionsError: The store ignores conditions. It was asked before anything was written.
            StoreError: The store failed.
        """

    async def aclose(self) -> None:
        """Release connections. The store may be used again afterwards, and opens them anew."""


async def listed(ask: Callable[[str | None], Awaitable[Page]], prefix: str) -> AsyncGenerator[Sequence[Entry], None]:
    """Yield the pages of a listing, their entries named below the base URL, as `Store.entries` does.

    Args:
        ask: returns a page; the token of the page before takes the listing up there.
        prefix: what every key of the store begins with.
    """
    token: str | None = None
    while True:
        page = await ask(token)
        if page.entries:
            yield [entry._replace(name=entry.name[len(prefix) :]) for entry in page.entries]
        if page.token is None:
            return
        token = page.token


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """Return the bucket or container of a base URL, and the prefix of its keys: empty, or ending in ``/``."""
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""


def checksum(body: bytes) -> str:
    """Return the checksum of an object's content."""
    return f"{zlib.crc32(body):08x}"


def check_size(length: int | None) -> None:
    """Refuse to read an object of ``length`` bytes, as its answer announces it, if it is too large.

    Raises:
        CorruptObjectError: it is.
    """
    if length is not None and length > MAX_BODY_BYTES:
        raise CorruptObjectError(f"it has {length} bytes, more than any value")


def numbered(seen: Mapping[str, str]) -> tuple[str, str]:
    """Return a number for a write on a condition, and the `UPDATES` to write with it.

    By it, a write is recognised whose answer was lost, even if others wrote after it.

    Args:
        seen: metadata of the object that is written over; empty if there is none.
    """
    number = secrets.token_hex(4)
    return number, ",".join([number, *_numbers(seen)][:_KEPT_UPDATES])


def has_number(found: Mapping[str, str], number: str) -> bool:
    """Tell whether the write of that number is among the latest ones of an object, by its metadata."""
    return number in _numbers(found)


def _numbers(metadata: Mapping[str, str]) -> list[str]:
    return [number for number in metadata.get(UPDATES, "").split(",") if number]


@contextlib.contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Cancel the block after ``seconds``.

    Args:
        seconds: from entering the block on.
        what: the operation, for the error.

    Raises:
        StoreTimeoutError: the block took longer.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise StoreTimeoutError(
            f"could not {what} within {seconds:g} s: check that the store answers from this host, or raise "
            "[async_state] timeout"
        )


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Keep Python from looking for garbage in the block.

    Importing a store's libraries and building a client make so many objects that Python looks through all that the
    process holds, which in an Airflow process takes far longer than the rest, and stops every thread meanwhile.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
