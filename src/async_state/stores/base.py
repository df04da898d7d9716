"""What every store does, and nothing about any one of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Protocol

import anyio

from async_state.errors import StoreError, StoreTimeoutError


class Store(Protocol):
    """Objects by name, below one base URL.

    All methods run on the I/O thread. Each ends, or raises `StoreTimeoutError`, within ``timeout`` seconds; a listing
    has that time for each page. Failures are raised as a `StoreError`, and an object that is too large to be a value as
    a `CorruptObjectError`.
    """

    #: The most names that one `delete` takes.
    delete_limit: int

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        """Return the object's content as it was put, or ``None`` if there is none."""

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        """Write the object whole, or leave it as it was; visible to every later `get` once this returns."""

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        """Delete the objects; missing ones count as deleted. Return the error of each that is left, or raise one."""

    def list(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[str], None]:
        """Yield the names that start with ``prefix`` (which ends in ``/``), pages of at most `delete_limit`."""

    async def aclose(self) -> None:
        """Release connections. The store may be used again afterwards, and opens them anew."""


@contextlib.contextmanager
def deadline(seconds: float, what: str, attempts: object = "") -> Iterator[None]:
    """Cancel the block after ``seconds``.

    Parameters:
        seconds: from entering the block on.
        what: the operation, for the error.
        attempts: what the error says of the attempts made by then; nothing if empty.

    Raises:
        StoreTimeoutError: the block took longer.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        said = f" ({text})" if (text := str(attempts)) else ""
        raise StoreTimeoutError(
            f"could not {what} within {seconds:g} s{said}: check that the store answers from this host, "
            "or raise [async_state] timeout"
        )
