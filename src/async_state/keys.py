"""Scope and key <-> object name <-> reference.

An object's name is readable and says what it holds::

    v1/task/<dag>/<run>/<task>[@<region>]/<map index>/<side>/<key>
    v1/asset/<name|uri|id>/<identifier>/<side>/<key>

Each identifier is one percent-encoded segment. An identifier that is too long keeps its beginning and ends in ``~`` and
a hash of the whole, so that a name never exceeds the stores' limit of 1,024 bytes. ``~`` and ``@`` are always encoded
inside an identifier, so that no identifier can forge such an ending.

A reference is the base URL and the name. It is untrusted input: a name is taken from a reference only if it has exactly
the form that this module writes.
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote
from uuid import UUID

from async_state.errors import InvalidKeyError, InvalidScopeError, UntrustedRefError

#: The limit of S3 and of Google Cloud Storage on an object key, in bytes of UTF-8. Azure's is 1,024 characters.
MAX_OBJECT_KEY_BYTES: Final = 1024
#: Airflow's limit on a state key, in characters.
MAX_KEY_LENGTH: Final = 512

_HASH_LENGTH: Final = 32
_ID_BYTES: Final = 160
_KEY_BYTES: Final = 200
_UNESCAPED: Final = r"[A-Za-z0-9_.:-]"
_SEGMENT: Final = re.compile(rf"(?:{_UNESCAPED}|%[0-9A-F]{{2}})+(?:~[0-9a-f]{{{_HASH_LENGTH}}})?")
_REGION: Final = re.compile(r"@(?!0{8}-0{4}-0{4}-0{4}-0{12})[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_ASSET_ID: Final = re.compile(r"0|[1-9][0-9]*")
_MAP_INDEX: Final = re.compile(r"-1|0|[1-9][0-9]{0,9}")

#: The longest name that can follow a base URL: three identifiers, region, map index, side and key.
MAX_NAME_BYTES: Final = len("v1/task//////") + 3 * _ID_BYTES + 37 + 10 + len("worker") + _KEY_BYTES

#: Names of what is put there to try a store out, and deleted at once. No state has such names.
PROBES: Final = "v1/check/"


class Side(str, enum.Enum):
    """Which side of the API server writes an object. Both may use one URL: neither overwrites the other's objects."""

    #: A worker's serialize hook writes a value, to which a reference in the database points.
    WORKER = "worker"
    #: The API server's ``set`` writes the database row itself.
    SERVER = "server"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What an object's name says, decoded.

    Where an identifier or a key is so long that the name has its beginning and a hash only, it is that beginning, ``~``
    and the hash.

    Attributes:
        side: Which side of the API server has written the object.
        key: The state key.
        dag_id: Empty for an asset, like the other three.
        run_id: The run.
        task_id: The task.
        map_index: ``None`` for an asset, and -1 for a task that is not mapped.
        region: The task's region id, or an empty string.
        asset_by: What names the asset: ``name``, ``uri`` or ``id``; empty for a task.
        asset: The asset's name, URI or id.
    """

    side: Side
    key: str
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int | None = None
    region: str = ""
    asset_by: str = ""
    asset: str = ""


def probe_name() -> str:
    """Return a name below `PROBES` that nobody else uses."""
    return f"{PROBES}{secrets.token_hex(16)}"


def check_key(key: object) -> str:
    """Return a state key that Airflow can address, in its URLs as well as in its database.

    Raises:
        InvalidKeyError: The key is not a string of 1 to 512 characters of valid unicode, or it is ``.`` or ``..``,
            which collapse in Airflow's URLs: ``delete(".")`` would delete the whole scope.
    """
    if not isinstance(key, str):
        raise InvalidKeyError(f"a state key must be a string, not {type(key).__name__}")
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidKeyError(f"a state key must have 1 to {MAX_KEY_LENGTH} characters, not {len(key)}")
    if key in (".", ".."):
        raise InvalidKeyError(f"the state key {key!r} can't be used: it collapses in Airflow's URLs; choose another")
    try:
        key.encode()
    except UnicodeEncodeError as e:
        raise InvalidKeyError(f"a state key must be valid unicode: {e.reason} at position {e.start}") from None
    return key


def scope_prefix(scope: Any, *, all_map_indices: bool = False) -> str:
    """Return the prefix, ending in ``/``, of every object of a scope, on both sides.

    Args:
        scope: Any Airflow ``TaskScope`` or ``AssetScope``. It is recognized by its fields, because the API server has
            its own copies of the SDK's classes. An asset is named by its id, else its name, else its URI.
        all_map_indices: Whether to include every map index of the task (in its region). It has no effect on an asset.

    Raises:
        InvalidScopeError: The scope is something else, or an identifier is empty or of the wrong type.
    """
    if hasattr(scope, "dag_id") and hasattr(scope, "run_id") and hasattr(scope, "task_id"):
        dag, run, task = (_id_segment(scope, field) for field in ("dag_id", "run_id", "task_id"))
        # task-sdk 1.4: part of the identity; the zero UUID is how it names what earlier releases stored.
        region = getattr(scope, "region_id", None)
        if isinstance(region, UUID) and region.int:
            task += f"@{region}"
        prefix = f"v1/task/{dag}/{run}/{task}/"
        return prefix if all_map_indices else f"{prefix}{_map_index(scope)}/"
    if hasattr(scope, "asset_id") and hasattr(scope, "name") and hasattr(scope, "uri"):
        if scope.asset_id is not None:
            return f"v1/asset/id/{_asset_id(scope)}/"
        kind = "name" if scope.name else "uri"
        return f"v1/asset/{kind}/{_id_segment(scope, kind)}/"
    raise InvalidScopeError(f"a scope must be a TaskScope or an AssetScope, not {type(scope).__name__}")


def object_name(scope: Any, key: str, side: Side) -> str:
    """Return the name, below any base URL, of the object for a key of a scope.

    It depends on the arguments alone: Airflow needs references to be deterministic.

    Raises:
        InvalidScopeError: As in `scope_prefix`.
        InvalidKeyError: As in `check_key`.
    """
    return f"{scope_prefix(scope)}{side.value}/{_segment(check_key(key), _KEY_BYTES)}"


def make_ref(base: str, name: str) -> str:
    """Return the reference to an object: its URL, which is the base URL and the name."""
    return f"{base}/{name}"


def is_ref(stored: str) -> bool:
    """Tell a reference (a URL) from inline JSON text, which never starts with a URL's scheme.

    Raises:
        UntrustedRefError: What is stored is no string. REST and UI users can store anything.
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", _check_ref(stored)) is not None


def split_ref(ref: str, bases: Iterable[str]) -> tuple[str, str]:
    """Return the base URL and the object name of a reference.

    Args:
        ref: Untrusted input. Nothing in it is normalized, so that no encoding of ``..`` gets through.
        bases: The base URLs below which objects may be read and deleted.

    Raises:
        UntrustedRefError: The reference is below none of the base URLs, or what follows the base URL is not exactly
            a name that a worker's hook writes, or the reference is no string.
    """
    ref = _check_ref(ref)
    bases = list(bases)
    for base in bases:
        name = ref.removeprefix(base + "/")
        if name != ref and (place := parse_name(name)) is not None and place.side is Side.WORKER:
            return base, name
    shown = ref if len(ref) <= MAX_OBJECT_KEY_BYTES else ref[:MAX_OBJECT_KEY_BYTES] + "..."
    raise UntrustedRefError(
        f"the reference {shown!r} is not an object below {' or '.join(bases)}. Most likely the component that wrote it "
        "has another [async_state] url than this one: set the same url for every component (scheduler, API server, "
        "triggerer, workers). If the url was changed, add the one under which the reference was written to "
        "[async_state] trusted_urls. If no component ever had such a url, the reference was not written by this "
        "package: find out who changed the state through the UI or the REST API."
    )


def parse_name(name: str) -> Place | None:
    """Return what an object's name says, or ``None`` if it is not exactly a name that this module writes."""
    match name.split("/"):
        case ["v1", "task", dag, run, task, index, "worker" | "server" as side, key]:
            region = _REGION.search(task)
            ids = [dag, run, task.removesuffix(region[0]) if region else task]
            if _MAP_INDEX.fullmatch(index) is None or not _are_segments(ids, key):
                return None
            return Place(
                side=Side(side),
                key=_decode(key),
                dag_id=_decode(ids[0]),
                run_id=_decode(ids[1]),
                task_id=_decode(ids[2]),
                map_index=int(index),
                region=region[0].removeprefix("@") if region else "",
            )
        case ["v1", "asset", "name" | "uri" | "id" as kind, identifier, "worker" | "server" as side, key]:
            if kind == "id" and _ASSET_ID.fullmatch(identifier) is None:
                return None
            if not _are_segments([identifier], key):
                return None
            return Place(side=Side(side), key=_decode(key), asset_by=kind, asset=_decode(identifier))
    return None


def _check_ref(ref: object) -> str:
    if not isinstance(ref, str):
        raise UntrustedRefError(
            f"a reference must be a string, not {type(ref).__name__}: it was not written by this package, but through "
            "the UI or the REST API. Delete the key, or set it anew"
        )
    return ref


def _are_segments(ids: Iterable[str], key: str) -> bool:
    # No key is "." or "..", though an identifier may be.
    if key in ("%2E", "%2E%2E"):
        return False
    return all(_is_segment(i, _ID_BYTES) for i in ids) and _is_segment(key, _KEY_BYTES)


def _decode(segment: str) -> str:
    kept, cut, digest = segment.partition("~")
    return unquote(kept) + cut + digest


def _is_segment(segment: str, limit: int) -> bool:
    if _SEGMENT.fullmatch(segment) is None or len(segment) > limit:
        return False
    kept, cut, _ = segment.partition("~")
    if cut and len(segment) <= limit - _CUT_SLACK:
        return False
    try:
        text = unquote(kept, errors="strict")
    except UnicodeDecodeError:
        return False
    return kept == (_encode_each(text) if cut else _encode(text))


#: How many bytes below the limit a shortened segment may stay, because no ``%XX`` and no character is cut in two.
_CUT_SLACK: Final = 12


# The same few Dags, runs and keys come again and again.
@lru_cache(maxsize=256)
def _segment(text: str, limit: int) -> str:
    encoded = _encode(text)
    if len(encoded) <= limit:
        return encoded
    digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]
    room = limit - _HASH_LENGTH - 1
    kept = ""
    for character in text:
        piece = _encode(character)
        if len(kept) + len(piece) > room:
            break
        kept += piece
    return f"{kept}~{digest}"


def _encode_each(text: str) -> str:
    """Encode as `_segment` does what it cuts: a dot, which is a whole identifier nowhere else, becomes ``%2E``."""
    return "".join(map(_encode, text))


def _encode(text: str) -> str:
    if text in (".", ".."):
        return text.replace(".", "%2E")
    return quote(text, safe=":").replace("~", "%7E")


def id_segment(identifier: str) -> str:
    """Return the segment of an object's name for an identifier: a Dag, a run, a task, or an asset's name or URI."""
    return _segment(identifier, _ID_BYTES)


def key_segment(key: str) -> str:
    """Return the segment of an object's name for a state key."""
    return _segment(key, _KEY_BYTES)


def _id_segment(scope: Any, field: str) -> str:
    value = getattr(scope, field)
    if not isinstance(value, str) or not value:
        raise InvalidScopeError(f"{type(scope).__name__}.{field} must be a non-empty string, not {value!r}")
    try:
        return _segment(value, _ID_BYTES)
    except UnicodeEncodeError as e:
        raise InvalidScopeError(f"{type(scope).__name__}.{field} must be valid unicode: {e.reason}") from None


def _asset_id(scope: Any) -> int:
    asset_id = scope.asset_id
    if not isinstance(asset_id, int) or isinstance(asset_id, bool) or asset_id < 0:
        raise InvalidScopeError(f"AssetScope.asset_id must be a non-negative integer, not {asset_id!r}")
    return asset_id


def _map_index(scope: Any) -> int:
    index = scope.map_index
    if not isinstance(index, int) or isinstance(index, bool) or _MAP_INDEX.fullmatch(str(index)) is None:
        raise InvalidScopeError(f"TaskScope.map_index must be -1 or a non-negative integer, not {index!r}")
    return index
