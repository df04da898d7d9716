"""JSON values <-> JSON text <-> bytes.

The bytes describe themselves: gzip and zstd start with magic numbers with which no UTF-8 text starts. No setting has
to be the same in the process that writes an object and in the one that reads it. A text that expires has a stamp in
front of it, which starts with a byte that UTF-8 never has.

Each function has a coroutine that does not stall the event loop on which it is awaited, however large the value is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import time
import zlib
from collections.abc import Generator, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from async_state import chunked_json, threads
from async_state.errors import ConfigurationError, CorruptObjectError, InvalidValueError

T = TypeVar("T")


class Stored(NamedTuple):
    """What an object holds.

    Attributes:
        text: The text as it was written.
        expires_at: The time, with a time zone, from which on it counts as deleted; ``None`` for never.
    """

    text: str
    expires_at: datetime | None = None

    @property
    def has_expired(self) -> bool:
        """Whether it counts as deleted by now, by this machine's clock."""
        return self.expires_at is not None and self.expires_at <= datetime.now(timezone.utc)


#: The most bytes that one value may take as text. It also bounds what compressed data is expanded to.
MAX_TEXT_BYTES: Final = 256 * 1024 * 1024
#: The most bytes that a store reads for one object. Text that can't be compressed grows by less than that.
MAX_BODY_BYTES: Final = MAX_TEXT_BYTES + MAX_TEXT_BYTES // 256
#: How deep lists and dicts may be nested, on every thread and every version of Python.
MAX_DEPTH: Final = chunked_json.MAX_DEPTH

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_GZIP_WBITS: Final = 16 + zlib.MAX_WBITS
#: Each byte as four characters of JSON's whitespace.
_WHITESPACE: Final = ["".join(characters) for characters in itertools.product(" \t\n\r", repeat=4)]
#: Goes in front of a text that expires, and is compressed with it.
_STAMP: Final = re.compile(rb"\xffexpires ([0-9T:.+-]{1,48})\n")

#: How long a coroutine works before other tasks of its loop run. Of many at once, each takes that long in turn.
_SLICE_SECONDS: Final = 0.002
#: From this size on, a thread encodes and decodes; below, that takes less time than the thread's start.
_THREAD_BYTES: Final = 64 * 1024


def dump(value: Any) -> str:
    """Return the JSON text of a value, from which `load` makes an equal value.

    Args:
        value: Any JSON value but ``None``, with lists and dicts nested at most `MAX_DEPTH` levels deep.

    Returns:
        What ``json.dumps(value, allow_nan=False)`` returns; it is ASCII.

    Raises:
        InvalidValueError: The value has no such text: it is ``None``, which Airflow does not store; it holds NaN or
            an infinity (which Airflow's API refuses too), or an object that JSON does not know or would turn into
            another one (a tuple, a key that is no string); it is nested too deep; or it is larger than 256 MiB.
    """
    with _invalid_value():
        return _finish(_encoding(value))


async def adump(value: Any) -> str:
    """Return the JSON text of a value, in steps between which other tasks run. As `dump`.

    The value must not be changed meanwhile.
    """
    with _invalid_value():
        return await _afinish(_encoding(value))


def load(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        CorruptObjectError: The text is not JSON, or its lists and dicts are nested more than `MAX_DEPTH` levels deep.
    """
    with _corrupt_text(text):
        return _finish(chunked_json.decoding(text))


async def aload(text: str) -> Any:
    """Return the value of a JSON text, in steps between which other tasks run. As `load`."""
    with _corrupt_text(text):
        return await _afinish(chunked_json.decoding(text))


def ending() -> str:
    """Return 16 characters of whitespace, drawn at random for each write, with which a value's JSON text may end.

    A store names a content by its ETag, and takes an equal content that was written later for the same. Without an
    ending, whoever deletes an orphan on condition of its ETag would delete the same value that a task has set again
    meanwhile. JSON allows whitespace behind a value, so every reader takes it.
    """
    # The kernel's, as forked processes would draw the same from a generator that they inherit.
    return "".join([_WHITESPACE[byte] for byte in os.urandom(4)])


def encode(text: str, compression: str, *, ending: str = "", expires_at: datetime | None = None) -> tuple[bytes, str]:
    """Return a text as bytes, and the Content-Encoding under which they are stored (empty: none).

    Args:
        text: Any text; ``set`` stores byte for byte what Airflow hands over.
        compression: ``none``, ``gzip`` or ``zstd``.
        ending: Follows the text.
        expires_at: As in `Stored`. Without a time zone it is UTC, as Airflow has it.

    Raises:
        InvalidValueError: The text takes more than 256 MiB, or ``expires_at`` is no ``datetime``.
        ConfigurationError: The compression is ``zstd``, and the package ``zstandard`` is not installed.
    """
    body = _stamp(expires_at) + text.encode("utf-8", "surrogatepass") + ending.encode()
    if len(body) > MAX_TEXT_BYTES:
        raise InvalidValueError(f"a state value may take at most {MAX_TEXT_BYTES} bytes of JSON, not {len(body)}")
    if compression == "gzip":
        packer = zlib.compressobj(wbits=_GZIP_WBITS)
        return packer.compress(body) + packer.flush(), "gzip"
    if compression == "zstd":
        return _zstandard().ZstdCompressor(write_checksum=True).compress(body), "zstd"
    return body, ""


async def aencode(
    text: str, compression: str, *, ending: str = "", expires_at: datetime | None = None
) -> tuple[bytes, str]:
    """Return a text as bytes, and their Content-Encoding; a large text is encoded on a thread. As `encode`."""
    if len(text) < _THREAD_BYTES:
        return encode(text, compression, ending=ending, expires_at=expires_at)
    return await threads.call(partial(encode, text, compression, ending=ending, expires_at=expires_at))


def decode(body: bytes) -> str:
    """Return the text of which `encode` made the bytes, whether it has expired or not. As `unpack`."""
    return unpack(body).text


def unpack(body: bytes) -> Stored:
    """Return the text of which `encode` made the bytes, whatever the compression was, and when it expires.

    Raises:
        CorruptObjectError: The bytes are truncated, damaged or not UTF-8, or the text takes more than 256 MiB.
        ConfigurationError: The compression is zstd, and the package ``zstandard`` is not installed.
    """
    if encoding := content_encoding(body):
        body = _gunzip(body) if encoding == "gzip" else _unzstd(body)
    if len(body) > MAX_TEXT_BYTES:
        raise CorruptObjectError(f"text of more than {MAX_TEXT_BYTES} bytes")
    expires_at, start = _expiry(body)
    try:
        return Stored(body[start:].decode("utf-8", "surrogatepass"), expires_at)
    except UnicodeDecodeError as e:
        raise CorruptObjectError(f"not UTF-8 text at byte {start + e.start}") from None


async def adecode(body: bytes) -> str:
    """Return the text of the bytes, whether it has expired or not. As `aunpack`."""
    return (await aunpack(body)).text


async def aunpack(body: bytes) -> Stored:
    """Return what the bytes hold; a large body is unpacked on a thread. As `unpack`."""
    if len(body) < _THREAD_BYTES and not content_encoding(body):
        return unpack(body)
    return await threads.call(unpack, body)


def content_encoding(body: bytes) -> str:
    """Return the Content-Encoding of what `encode` made, of which the first four bytes are enough."""
    if body.startswith(_GZIP_MAGIC):
        return "gzip"
    return "zstd" if body.startswith(_ZSTD_MAGIC) else ""


def zstd_available() -> bool:
    """Tell whether the extra ``zstd`` is installed, without importing it."""
    import importlib.util

    return importlib.util.find_spec("zstandard") is not None


def _stamp(expires_at: datetime | None) -> bytes:
    if expires_at is None:
        return b""
    if not isinstance(expires_at, datetime):
        raise InvalidValueError(f"expires_at must be a datetime or None, not {type(expires_at).__name__}")
    aware = expires_at if expires_at.utcoffset() is not None else expires_at.replace(tzinfo=timezone.utc)
    return b"\xffexpires %s\n" % aware.isoformat().encode()


def _expiry(body: bytes) -> tuple[datetime | None, int]:
    """Return when the text expires, and where it begins."""
    stamp = _STAMP.match(body)
    if stamp is None:
        return None, 0
    with contextlib.suppress(ValueError):
        expires_at = datetime.fromisoformat(stamp[1].decode())
        if expires_at.utcoffset() is not None:
            return expires_at, stamp.end()
    raise CorruptObjectError("a damaged time of expiry")


def _encoding(value: Any) -> chunked_json.Encoding:
    if value is None:
        raise InvalidValueError("a state value must not be None; delete the key instead")
    return chunked_json.encoding(value, MAX_TEXT_BYTES)


def _finish(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as e:
            result: T = e.value
            return result


async def _afinish(steps: Generator[None, None, T]) -> T:
    pause_at = time.perf_counter() + _SLICE_SECONDS
    while True:
        try:
            next(steps)
        except StopIteration as e:
            result: T = e.value
            return result
        if time.perf_counter() >= pause_at:
            # It needs no running loop: a blocking caller goes on at once.
            await asyncio.sleep(0)
            pause_at = time.perf_counter() + _SLICE_SECONDS


@contextlib.contextmanager
def _invalid_value() -> Iterator[None]:
    try:
        yield
    except InvalidValueError:
        raise
    except chunked_json.UnfaithfulError:
        raise InvalidValueError(
            "the state value would change on its way through JSON; store lists instead of tuples, and only "
            "strings as keys of a dict"
        ) from None
    except (TypeError, ValueError) as e:
        # The message of json names types and positions only, but for a float it quotes the value: leave it out.
        reason = "it holds NaN or an infinity" if "JSON compliant" in str(e) else str(e)
        raise InvalidValueError(f"the state value is not JSON: {reason}") from None


@contextlib.contextmanager
def _corrupt_text(text: str) -> Iterator[None]:
    try:
        yield
    except chunked_json.TooDeepError as e:
        raise CorruptObjectError(f"{e} ({len(text)} characters)") from None
    except ValueError:
        # The original message quotes nothing, but its exception carries the whole document.
        raise CorruptObjectError(f"not valid JSON ({len(text)} characters)") from None


def _gunzip(body: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=_GZIP_WBITS)
    try:
        text = unpacker.decompress(body, MAX_TEXT_BYTES)
        # The end of the data may not have been reached, although all of the text has.
        more = unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error as e:
        raise CorruptObjectError(f"damaged gzip data: {e}") from None
    if more:
        raise CorruptObjectError(f"gzip data of more than {MAX_TEXT_BYTES} bytes")
    if not unpacker.eof:
        raise CorruptObjectError("truncated gzip data")
    if unpacker.unused_data:
        raise CorruptObjectError("more than one gzip stream, or other data after it")
    return text


def _unzstd(body: bytes) -> bytes:
    zstandard = _zstandard()
    try:
        # `encode` always writes the size into the frame's header; -1 is a frame without one.
        if not 0 <= zstandard.frame_content_size(body) <= MAX_TEXT_BYTES:
            raise CorruptObjectError(f"zstd data of more than {MAX_TEXT_BYTES} bytes, or of unknown size")
        text: bytes = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise CorruptObjectError(f"damaged zstd data: {e}") from None
    return text


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigurationError(
            "zstd needs the package zstandard: pip install 'airflow-async-state[zstd]' wherever state is written "
            "or read, or set [async_state] compression to gzip or none"
        ) from None
    return zstandard
