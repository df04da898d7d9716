"""JSON values <-> JSON text <-> bytes.

The bytes describe themselves: gzip and zstd start with magic numbers that no UTF-8 text starts with.
So no setting has to match between the process that wrote an object and the one that reads it.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Final

from async_state.errors import ConfigurationError, CorruptObjectError, InvalidValueError

#: The most that one value may take as text, in bytes; also what bounds a decompression bomb.
MAX_TEXT_BYTES: Final = 256 * 1024 * 1024

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_GZIP_WBITS: Final = 16 + zlib.MAX_WBITS


def dump(value: Any) -> str:
    """Return ``value`` as JSON text, from which `load` makes an equal value.

    Raises:
        InvalidValueError: ``value`` has no such text: it holds NaN or an infinity (which Airflow's API refuses
            too), an object that JSON does not know, or one that JSON would turn into another (a tuple, a key that
            is no string); or it is ``None``, which Airflow does not store.
    """
    if value is None:
        raise InvalidValueError("a state value must not be None; delete the key instead")
    try:
        text = json.dumps(value, allow_nan=False)
        faithful = json.loads(text) == value
    except (TypeError, ValueError, RecursionError) as e:
        # The message of json names types and positions only, but for a float it quotes the value: leave it out.
        reason = "it holds NaN or an infinity" if "JSON compliant" in str(e) else str(e)
        raise InvalidValueError(f"the state value is not JSON: {reason}") from None
    if not faithful:
        raise InvalidValueError(
            "the state value would change on its way through JSON; store lists instead of tuples, and only "
            "strings as keys of a dict"
        )
    return text


def load(text: str) -> Any:
    """Return the value of the JSON text ``text``.

    Raises:
        CorruptObjectError: ``text`` is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # The original message quotes nothing, but its exception carries the whole document.
        raise CorruptObjectError(f"not valid JSON ({len(text)} characters)") from None


def encode(text: str, compression: str) -> tuple[bytes, str]:
    """Return ``text`` as bytes, and the Content-Encoding to store them under (empty: none).

    Parameters:
        text: any text; ``set`` stores what Airflow hands over byte for byte.
        compression: ``none``, ``gzip`` or ``zstd``.

    Raises:
        InvalidValueError: ``text`` takes more than 256 MiB.
        ConfigurationError: ``zstd``, and the package ``zstandard`` is not installed.
    """
    body = text.encode("utf-8", "surrogatepass")
    if len(body) > MAX_TEXT_BYTES:
        raise InvalidValueError(f"a state value may take {MAX_TEXT_BYTES} bytes of JSON at the most, not {len(body)}")
    if compression == "gzip":
        packer = zlib.compressobj(wbits=_GZIP_WBITS)
        return packer.compress(body) + packer.flush(), "gzip"
    if compression == "zstd":
        return _zstandard().ZstdCompressor(write_checksum=True).compress(body), "zstd"
    return body, ""


def decode(body: bytes) -> str:
    """Return the text that `encode` made ``body`` of, whatever the compression was.

    Raises:
        CorruptObjectError: ``body`` is truncated, damaged, not UTF-8, or would take more than 256 MiB.
        ConfigurationError: ``body`` is zstd, and the package ``zstandard`` is not installed.
    """
    if body.startswith(_GZIP_MAGIC):
        body = _gunzip(body)
    elif body.startswith(_ZSTD_MAGIC):
        body = _unzstd(body)
    try:
        return body.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as e:
        raise CorruptObjectError(f"not UTF-8 text at byte {e.start}") from None


def zstd_available() -> bool:
    """Tell whether the extra ``zstd`` is installed, without importing it."""
    import importlib.util

    return importlib.util.find_spec("zstandard") is not None


def _gunzip(body: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=_GZIP_WBITS)
    try:
        text = unpacker.decompress(body, MAX_TEXT_BYTES)
    except zlib.error as e:
        raise CorruptObjectError(f"damaged gzip data: {e}") from None
    if unpacker.unconsumed_tail:
        raise CorruptObjectError(f"gzip data of more than {MAX_TEXT_BYTES} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise CorruptObjectError("truncated gzip data, or more than one gzip stream")
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


async def adump(value: Any) -> str:
    return dump(value)


async def aload(text: str) -> Any:
    return load(text)
