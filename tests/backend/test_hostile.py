"""What strangers may write: references, keys, identifiers, stored objects and options.

A reference comes from the database, which REST and UI users may write to; an object, from whoever may write to the
bucket; keys and identifiers, from DAGs. None of them may make this package read or delete elsewhere, take one state
for another, use unbounded memory, or write lines of its own into a log.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import unicodedata
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote

import pytest
import zstandard
from airflow.sdk.state import AssetScope, TaskScope
from hypothesis import example, given, settings
from hypothesis import strategies as st
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from async_state import AsyncStateBackend, Settings, connections
from async_state.errors import AsyncStateError, ConfigurationError, CorruptObjectError, StoreError, UntrustedRefError
from async_state.keys import Side, make_ref, object_name, scope_prefix, split_ref
from async_state.stores import open_store
from async_state.testing import Answer, FakeS3, Request
from tests.fuzzing import FUZZED

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


def fits_one_line(text: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


# References.

REGION_SCOPE = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=0, region_id=uuid.UUID(int=7))
NAMES = [
    object_name(scope, key, Side.WORKER)
    for scope, key in [
        (TaskScope("dag", "manual__2026-01-01T00:00:00+00:00", "task"), "k"),
        (TaskScope("..", "a/b", "é" * 250, 3), "../x"),
        (AssetScope(name="orders"), "k" * 512),
        (AssetScope(uri="s3://bucket/orders"), "k"),
        (AssetScope(asset_id=7), "k"),
        (REGION_SCOPE, "k"),
    ]
]
TOKENS = ["..", "/../", "/./", "//", "/", "\\", "..\\", "%2e%2e", "%2E%2E", "%252e%252e", "%2f", "%2F", "%5c", "%00"]
TOKENS += ["\0", "\n", "\r\n", "\t", " ", "+", "\u2025", "\uff0e\uff0e", "\uff0f", "\u2215", "\u202e", "e\u0301"]
TOKENS += ["%C0%AE%C0%AE", "%EF%BC%8F", "%FF", "%", "%u002e", "?versionId=1", "#fragment", ";x", "@", "user:pw@", "~"]
TOKENS += ["server", "worker", "secret", "-1", "00", "1", "\u0661", "v1", "v2", "@00000000-0000-0000-0000-000000000000"]
FRONTS = ["s3://state", "S3://state", "s3:///state", "s3:/state", "s3://other", "s3://state@other", "s3://other/state"]
FRONTS += ["file://", "FILE://", "file:", "file://localhost", "http://127.0.0.1", "memory://state", "state", "/", ""]


def twist(ref: str, how: str, at: int, token: str, front: str) -> str:
    segments = ref.split("/")
    at_segment, at = at % len(segments), at % (len(ref) + 1)
    if how == "insert":
        return ref[:at] + token + ref[at:]
    if how == "replace":
        return ref[:at] + token + ref[at + len(token) :]
    if how == "cut":
        return ref[:at] + ref[at + 1 :]
    if how == "segment":
        segments[at_segment] = token
    elif how == "encode":
        segments[at_segment] = "".join(f"%{byte:02X}" for byte in segments[at_segment].encode("utf-8", "replace"))
    elif how == "quote":
        segments[at_segment] = quote(segments[at_segment], errors="replace")
    elif how == "unquote":
        segments[at_segment] = unquote(segments[at_segment])
    elif how == "case":
        segments[at_segment] = segments[at_segment].swapcase()
    elif how == "double":
        segments.insert(at_segment, segments[at_segment])
    elif how == "front":
        return front + "/" + ref.partition("://")[2].partition("/")[2]
    return "/".join(segments)


hows = ["insert", "replace", "cut", "segment", "encode", "quote", "unquote", "case", "double", "front"]
twists = st.tuples(
    st.sampled_from(hows), st.integers(0, 400), st.sampled_from(TOKENS) | st.text(max_size=3), st.sampled_from(FRONTS)
)


def twisted(ref: str, steps: list[tuple[str, int, str, str]]) -> str:
    for step in steps:
        ref = twist(ref, *step)
    return ref


@st.composite
def hostile_refs(draw: st.DrawFn, bases: list[str]) -> str:
    ref = f"{draw(st.sampled_from(bases))}/{draw(st.sampled_from(NAMES))}"
    return twisted(ref, draw(st.lists(twists, min_size=1, max_size=3)))


def written_by(name: str) -> str:
    """Return the name that the backend gives to what ``name`` says that it is."""
    kind, *ids, _, key = (unquote(segment, errors="strict") for segment in name.split("/")[1:])
    if kind == "asset":
        asset = {"id": {"asset_id": int(ids[1])}} if ids[0] == "id" else {ids[0]: {ids[0]: ids[1]}}
        return object_name(AssetScope(**asset[ids[0]]), key, Side.WORKER)
    # An identifier's own @ is encoded.
    task, _, region = name.split("/")[4].partition("@")
    region_id = uuid.UUID(region) if region else uuid.UUID(int=0)
    scope = SimpleNamespace(
        dag_id=ids[0], run_id=ids[1], task_id=unquote(task), map_index=int(ids[3]), region_id=region_id
    )
    return object_name(scope, key, Side.WORKER)


BASE = "s3://state/trusted"


@settings(FUZZED, max_examples=500)
@given(hostile_refs([BASE]))
@example(f"{BASE}/v1/asset/id/007/worker/k")
@example(f"{BASE}/v1/task/d/r/t/-1/worker/%2E%2E")
@example(f"{BASE}/v1/task/d/r/t@00000000-0000-0000-0000-000000000000/-1/worker/k")
def test_a_ref_is_accepted_only_if_the_backend_would_write_it(ref: str) -> None:
    try:
        base, name = split_ref(ref, [BASE])
    except UntrustedRefError:
        return
    assert base == BASE
    if "~" not in name:
        assert written_by(name) == name


# Of a name that is cut, each character is encoded alone, and so a dot is.
@pytest.mark.parametrize("kept", ["%6B" * 54, "k" * 162 + "%FF" + "k", "k." * 81])
def test_a_cut_name_is_as_the_backend_cuts_it(kept: str) -> None:
    with pytest.raises(UntrustedRefError):
        split_ref(f"{BASE}/v1/asset/name/a/worker/{kept}~{'0' * 32}", [BASE])


@settings(FUZZED, max_examples=100)
@given(data=st.data())
def test_no_ref_reaches_a_file_elsewhere(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "root"
    state, earlier = root / "state", root / "earlier"
    # What a ref might be after: beside, above and below the trusted directories, and the other side.
    elsewhere = [root / "secret", root / "state2" / NAMES[0], root / NAMES[0], state / "secret", tmp_path / "secret"]
    elsewhere += [state / NAMES[0].replace("worker", "server"), state / "v1" / "secret"]
    for path in elsewhere:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('"secret"')
    ref = data.draw(hostile_refs([state.as_uri(), earlier.as_uri()]))
    with AsyncStateBackend(Settings(url=state.as_uri(), trusted_urls=(earlier.as_uri(),))) as backend:
        for use in (backend.deserialize_task_state_store_from_ref, backend.purge_asset_state):
            try:
                assert use(ref) != "secret"
            except (UntrustedRefError, CorruptObjectError) as e:
                assert fits_one_line(str(e))  # noqa: PT017
    assert [path.read_text() for path in elsewhere] == ['"secret"'] * len(elsewhere)


@settings(FUZZED, max_examples=100)
@given(data=st.data())
def test_no_ref_reaches_another_place_in_s3(moto: FakeS3, s3_settings: SettingsOf, data: st.DataObject) -> None:
    bases = [BASE, "s3://state/earlier"]
    ref = data.draw(hostile_refs(bases))
    moto.requests.clear()
    with AsyncStateBackend(s3_settings(url=BASE, trusted_urls=(bases[1],))) as backend:
        for use in (backend.deserialize_task_state_store_from_ref, backend.purge_asset_state):
            try:
                use(ref)
            except (UntrustedRefError, CorruptObjectError) as e:
                assert fits_one_line(str(e))  # noqa: PT017
    for request in moto.requests:
        # The ref itself, and nothing that is put together from it.
        assert f"s3:/{unquote(request.path)}" == ref
        assert request.query in ("", "x-id=GetObject", "x-id=DeleteObject")
        assert {unquote(unquote(part)) for part in request.path.split("/")} & {".", ".."} <= {".."}
        assert not {".", ".."} & set(unquote(request.path).split("/"))


# Keys and identifiers.

#: Made of pieces of which others are made too, once they are encoded, joined or cut.
pieces = st.lists(
    st.sampled_from(["a", "A", "/", "%2F", "%", "~", "@", ".", "..", "_", "-1", "worker", "é", "e\u0301", "\n", "\0"])
    | st.just("0" * 32)
    | st.just("k" * 100),
    min_size=1,
    max_size=4,
).map("".join)
state_keys = pieces.filter(lambda key: key not in (".", ".."))
task_scopes = st.builds(TaskScope, pieces, pieces, pieces, st.sampled_from([-1, 0, 1, 10]))
asset_scopes = st.builds(AssetScope, name=pieces) | st.builds(AssetScope, uri=pieces)
scopes = task_scopes | asset_scopes | st.builds(AssetScope, asset_id=st.integers(0, 20))


@settings(FUZZED, max_examples=40)
@given(st.lists(st.tuples(scopes, state_keys), min_size=10, max_size=30))
def test_look_alikes_never_share_an_object_or_a_directory(places: list[tuple[Any, str]]) -> None:
    owner_of: dict[str, str] = {}
    for scope, key in places:
        for side in Side:
            name = object_name(scope, key, side)
            assert owner_of.setdefault(name, repr((scope, key))) == repr((scope, key))
    prefixes = {scope_prefix(scope): scope for scope, _ in places}
    for name in owner_of:
        # A file can't be a directory too, and a clear takes its own.
        assert not any(other.startswith(f"{name}/") for other in owner_of)
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1


@settings(FUZZED, max_examples=30)
@given(task_scopes, state_keys)
def test_look_alikes_come_back_from_a_directory(tmp_path: Path, scope: TaskScope, key: str) -> None:
    neighbours = {k: f"{key}{k}"[-512:] for k in ("a", "/", "~", "%2F", ".")}
    with AsyncStateBackend(Settings(url=tmp_path.as_uri())) as backend:
        refs = {
            k: backend.serialize_task_state_store_to_ref(value=k, key=k, scope=scope)
            for k in {key, *neighbours.values()} - {".", ".."}
        }
        assert {k: backend.deserialize_task_state_store_from_ref(ref) for k, ref in refs.items()} == {
            k: k for k in refs
        }
        backend.clear(scope)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Stored objects.

SCOPE = AssetScope(name="hostile")


def gzip_of(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(body) + packer.flush()


def zstd_of(body: bytes) -> bytes:
    found: bytes = zstandard.ZstdCompressor().compress(body)
    return found


bodies = st.one_of(
    st.binary(max_size=50),
    st.sampled_from([b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf", b"\x50\x2a\x4d\x18"]).flatmap(
        lambda magic: st.binary(max_size=50).map(lambda rest: magic + rest)
    ),
    st.binary(max_size=50).map(gzip_of),
    st.binary(max_size=50).map(zstd_of),
    st.lists(st.sampled_from(["[", "{", '"', "1", "e999", ",", ":", "nul", "NaN", "\\u", "\0"]), max_size=20).map(
        lambda parts: "".join(parts).encode()
    ),
)


@settings(FUZZED, max_examples=100)
@given(bodies)
@example(b"[" * 200_000)
@example(b"1" * 10_000)
@example(zstd_of(b"[" * 200_000))
@example(b'"' + "\U0001f4a5".encode()[:3] + b'"')
def test_any_object_is_a_value_or_corrupt(tmp_path: Path, body: bytes) -> None:
    name = object_name(SCOPE, "k", Side.WORKER)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(body)
    ref = make_ref(tmp_path.as_uri(), name)
    with AsyncStateBackend(Settings(url=tmp_path.as_uri())) as backend:
        try:
            value = backend.deserialize_asset_state_store_from_ref(ref)
        except CorruptObjectError as e:
            assert ref in str(e)  # noqa: PT017
            assert fits_one_line(str(e))  # noqa: PT017
        else:
            json.dumps(value)
        # Whatever it is, the next set repairs it.
        assert backend.serialize_asset_state_store_to_ref(value="repaired", key="k", scope=SCOPE) == ref
        assert backend.deserialize_asset_state_store_from_ref(ref) == "repaired"


@pytest.mark.parametrize(
    "body",
    [
        gzip_of(gzip_of(b"1")),
        zstd_of(zstd_of(b"1")),
        gzip_of(zstd_of(b"1")),
        zstd_of(gzip_of(b"1")),
        gzip_of(b"1") * 2,
        zstd_of(b"1") * 2,
        gzip_of(b"1") + zstd_of(b"1"),
        gzip_of(b"1") + b"1",
        b"1" + gzip_of(b"1"),
        b"[" * 980 + b"]" * 980,
    ],
)
def test_what_this_package_never_writes_is_corrupt(tmp_path: Path, body: bytes) -> None:
    name = object_name(SCOPE, "k", Side.WORKER)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(body)
    ref = make_ref(tmp_path.as_uri(), name)
    with AsyncStateBackend(Settings(url=tmp_path.as_uri())) as backend, pytest.raises(CorruptObjectError, match=ref):
        backend.deserialize_asset_state_store_from_ref(ref)


@pytest.mark.parametrize("ref", [None, 1, ["s3://state/k"], {"a": 1}])
def test_a_ref_that_is_no_string_is_refused(tmp_path: Path, ref: Any) -> None:
    with AsyncStateBackend(Settings(url=tmp_path.as_uri())) as backend:
        for use in (
            backend.deserialize_task_state_store_from_ref,
            backend.deserialize_asset_state_store_from_ref,
            backend.purge_task_state,
            backend.purge_asset_state,
        ):
            with pytest.raises(UntrustedRefError, match="must be a string"):
                use(ref)


MIB = 1024 * 1024


def gzip_bomb(mib: int) -> bytes:
    """Return gzip data of so many MiB, made of one piece that is repeated."""
    packer = zlib.compressobj(wbits=-15)
    piece = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip_of(b"")[:10] + piece * mib + b"\x03\0" + bytes(8)


def zstd_bomb(mib: int, *, told: bool) -> bytes:
    """Return a zstd frame of so many MiB, whose header tells its size or not."""
    packer = zstandard.ZstdCompressor(write_content_size=told).compressobj(size=mib * MIB if told else -1)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(mib)) + packer.flush()


def lying_zstd_bomb(mib: int) -> bytes:
    """Return a zstd frame of so many MiB that says it has 100 bytes."""
    body = zstd_bomb(mib, told=True)
    size = (mib * MIB).to_bytes(4, "little")
    assert size in body[:14]
    return body[:14].replace(size, (100).to_bytes(4, "little")) + body[14:]


def test_bombs_are_refused_with_bounded_memory(tmp_path: Path) -> None:
    bombs = {
        "gzip": gzip_bomb(16_384),
        "zstd": zstd_bomb(1024, told=True),
        "zstd of unknown size": zstd_bomb(300, told=False),
        "zstd that lies": lying_zstd_bomb(300),
        "zstd that claims": b"\x28\xb5\x2f\xfd\xa0" + (256 * MIB).to_bytes(4, "little") + b"\x01\0\0",
        "not compressed": b"",
    }
    for key, body in bombs.items():
        path = tmp_path / object_name(SCOPE, key, Side.WORKER)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    # A hole takes no space on the disk.
    os.truncate(tmp_path / object_name(SCOPE, "not compressed", Side.WORKER), 2048 * MIB)
    program = """
import json, resource, sys, time
# Whatever is wrong, this machine must not suffer.
resource.setrlimit(resource.RLIMIT_AS, (3 * 1024**3,) * 2)
from async_state import AsyncStateBackend, Settings
from async_state.errors import CorruptObjectError
backend = AsyncStateBackend(Settings(url=sys.argv[1], timeout=600))
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = used()
for ref in sys.argv[2:]:
    try:
        backend.deserialize_asset_state_store_from_ref(ref)
    except CorruptObjectError as e:
        assert ref.removeprefix("file://") in str(e)
        print(used() - before)
"""
    refs = [make_ref(tmp_path.as_uri(), object_name(SCOPE, key, Side.WORKER)) for key in bombs]
    command = [sys.executable, "-W", "error", "-c", program, tmp_path.as_uri(), *refs]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    used = [int(line) for line in done.stdout.split()]
    assert len(used) == len(bombs)
    # The limit itself, and a copy while zlib puts its output together.
    assert max(used) < 3 * 256


# Options.

OPTIONS = [option.name for option in dataclasses.fields(Settings)]
words = [
    "s3://",
    "file://",
    "memory://",
    "http://",
    "https://",
    "[",
    "]",
    "::1",
    "@",
    ":",
    "%00",
    "\0",
    "..",
    "/",
    "//",
]
words += [
    "?",
    "#",
    "bucket",
    "99999",
    "\u2100",
    "\uff0f",
    "-1",
    "0",
    "1",
    "1e999",
    "nan",
    "\u0661",
    ",",
    " ",
    "\n",
    "none",
]
words += ["gzip", "zstd", "True", "aws:kms", "\x1b[31m", "\u2028", "9" * 5000]
option_texts = st.text(max_size=20) | st.lists(st.sampled_from(words), max_size=5).map("".join)


class Conf:
    """An Airflow ``conf`` with these options and no others."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options

    def get(self, section: str, option: str, fallback: Any) -> Any:
        return self._options.get(option, fallback)


@settings(FUZZED, max_examples=300)
@given(st.dictionaries(st.sampled_from(OPTIONS), option_texts, min_size=1, max_size=3))
@example({"url": "s3://[x"})
@example({"url": "memory://["})
@example({"url": "s3://buck\u2100et/x"})
@example({"trusted_urls": "s3://]"})
def test_any_option_is_usable_or_named(options: dict[str, str]) -> None:
    try:
        made = Settings.from_conf(Conf(options))
    except ConfigurationError as e:
        found = re.match(r"\[async_state\] ([a-z_]+): ", str(e))
        assert found
        assert found[1] in options
        assert fits_one_line(str(e))  # noqa: PT017
    else:
        for base in made.bases:
            open_store(base, made, connections.empty(base))
        assert fits_one_line(repr(AsyncStateBackend(made)))


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("url", "file:///state/a\0b"),
        ("url", "file:///state/a%00b"),
        ("endpoint_url", "http://["),
        ("endpoint_url", "http://host:99999"),
        ("endpoint_url", "http://host:port"),
        ("endpoint_url", "http://host/ \n"),
        ("endpoint_url", "http://user:hunter2@host"),
        ("endpoint_url", "ftp://user:hunter2@host"),
    ],
)
def test_what_no_operation_could_use_is_refused_at_once(option: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\[async_state\] {option}: ") as caught:
        Settings(**{option: text})  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
    assert fits_one_line(str(caught.value))


@settings(FUZZED, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30))
def test_any_directory_works(tmp_path: Path, name: str) -> None:
    name = name.replace("..", "").replace("%00", "")
    try:
        made = Settings(url=f"{tmp_path.as_uri()}/x{name}")
    except ConfigurationError:
        return
    with AsyncStateBackend(made) as backend:
        ref = backend.serialize_asset_state_store_to_ref(value=name, key="k", scope=SCOPE)
        assert backend.deserialize_asset_state_store_from_ref(ref) == name
        backend.clear(SCOPE)
        assert backend.deserialize_asset_state_store_from_ref(ref) is None


# Logs.

forging = st.text(
    st.sampled_from("ab/%\n\r\t\0\x1b\x85\u2028\u2029\x7f") | st.characters(categories=["Cc"]), min_size=1, max_size=20
)


@settings(FUZZED, max_examples=50)
@given(forging, forging)
def test_keys_and_identifiers_write_no_lines_of_their_own(
    opened: BackendOf, tmp_path: Path, caplog: pytest.LogCaptureFixture, identifier: str, key: str
) -> None:
    # A file where a directory must be: every operation fails.
    (tmp_path / "file").touch()
    scope, asset = TaskScope(identifier, identifier, identifier), AssetScope(name=identifier)
    caplog.clear()
    with (
        AsyncStateBackend(Settings(url=f"{tmp_path.as_uri()}/file/state")) as failing,
        AsyncStateBackend(Settings(url=tmp_path.as_uri())) as empty,
    ):
        ref = make_ref(tmp_path.as_uri(), object_name(asset, key, Side.WORKER))
        assert empty.deserialize_asset_state_store_from_ref(ref) is None
        operations: list[Callable[[], object]] = [
            lambda: failing.get(scope, key),
            lambda: failing.set(scope, key, "1"),
            lambda: failing.delete(scope, key),
            lambda: failing.serialize_asset_state_store_to_ref(value=1, key=key, scope=asset),
            lambda: failing.set(scope, key + "k" * 512, "1"),
            lambda: failing.set(TaskScope(identifier, identifier, "\ud800"), key, "1"),
            lambda: failing.deserialize_asset_state_store_from_ref(key),
            lambda: failing.deserialize_asset_state_store_from_ref(f"s3://{key}"),
            lambda: failing.purge_task_state(f"file:{key}"),
        ]
        for operation in operations:
            with pytest.raises(AsyncStateError) as caught:
                operation()
            assert fits_one_line(str(caught.value))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("async_state")]
    assert ours
    assert all(map(fits_one_line, ours))


def test_a_store_writes_no_lines_of_its_own(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, caplog: pytest.LogCaptureFixture
) -> None:
    backend = opened(s3_settings(url="s3://state/forging"))
    scope = AssetScope(name="forging")
    # Into the server's own state, since it takes no such key over HTTP.
    name = f"forging/{scope_prefix(scope)}worker/k\nERROR forged"
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("state", name, b"")

    def intercept(request: Request) -> Answer | None:
        if request.method == "DELETE":
            return "403 Forbidden", [], b"<Error><Code>AccessDenied</Code><Message>no\nERROR forged</Message></Error>"
        return None

    moto.intercept = intercept
    with pytest.raises(StoreError) as caught:
        backend.clear(scope)
    assert str(caught.value).count("forged") > 1
    assert fits_one_line(str(caught.value))
    assert all(fits_one_line(record.getMessage()) for record in caplog.records if record.levelno >= logging.WARNING)


def test_a_clear_takes_what_a_killed_process_had_begun_to_write(tmp_path: Path, asset: AssetScope) -> None:
    with AsyncStateBackend(Settings(url=tmp_path.as_uri())) as backend:
        backend.serialize_asset_state_store_to_ref(value="whole", key="k", scope=asset)
        (directory,) = {path.parent for path in tmp_path.rglob("*") if path.is_file()}
        (directory / ".~killed").write_text('"unfinished')
        backend.clear(asset)
    assert list(tmp_path.iterdir()) == []
