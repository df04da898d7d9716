"""Coming from common-io: what its own backend has written is read and purged; the next `set` writes the new form."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from airflow.providers.common.io.state_store import backend as common_io
from airflow.sdk.execution_time.context import TaskStateStoreAccessor
from airflow.sdk.execution_time.supervisor import set_supervisor_comms
from airflow.sdk.state import AssetScope, TaskScope

from async_state import AsyncStateBackend, Settings, StateStore, compat, connections, iothread
from async_state.common_io import CommonIo
from async_state.errors import (
    ConfigurationError,
    CorruptObjectError,
    MissingObjectError,
    StoreError,
    UntrustedRefError,
)
from async_state.stores import open_store
from async_state.sweep.references import References
from async_state.testing import FakeS3
from tests import servers
from tests.backend.test_updates import Supervisor

COMPRESSIONS = ["", "gzip", "bz2", "zip", "xz", "lzma", "zstd"]
VALUES = [0, "", False, [], {"a": [1, "ä\u2028\U0001f600"]}, "x" * 100_000, 1e300, 10**30]
KEYS = ["job_id", "a/b", "../x", "k.gz", "k.zip.bz2", "k%2F", "ключ", " ", "*?[", "k~", "a&b=c;d", "region=1", "k\n"]

Old = common_io.StateStoreObjectStorageBackend


def configure(monkeypatch: pytest.MonkeyPatch, path: str, url: str, compression: str = "", **options: str) -> None:
    """Set common-io's options and ours, in a process that has read neither."""
    given = {f"ASYNC_STATE__{name.upper()}": value for name, value in {"url": url, **options}.items()}
    given["COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH"] = path
    given["COMMON_IO__STATE_STORE_OBJECTSTORAGE_COMPRESSION"] = compression
    for name, value in given.items():
        monkeypatch.setenv(f"AIRFLOW__{name}", value)
    for read_once in (common_io._get_base_path, common_io._get_compression, common_io._get_threshold):
        read_once.cache_clear()


@pytest.fixture(autouse=True)
def _no_readers_of_lineage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow, as this suite loads it, has no folder of plugins, in which common-io's writes look for some."""
    monkeypatch.setattr("airflow.sdk.plugins_manager.get_hook_lineage_readers_plugins", list)


@pytest.fixture
def made() -> Iterator[Callable[[], AsyncStateBackend]]:
    """Make backends as Airflow does, and close them in the end."""
    backends: list[AsyncStateBackend] = []

    def make() -> AsyncStateBackend:
        backends.append(AsyncStateBackend())
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()


Made = Callable[[], AsyncStateBackend]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"file://{tmp_path}/task state/%20"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "new").as_uri()


@pytest.fixture
def mapped() -> TaskScope:
    """A task with the characters that real ids have."""
    return TaskScope(f"dag é {uuid.uuid4().hex}", "manual__2026-01-01T00:00:00+00:00", "group.t/x y", 10)


def files(path: str) -> list[str]:
    """The objects below common-io's path."""
    root = Path(urlsplit(path).path)
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())


def write(scope: Any, key: str, value: Any) -> str:
    """Have common-io's backend store a value, and return its reference."""
    if isinstance(scope, TaskScope):
        return Old().serialize_task_state_store_to_ref(value=value, key=key, scope=scope)
    return Old().serialize_asset_state_store_to_ref(value=value, key=key, scope=scope)


def read(backend: AsyncStateBackend, ref: str) -> Any:
    found = backend.deserialize_task_state_store_from_ref(ref)
    assert backend.deserialize_asset_state_store_from_ref(ref) == found or found != found
    return found


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_values_in_each_compression(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, mapped: TaskScope, compression: str
) -> None:
    configure(monkeypatch, path, url, compression)
    refs = [write(mapped, f"k{i}", value) for i, value in enumerate(VALUES)]
    # Whatever common-io's compression is by now.
    configure(monkeypatch, path, url, "")
    backend = made()
    assert [read(backend, ref) for ref in refs] == VALUES
    assert math.isnan(read(backend, write(mapped, "nan", math.nan)))


@pytest.mark.parametrize("compression", ["", "gzip"])
def test_keys_and_scopes_of_any_form(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, mapped: TaskScope, compression: str
) -> None:
    """Also the keys that common-io can't read itself, as their endings look compressed."""
    configure(monkeypatch, path, url, compression)
    scopes = [mapped, TaskScope("assets", "r", "t"), AssetScope(name="a/b"), AssetScope(uri="s3://bucket/x y%20")]
    refs = [write(scope, key, key) for scope in scopes for key in KEYS]
    backend = made()
    assert [read(backend, ref) for ref in refs] == KEYS * len(scopes)
    backend.purge_many(refs)
    assert files(path) == []
    assert [read(backend, ref) for ref in refs] == [None] * len(refs)


@pytest.mark.anyio
async def test_coroutines_on_a_loop(monkeypatch: pytest.MonkeyPatch, path: str, url: str, mapped: TaskScope) -> None:
    configure(monkeypatch, path, url, "zstd")
    refs = [write(mapped, f"k{i}", value) for i, value in enumerate(VALUES)]
    async with AsyncStateBackend() as backend:
        assert [await backend.adeserialize_task_state_store_from_ref(ref) for ref in refs] == VALUES
        await backend.apurge_task_state(refs[0])
        assert await backend.adeserialize_task_state_store_from_ref(refs[0]) is None
        await backend.adelete(mapped, "k1")
        await backend.aclear(mapped)
    assert files(path) == []


def test_moving_over_is_one_option(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope
) -> None:
    configure(monkeypatch, path, url)
    old = write(task, "k", "old")
    backend = made()
    new = backend.serialize_task_state_store_to_ref(value="new", key="k", scope=task)
    assert new.startswith(f"{url}/v1/task/")
    assert (read(backend, old), read(backend, new)) == ("old", "new")
    # The old object, to which no row refers any more, goes with the key.
    backend.delete(task, "k")
    assert (read(backend, old), read(backend, new)) == (None, None)
    assert files(path) == []


def test_rows_go_over_with_their_next_write(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope, tmp_path: Path
) -> None:
    """What tasks see: the old value first, then what they make of it."""
    configure(monkeypatch, path, url)
    supervisor = Supervisor(tmp_path / "rows")
    for key in ("set", "updated"):
        supervisor.row(key).write_text(json.dumps({compat.REF_MARKER: write(task, key, 1)}))
    backend = made()
    monkeypatch.setattr(compat, "worker_backend", lambda: backend)
    with set_supervisor_comms(supervisor):
        state = StateStore(TaskStateStoreAccessor(uuid.UUID(int=1), task))
        assert state.get_many(["set", "updated"]) == {"set": 1, "updated": 1}
        state.set("set", 2)
        assert state.update("updated", lambda value: value + 1) == 2
        assert state.get_many(["set", "updated"]) == {"set": 2, "updated": 2}
        rows = [json.loads(supervisor.row(key).read_text()) for key in ("set", "updated")]
        assert all(row[compat.REF_MARKER].startswith(f"{url}/v1/task/") for row in rows)
        # What nobody refers to any more goes with its key.
        assert len(files(path)) == 2
        state.clear()
    assert files(path) == []


@pytest.mark.parametrize("base", ["file:///state", "s3://old_aws@bucket/state", "gs://bucket"])
def test_a_snapshot_has_the_references_that_are_left(base: str, url: str, task: TaskScope) -> None:
    """By which somebody sees that all have gone over."""
    ref = f"{base}/{task.dag_id}/r/t/-1/k"
    row = json.dumps({compat.REF_MARKER: ref})
    assert References(Settings(url=url).bases).find(row) == {ref}


def test_values_that_common_io_left_inline(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope
) -> None:
    configure(monkeypatch, path, url)
    monkeypatch.setenv("AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_THRESHOLD", "100")
    assert read(made(), write(task, "k", {"small": 1})) == {"small": 1}


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_delete_takes_its_key_alone(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope, compression: str
) -> None:
    """Without compression, the key ``k.gz`` has the name that ``k`` has with gzip."""
    configure(monkeypatch, path, url, compression)
    refs = {key: write(task, key, key) for key in ("k", "k.gz", "k.zst", "kk", "k/1")}
    backend = made()
    for deleted in ("k", "k.gz"):
        backend.delete(task, deleted)
        backend.delete(task, deleted)
        del refs[deleted]
        assert {key: read(backend, ref) for key, ref in refs.items()} == {key: key for key in refs}
        assert len(files(path)) == len(refs)


def test_delete_finds_what_was_stored_before_compression_was_set(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope
) -> None:
    configure(monkeypatch, path, url)
    write(task, "k", "plain")
    ref = write(task, "k.gz", "may be another key's")
    configure(monkeypatch, path, url, "gzip")
    backend = made()
    backend.delete(task, "k.gz")
    # Its name is that of the key ``k`` with gzip, so nobody can tell whose it is.
    assert read(backend, ref) == "may be another key's"
    monkeypatch.setenv("AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_COMPRESSION", "zstd")
    made().delete(task, "k")
    assert read(backend, ref) == "may be another key's"
    assert len(files(path)) == 1


def test_clear_takes_its_scope_alone(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope
) -> None:
    configure(monkeypatch, path, url, "gzip")

    def index(i: int) -> TaskScope:
        return TaskScope(task.dag_id, task.run_id, task.task_id, i)

    # A DAG of that name is what common-io's own clear of the asset deletes as well.
    scopes = [task, index(1), index(10), AssetScope(name="a"), TaskScope("assets", "a", "t"), AssetScope(uri="u")]
    refs = [[write(scope, key, key) for key in ("k1", "k2")] for scope in scopes]
    backend = made()

    def left() -> list[bool]:
        return [all(read(backend, ref) is not None for ref in refs_) for refs_ in refs]

    backend.clear(AssetScope(name="a"))
    assert left() == [True, True, True, False, True, True]
    backend.clear(index(1))
    assert left() == [True, False, True, False, True, True]
    backend.clear(task, all_map_indices=True)
    assert left() == [False, False, False, False, True, True]
    backend.clear(TaskScope("assets", "a", "t"))
    assert left() == [False, False, False, False, False, True]
    assert len(files(path)) == 2


def test_one_path_for_both(monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str) -> None:
    """With ``url`` at common-io's path, and ids that make names of one scheme look like prefixes of the other."""
    configure(monkeypatch, f"file://{urlsplit(url).path}", url)
    dag = TaskScope("v1", "task", "d")
    old = write(dag, "k", "old")
    backend = made()
    ours = TaskScope("d", "-1", "t")
    new = backend.serialize_task_state_store_to_ref(value="new", key="k", scope=ours)
    assert (read(backend, old), read(backend, new)) == ("old", "new")
    backend.clear(dag)
    backend.clear(TaskScope("v1", "task", "d"), all_map_indices=True)
    assert (read(backend, old), read(backend, new)) == (None, "new")
    old = write(dag, "k", "old")
    backend.clear(ours, all_map_indices=True)
    assert (read(backend, old), read(backend, new)) == ("old", None)


def test_the_api_servers_scopes_are_not_common_ios(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str
) -> None:
    """The asset with the id 7 is another one than the asset with the name "7"."""
    configure(monkeypatch, path, url)
    ref = write(AssetScope(name="7"), "k", "kept")
    backend = made()
    backend.delete(AssetScope(asset_id=7), "k")
    backend.clear(AssetScope(asset_id=7))
    assert read(backend, ref) == "kept"


def test_scopes_and_keys_that_common_io_could_not_store(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str
) -> None:
    """Its names are longer than a file system takes, or it refuses them; our own are fine."""
    configure(monkeypatch, path, url)
    backend = made()
    for scope in (TaskScope("д" * 250, "r", "t"), TaskScope("..", "r", "t"), AssetScope(name=".")):
        for key in ("k", "к" * 512):
            ref = backend.serialize_task_state_store_to_ref(value=1, key=key, scope=scope)  # type: ignore[arg-type]
            backend.delete(scope, key)
            backend.clear(scope)
            assert read(backend, ref) is None


def test_an_object_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope, caplog: pytest.LogCaptureFixture
) -> None:
    configure(monkeypatch, path, url)
    ref = write(task, "k", 1)
    backend = made()
    backend.purge_task_state(ref)
    assert backend.deserialize_task_state_store_from_ref(ref) is None
    assert ref in caplog.text
    configure(monkeypatch, path, url, on_missing="raise")
    with pytest.raises(MissingObjectError, match="on_missing"):
        made().deserialize_task_state_store_from_ref(ref)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_object(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope, compression: str
) -> None:
    configure(monkeypatch, path, url, compression)
    ref = write(task, "k", [str(uuid.uuid4()) for _ in range(100)])
    file = Path(urlsplit(path).path) / files(path)[0]
    body = file.read_bytes()
    half = len(body) // 2
    bodies = [body[:half], b"\0" + body[1:], b""]
    # common-io's zstd data has no checksum.
    if compression != "zstd":
        bodies.append(body[:half] + b"\xff\x00" * 8 + body[half + 16 :])
    for damaged in bodies:
        file.write_bytes(damaged)
        with pytest.raises(CorruptObjectError, match="the object file://"):
            made().deserialize_task_state_store_from_ref(ref)


REFS = {
    "another name": "{path}/d/r/t/-1",
    "deeper": "{path}/d/r/t/-1/k/k",
    "no map index": "{path}/d/r/t/x/k",
    "a map index with a zero": "{path}/d/r/t/01/k",
    "up": "{path}/d/r/t/-1/..",
    "up in between": "{path}/d/../t/-1/k",
    "up to a neighbour": "{path}/../new/t/-1/k",
    "encoded up": "{path}/d/%2E%2E/t/-1/k",
    "encoded without need": "{path}/d/r/t/-1/%6B",
    "lower-case encoding": "{path}/d/r%2b/t/-1/k",
    "not encoded": "{path}/d/r+/t/-1/k",
    "a broken encoding": "{path}/d/r%/t/-1/k",
    "no UTF-8": "{path}/d/r%FF/t/-1/k",
    "a space": "{path}/d/r t/t/-1/k",
    "an empty segment": "{path}/d//t/-1/k",
    "a slash at the end": "{path}/d/r/t/-1/k/",
    "no region": "{path}/d/r/region=1/t/-1/k",
    "a long key": "{path}/d/r/t/-1/" + "k" * 600,
    "a sibling": "{path}2/d/r/t/-1/k",
    "another store": "s3://state/d/r/t/-1/k",
    "a query": "{path}/d/r/t/-1/k?versionId=1",
    "a line break": "{path}/d/r/t/-1/k\n",
    "bytes of another encoding": "{path}/d/r/t/-1/\udc80",
}


@pytest.mark.parametrize("form", REFS)
def test_a_forged_reference_is_refused(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope, form: str
) -> None:
    configure(monkeypatch, path, url)
    kept = write(task, "k", "kept")
    backend = made()
    ref = REFS[form].format(path=path)
    with pytest.raises(UntrustedRefError):
        backend.deserialize_task_state_store_from_ref(ref)
    with pytest.raises(UntrustedRefError):
        backend.purge_many([kept, ref])
    assert read(backend, kept) == "kept"


def test_a_forged_reference_follows_no_link(
    monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, tmp_path: Path
) -> None:
    configure(monkeypatch, path, url)
    ref = write(TaskScope("d", "r", "t"), "k", 1)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "k").write_text("1")
    Path(urlsplit(path).path, "d", "r", "t", "7").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        made().deserialize_task_state_store_from_ref(ref.replace("/-1/", "/7/"))


def test_without_the_option(monkeypatch: pytest.MonkeyPatch, made: Made, path: str, url: str, task: TaskScope) -> None:
    configure(monkeypatch, path, url)
    ref = write(task, "k", 1)
    monkeypatch.delenv("AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH")
    backend = made()
    assert backend._common_io is None
    with pytest.raises(UntrustedRefError):
        backend.deserialize_task_state_store_from_ref(ref)
    with pytest.raises(UntrustedRefError):
        backend.purge_task_state(ref)
    backend.clear(task)
    assert len(files(path)) == 1


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("hdfs://hdfs_default@namenode/state", "can't be read or deleted by this package"),
        ("abfs://container@account.dfs.core.windows.net/state", "must name a container"),
        ("s3://bucket//twice", "two slashes"),
        ("s3://bucket/?", "query"),
    ],
)
def test_a_path_that_no_store_of_ours_can_reach(
    monkeypatch: pytest.MonkeyPatch, made: Made, url: str, task: TaskScope, base: str, reason: str
) -> None:
    """New state is not affected; an old reference says what to do."""
    configure(monkeypatch, base, url)
    backend = made()
    new = backend.serialize_task_state_store_to_ref(value=1, key="k", scope=task)
    for operation in (backend.deserialize_task_state_store_from_ref, backend.purge_task_state):
        with pytest.raises(ConfigurationError, match=rf"\[common.io\] state_store_objectstorage_path: .*{reason}"):
            operation(f"{base}/d/r/t/-1/k")
    backend.delete(task, "k")
    backend.clear(task)
    assert read(backend, new) is None


def test_a_path_that_is_no_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """common-io's backend writes there, and can't read it again: there is nothing to take over."""
    configure(monkeypatch, "/var/lib/state", url)
    with pytest.raises(ConfigurationError, match=r"\[common.io\] state_store_objectstorage_path: must be a URL"):
        AsyncStateBackend()


def test_common_io_is_never_imported(monkeypatch: pytest.MonkeyPatch, path: str, url: str, task: TaskScope) -> None:
    configure(monkeypatch, path, url, "gzip")
    ref = write(task, "k", 1)
    program = f"""
import sys
from async_state import AsyncStateBackend
backend = AsyncStateBackend()
assert backend.deserialize_task_state_store_from_ref({ref!r}) == 1
backend.purge_task_state({ref!r})
assert not [name for name in sys.modules if name.startswith("airflow.providers.common.io.state_store")]
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, env={**os.environ, "_AIRFLOW__AS_LIBRARY": "1"}
    )


def test_regions_of_airflow_3_4(path: str, tmp_path: Path) -> None:
    """This SDK has no regions: names as common-io 1.11 writes them there, which its provider info describes."""
    old = CommonIo(path, "", Settings(url=(tmp_path / "new").as_uri()))
    region = uuid.uuid4()
    name = f"d/r/region={region}/t/-1/k"
    assert old.name_of(f"{path}/{name}") == name
    # A task of that name is encoded.
    assert old.name_of(f"{path}/d/r/region%3D1/-1/k") == "d/r/region%3D1/-1/k"


@pytest.fixture
def s3fs(monkeypatch: pytest.MonkeyPatch, moto: FakeS3) -> FakeS3:
    """moto's server for common-io's own backend, which needs s3fs."""
    pytest.importorskip("s3fs", reason="common-io writes to S3 by s3fs: apache-airflow-providers-amazon[s3fs]")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.url)
    return moto


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_s3(
    monkeypatch: pytest.MonkeyPatch, made: Made, s3fs: FakeS3, mapped: TaskScope, asset: AssetScope, compression: str
) -> None:
    base = f"s3://state/{uuid.uuid4().hex}"
    configure(monkeypatch, base, "s3://state/new", compression, endpoint_url=s3fs.url)
    refs = [write(scope, key, key) for scope in (mapped, asset) for key in KEYS]
    backend = made()
    assert [read(backend, ref) for ref in refs] == KEYS * 2
    backend.clear(asset)
    backend.delete(mapped, KEYS[0])
    expected = [None, *KEYS[1:], *[None] * len(KEYS)]
    assert [read(backend, ref) for ref in refs] == expected
    backend.purge_many(refs)
    assert [read(backend, ref) for ref in refs] == [None] * len(refs)


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_s3_with_a_connection_in_the_url(
    monkeypatch: pytest.MonkeyPatch, made: Made, s3fs: FakeS3, mapped: TaskScope, compression: str
) -> None:
    """Its credentials, region and endpoint count there, and ours count everywhere else."""
    old = {"conn_type": "aws", "login": "AKIAOLD", "password": "old secret".replace(" ", "-")}
    extra = {"endpoint_url": s3fs.url, "region_name": "us-west-1"}
    monkeypatch.setenv("AIRFLOW_CONN_OLD_AWS", json.dumps({**old, "extra": extra}))
    prefix = uuid.uuid4().hex
    configure(monkeypatch, f"s3://old_aws@state/{prefix}/", "s3://state/new", compression, endpoint_url=s3fs.url)
    ref = write(mapped, "k", "old")
    purged = write(mapped, "purged", "old")
    assert ref.startswith(f"s3://old_aws@state/{prefix}/")
    backend = made()
    s3fs.requests.clear()
    assert read(backend, ref) == "old"
    new = backend.serialize_task_state_store_to_ref(value="new", key="k", scope=mapped)
    assert read(backend, new) == "new"
    used = {(request.method, request.path.split("/")[2]): request.headers["authorization"] for request in s3fs.requests}
    assert "Credential=AKIAOLD/" in used["GET", prefix]
    assert "/us-west-1/" in used["GET", prefix]
    assert f"Credential={servers.ACCESS_KEY}/" in used["GET", "new"]
    # Whatever connection a reference names, by which anybody who writes one would choose credentials.
    s3fs.requests.clear()
    for name in ("", "another@", "aws:default@"):
        assert read(backend, ref.replace("old_aws@", name)) == "old"
    assert all("Credential=AKIAOLD/" in request.headers["authorization"] for request in s3fs.requests)
    backend.purge_task_state(purged)
    assert (read(backend, purged), read(backend, ref)) == (None, "old")
    backend.clear(mapped)
    assert (read(backend, ref), read(backend, new)) == (None, None)


@pytest.mark.parametrize(("scheme", "ours"), [("gs", "gs"), ("gcs", "gs"), ("abfs", "az")])
def test_clouds(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    made: Made,
    mapped: TaskScope,
    url: str,
    scheme: str,
    ours: str,
) -> None:
    """Objects as common-io's backend names and fills them by gcsfs and adlfs, which are not here."""
    if ours == "gs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("gcs_server").url)
    else:
        string = request.getfixturevalue("azure_server").connection_string
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", string)
    place = f"state/{uuid.uuid4().hex}"
    prefix = "/".join(quote(part, safe="") for part in (mapped.dag_id, mapped.run_id, mapped.task_id, "10"))
    names = [f"{prefix}/{quote(key, safe='')}" for key in ("a/b", "k", "~x")]

    async def put() -> None:
        store = open_store(f"{ours}://{place}", Settings(url=f"{ours}://{place}"), connections.empty(f"{ours}://"))
        for name in names:
            await store.put(name, b'"old"', "", timeout=20)
        await store.aclose()

    iothread.run(iothread.arun, put)
    # An endpoint of S3, which is not theirs.
    configure(monkeypatch, f"{scheme}://{place}", url, endpoint_url="http://127.0.0.1:9")
    refs = [f"{scheme}://{place}/{name}" for name in names]
    backend = made()
    assert [read(backend, ref) for ref in refs] == ["old"] * 3
    backend.delete(mapped, "a/b")
    backend.purge_task_state(refs[1])
    assert [read(backend, ref) for ref in refs] == [None, None, "old"]
    backend.clear(mapped)
    assert read(backend, refs[2]) is None


@pytest.mark.parametrize("extra", [{}, {"role_arn": "arn:aws:iam::1:role/r"}])
def test_a_connection_that_cant_be_used(
    monkeypatch: pytest.MonkeyPatch, made: Made, url: str, extra: dict[str, Any]
) -> None:
    """It is missing, or has what this package does not take."""
    configure(monkeypatch, "s3://old_aws@state/old", url)
    if extra:
        monkeypatch.setenv("AIRFLOW_CONN_OLD_AWS", json.dumps({"conn_type": "aws", "extra": extra}))
    with pytest.raises(ConfigurationError, match=r"'old_aws'.*\[common.io\] state_store"):
        made().deserialize_task_state_store_from_ref("s3://old_aws@state/old/d/r/t/-1/k")


def test_a_bucket_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, made: Made, moto: FakeS3, url: str, task: TaskScope
) -> None:
    """Where the old bucket can't be reached any more, delete and clear say so: the option can go."""
    configure(monkeypatch, "s3://gone/old", url, endpoint_url=moto.url)
    backend = made()
    operations: list[Callable[[], None]] = [lambda: backend.delete(task, "k"), lambda: backend.clear(task)]
    for operation in operations:
        with pytest.raises(StoreError, match=r"s3://gone/old.*state_store_objectstorage_path"):
            operation()


def test_unquoted_names_are_those_of_the_scope(
    monkeypatch: pytest.MonkeyPatch, path: str, url: str, mapped: TaskScope
) -> None:
    """What the tests above take from common-io has its form: the ids are encoded once."""
    configure(monkeypatch, path, url)
    ref = write(mapped, "a/b", 1)
    segments = ref.removeprefix(f"{path}/").split("/")
    assert [unquote(segment) for segment in segments] == [
        mapped.dag_id,
        mapped.run_id,
        mapped.task_id,
        "10",
        "a/b",
    ]
