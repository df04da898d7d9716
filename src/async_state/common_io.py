"""What the state-store backend of Airflow's provider common-io has written: how it is read and deleted.

A deployment that moves over keeps its references to common-io's objects until their keys are set anew. Below
``[common.io] state_store_objectstorage_path``, in which each identifier is one percent-encoded segment, common-io
writes::

    <dag>/<run>[/region=<region>]/<task>/<map index>/<key>[.<compression>]
    assets/<name, else URI>/<key>[.<compression>]

A reference is untrusted input: a name is taken from it only if it has exactly this form. The connection in a reference
is ignored, since what anybody may write must not choose credentials: the one in the option counts.

common-io itself is never imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote
from uuid import UUID

from async_state import codec, iothread, threads, urls
from async_state.errors import ConfigurationError, CorruptObjectError, StoreError
from async_state.keys import MAX_KEY_LENGTH, MAX_OBJECT_KEY_BYTES
from async_state.objects import Objects, naming
from async_state.settings import Settings

log = logging.getLogger(__name__)

_SECTION: Final = "common.io"
_OPTION: Final = "state_store_objectstorage_path"
#: common-io's schemes, and the store of ours that reads their objects.
_SCHEMES: Final = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("abfs", "abfss"), "az"),
    **dict.fromkeys(("file", "local"), "file"),
}

_REGION: Final = re.compile(r"region=[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAP_INDEX: Final = re.compile(r"-1|0|[1-9][0-9]{0,9}")
#: The endings that common-io appends to a key, by the name of the compression.
_ENDINGS: Final = {
    "gzip": ".gz",
    "bz2": ".bz2",
    "zip": ".zip",
    "xz": ".xz",
    "lzma": ".lzma",
    "zstd": ".zst",
    "lz4": ".lz4",
}
#: The first bytes of JSON text as ``json.dumps`` writes it, with which no compressed data starts.
_JSON_STARTS: Final = tuple(bytes([byte]) for byte in b'{["-0123456789tfnNI')
#: The most bytes that a file system takes for one segment.
_MAX_SEGMENT_BYTES: Final = 255


class _Location(NamedTuple):
    """A URL as common-io reads it. Nothing in it is encoded.

    Attributes:
        scheme: In lower case.
        conn_id: The Airflow connection, or an empty string.
        path: The bucket and what follows it, or the path of a file; without a slash at the end.
    """

    scheme: str
    conn_id: str
    path: str

    @classmethod
    def of(cls, url: str) -> _Location | None:
        parts = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*):(?://)?([^/]*)(.*)", url, re.DOTALL)
        if parts is None:
            return None
        conn_id, _, bucket = parts[2].rpartition("@")
        return cls(parts[1].lower(), conn_id, (bucket + parts[3]).rstrip("/"))


class CommonIo:
    """The objects below common-io's path.

    Args:
        url: The path, as ``[common.io] state_store_objectstorage_path`` has it.
        compression: As ``[common.io] state_store_objectstorage_compression`` has it; empty for none.
        settings: How to reach the store. Where the path names a connection, credentials, account, region and endpoint
            are that connection's.

    Raises:
        ConfigurationError: The path is no URL.
    """

    def __init__(self, url: str, compression: str, settings: Settings) -> None:
        location = _Location.of(url)
        if location is None:
            raise _bad(f"must be a URL such as s3://conn_id@bucket/prefix, not {url!r}")
        self._location = location
        self._store = _SCHEMES.get(location.scheme, location.scheme)
        self._ending = _ENDINGS.get(compression, "")
        self._objects, self._unusable = self._open(settings)

    @classmethod
    def from_conf(cls, conf: Any, settings: Settings) -> CommonIo | None:
        """Read common-io's options from Airflow's configuration; return ``None`` where its path is not set."""
        url = (conf.get(_SECTION, _OPTION, fallback=None) or "").strip()
        if not url:
            return None
        compression = conf.get(_SECTION, "state_store_objectstorage_compression", fallback=None) or ""
        return cls(url, compression.strip(), settings)

    def name_of(self, ref: str) -> str | None:
        """Return the name of the object to which a reference of common-io's points, or ``None`` for any other one."""
        location = _Location.of(ref)
        if location is None or _SCHEMES.get(location.scheme, location.scheme) != self._store:
            return None
        name = location.path.removeprefix(f"{self._location.path}/")
        return name if name != location.path and ref.endswith(name) and _is_name(name) else None

    async def read(self, name: str) -> str | None:
        """Return the JSON text of an object, or ``None`` if there is none.

        Raises:
            ConfigurationError: This package has no store for the path, or its connection can't be used; or the package
                that decompresses the object is not installed.
            CorruptObjectError: The object is damaged.
            StoreError: The store failed.
        """
        objects = self._usable()
        with _explained():
            async with objects.operation("deserialize") as operation:
                body = await objects.fetch(objects.url, name, operation)
                if body is None:
                    operation.outcome = "missing"
        if body is None:
            return None
        with naming(f"{objects.url}/{name}"):
            if body.startswith(_JSON_STARTS):
                return codec.decode(body)
            unpack = partial(_unpack, name, body)
            return unpack() if iothread.blocks() else await threads.call(unpack)

    async def purge(self, names: Iterable[str]) -> None:
        """Delete the named objects. Errors as in `read`, and as in `Objects.purge_names`."""
        objects = self._usable()
        with _explained():
            async with objects.operation("purge") as operation:
                await objects.purge_names(objects.url, names, operation)

    async def delete(self, scope: Any, key: str) -> None:
        """Delete what common-io has stored for a key, if anything. Errors as in `purge`."""
        prefix = _prefix(scope)
        if prefix is None or self._unusable:
            return
        names = [name for ending in self._endings(key) if self._is_possible(name := f"{prefix}{_segment(key)}{ending}")]
        if names:
            await self.purge(names)

    async def clear(self, scope: Any, *, all_map_indices: bool) -> None:
        """Delete what common-io has stored in a scope, if anything. Errors as in `purge`."""
        prefix = _prefix(scope, all_map_indices=all_map_indices)
        if prefix is None or self._unusable or not self._is_possible(prefix):
            return
        objects = self._usable()
        of_asset = prefix.startswith("assets/") and not hasattr(scope, "dag_id")
        with _explained():
            async with objects.operation("clear") as operation:
                await objects.purge_prefix(prefix, operation, _is_asset_name if of_asset else _is_task_name)

    async def aclose(self) -> None:
        """Close the connections to the store."""
        if self._objects is not None:
            await self._objects.aclose()

    def _open(self, settings: Settings) -> tuple[Objects | None, str]:
        """Return the objects; or ``None``, and why they can't be reached."""
        location = self._location
        if self._store == "file":
            url = Path(location.path or "/").as_uri()
        elif self._store in _SCHEMES.values():
            url = f"{self._store}://{location.path}"
        else:
            return None, (
                f"what common-io has stored below {location.scheme}:// can't be read or deleted by this package. Read "
                "the values that are still needed with common-io's backend, and set their keys anew with this one"
            )
        changes: dict[str, Any] = {"url": url, "trusted_urls": (), "moved_urls": ()}
        ours = settings.url.partition("://")[0]
        # It is the address of the store at `settings.url`; beside a directory, of S3.
        if location.conn_id or (ours != self._store and (ours in ("s3", "gs", "az") or self._store != "s3")):
            changes |= {"endpoint_url": None}
        if location.conn_id and (option := urls.connection_option(url)):
            changes |= {option: location.conn_id, "region_name": None}
            if option == "wasb_conn_id":
                changes |= {"azure_account": None}
        try:
            return Objects(dataclasses.replace(settings, **changes)), ""
        except ConfigurationError as e:
            return None, f"its objects can't be reached: {e}"

    def _usable(self) -> Objects:
        if self._objects is None:
            raise _bad(self._unusable)
        return self._objects

    def _endings(self, key: str) -> list[str]:
        """Return the endings of the names that can only be this key's.

        Without compression, the key ``k.gz`` has the name that ``k`` has with gzip. The configured compression tells
        which of them a name with such an ending is.
        """
        if self._ending and not key.endswith(tuple(_ENDINGS.values())):
            return [self._ending, ""]
        return [self._ending]

    def _is_possible(self, name: str) -> bool:
        """Tell whether common-io could have written the name: it shortens none."""
        if self._store == "file":
            return all(len(segment) <= _MAX_SEGMENT_BYTES for segment in name.split("/"))
        prefix = self._location.path.partition("/")[2]
        return len(f"{prefix}/{name}") <= MAX_OBJECT_KEY_BYTES


def _is_name(name: str) -> bool:
    return _is_task_name(name) or _is_asset_name(name)


def _is_task_name(name: str) -> bool:
    match name.split("/"):
        case [dag, run, region, task, index, key] if _REGION.fullmatch(region):
            pass
        case [dag, run, task, index, key]:
            pass
        case _:
            return False
    return _MAP_INDEX.fullmatch(index) is not None and _are_segments(dag, run, task) and _is_key(key)


def _is_asset_name(name: str) -> bool:
    match name.split("/"):
        case ["assets", identifier, key]:
            return _are_segments(identifier) and _is_key(key)
    return False


def _is_key(segment: str) -> bool:
    longest = MAX_KEY_LENGTH + max(map(len, _ENDINGS.values()))
    return _are_segments(segment) and len(unquote(segment)) <= longest


def _are_segments(*segments: str) -> bool:
    return all(segment not in ("", ".", "..") and _encodes_itself(segment) for segment in segments)


def _encodes_itself(segment: str) -> bool:
    try:
        return quote(unquote(segment, errors="strict"), safe="") == segment
    except UnicodeError:
        return False


def _segment(text: str) -> str:
    return quote(text, safe="")


def _prefix(scope: Any, *, all_map_indices: bool = False) -> str | None:
    """Return the prefix of a scope's names, or ``None`` where common-io has written none.

    The scope is one that `keys.scope_prefix` accepts.
    """
    if hasattr(scope, "dag_id"):
        ids = [scope.dag_id, scope.run_id, scope.task_id]
        if not {".", ".."}.isdisjoint(ids):
            return None
        dag, run, task = map(_segment, ids)
        region = getattr(scope, "region_id", None)
        between = f"region={region}/" if isinstance(region, UUID) and region.int else ""
        prefix = f"{dag}/{run}/{between}{task}/"
        return prefix if all_map_indices else f"{prefix}{scope.map_index}/"
    identifier = scope.name or scope.uri
    # The API server, which names an asset by its id, can't use common-io's backend.
    if scope.asset_id is not None or not identifier or identifier in (".", ".."):
        return None
    return f"assets/{_segment(identifier)}/"


def _unpack(name: str, body: bytes) -> str:
    """Return the text of compressed bytes, by the ending of their object's name.

    fsspec decompresses, as it has compressed them for common-io.
    """
    from fsspec.compression import compr  # type: ignore[import-untyped]
    from fsspec.utils import compressions  # type: ignore[import-untyped]

    ending = name.rpartition(".")[2]
    open_: Callable[..., Any] | None = compr.get(compressions.get(ending, ""))
    if open_ is None:
        if f".{ending}" in _ENDINGS.values():
            raise ConfigurationError(
                f"[{_SECTION}] {_OPTION}: the object {name} is compressed with {ending}, which needs a "
                "package that is not installed here: install the one that common-io's backend used, as zstandard or lz4"
            )
        return codec.decode(body)
    try:
        with contextlib.closing(open_(io.BytesIO(body), mode="rb")) as file:
            text = _read(file)
    except CorruptObjectError:
        raise
    except Exception as e:  # each library has errors of its own
        raise CorruptObjectError(f"damaged {ending} data: {e}") from None
    return codec.decode(text)


def _read(file: Any) -> bytes:
    text = bytearray()
    while piece := file.read(1024 * 1024):
        text += piece
        if len(text) > codec.MAX_TEXT_BYTES:
            raise CorruptObjectError(f"compressed data of more than {codec.MAX_TEXT_BYTES} bytes")
    return bytes(text)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Add to an error of the block that common-io's option, and not one of ours, says where and how."""
    try:
        yield
    except (StoreError, ConfigurationError) as e:
        e.args = (
            f"{e} This is about what common-io has stored: [{_SECTION}] {_OPTION} says where, and by which connection; "
            "without a connection in it, the credentials of [async_state] count. Remove that option once no key refers "
            "to common-io's objects any more.",
        )
        raise


def _bad(what: str) -> ConfigurationError:
    return ConfigurationError(f"[{_SECTION}] {_OPTION}: {what}")
