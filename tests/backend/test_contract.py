"""What Airflow asks of a backend, on each kind of store and in each way of calling; then what is ours alone.

Rows on names alone are in test_keys.py.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.state import AssetScope, BaseStoreBackend, TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.errors import (
    InvalidKeyError,
    InvalidScopeError,
    InvalidValueError,
    MissingObjectError,
    UntrustedRefError,
)
from async_state.testing import FakeS3, SlowStoreContract, StateBackendContract, faults
from async_state.testing.contract import VALUES

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


class TestContract(StateBackendContract):
    """On memory, files, moto's S3 server and rclone's."""

    @pytest.fixture(autouse=True)
    def _store(self, store_settings: SettingsOf, request: pytest.FixtureRequest) -> None:
        if "many_threads" in request.node.name and "rclone" in request.node.name:
            pytest.skip("rclone's server writes in place: a read meanwhile has another's checksum")
        self.seen_by_other_processes = not store_settings().url.startswith("memory")

    @pytest.fixture
    def with_other_compression(self, store_settings: SettingsOf, opened: BackendOf) -> Callable[[], AsyncStateBackend]:
        return lambda: opened(store_settings(compression="gzip", compression_threshold=1))

    @pytest.fixture
    def with_other_base(self, store_settings: SettingsOf, opened: BackendOf) -> Callable[[], AsyncStateBackend]:
        url = store_settings().url
        return lambda: opened(store_settings(url=moved(url), trusted_urls=(url,)))


class TestContractWithInlineValues(StateBackendContract):
    """With values up to 1,000 bytes in the database, and larger ones in files."""

    # The other runs clear more than a page.
    many = 11

    @pytest.fixture
    def settings(self, tmp_path: Path) -> SettingsOf:
        url = (tmp_path / "state").as_uri()
        return lambda **options: Settings(**{"url": url, "inline_threshold": 1000, **options})

    @pytest.fixture
    def backend(self, settings: SettingsOf, opened: BackendOf) -> AsyncStateBackend:
        return opened(settings())

    @pytest.fixture
    def with_other_compression(self, settings: SettingsOf, opened: BackendOf) -> Callable[[], AsyncStateBackend]:
        return lambda: opened(settings(compression="gzip", compression_threshold=1))

    @pytest.fixture
    def with_other_base(self, settings: SettingsOf, opened: BackendOf) -> Callable[[], AsyncStateBackend]:
        url = settings().url
        return lambda: opened(settings(url=moved(url), trusted_urls=(url,)))

    def test_small_values_are_inline(self, backend: AsyncStateBackend, task: TaskScope) -> None:
        assert store(backend, task, "k", "small") == '"small"'
        assert store(backend, task, "k", "x" * 1000).startswith("file://")


class TestContractOnASlowStore(SlowStoreContract):
    @pytest.fixture
    def backend(self, s3_settings: SettingsOf, opened: BackendOf) -> AsyncStateBackend:
        # Imports may take longer than the deadline of the tests.
        opened(s3_settings()).get(TaskScope("d", "r", "t"), "k")
        return opened(s3_settings(timeout=2))

    @pytest.fixture
    def slowed(self, moto: FakeS3) -> Callable[[float], AbstractContextManager[object]]:
        return lambda seconds: moto.failing(faults.never_answers() if seconds == math.inf else faults.latency(seconds))


def moved(url: str) -> str:
    """Another base URL in the same store."""
    return f"{url}/moved" if url.startswith(("s3", "file")) else f"{url}-moved"


def store(backend: AsyncStateBackend, scope: Any, key: str, value: Any) -> str:
    """What Airflow's accessors call on ``set``."""
    if hasattr(scope, "dag_id"):
        return backend.serialize_task_state_store_to_ref(value=value, key=key, scope=scope)
    return backend.serialize_asset_state_store_to_ref(value=value, key=key, scope=scope)


def resolve(backend: AsyncStateBackend, ref: str) -> Any:
    return backend.deserialize_task_state_store_from_ref(ref)


@pytest.mark.parametrize("value", [math.nan, [math.inf], datetime.datetime.now(tz=datetime.timezone.utc), (1,), None])
def test_contract_03_a_refused_value_changes_nothing(backend: AsyncStateBackend, task: TaskScope, value: Any) -> None:
    ref = store(backend, task, "k", "before")
    with pytest.raises(InvalidValueError):
        store(backend, task, "k", value)
    assert resolve(backend, ref) == "before"


def test_contract_05_a_ref_depends_on_scope_and_key_alone(
    store_settings: SettingsOf, opened: BackendOf, task: TaskScope
) -> None:
    refs = {
        store(opened(store_settings(compression=compression)), task, "k", value)
        for compression in ("none", "gzip", "zstd")
        for value in (1, "x" * 5000)
    }
    assert len(refs) == 1


def test_contract_06_a_ref_is_the_objects_url(
    store_settings: SettingsOf, backend: AsyncStateBackend, task: TaskScope
) -> None:
    ref = store(backend, task, "job_id", "x")
    run = "manual__2026-01-01T00:00:00%2B00:00"
    assert ref == f"{store_settings().url}/v1/task/{task.dag_id}/{run}/task/-1/worker/job_id"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(ref)


def test_contract_07_purging_inline_text_does_nothing(backend: AsyncStateBackend) -> None:
    for value in VALUES:
        inline = json.dumps(value)
        backend.purge_task_state(inline)
        backend.purge_asset_state(inline)


def test_contract_08_small_values_stay_inline(
    store_settings: SettingsOf, opened: BackendOf, task: TaskScope, asset: AssetScope
) -> None:
    backend = opened(store_settings(inline_threshold=10))
    for scope in (task, asset):
        # As the base class writes it, whatever that will be.
        assert store(backend, scope, "k", "12345678") == json.dumps("12345678")
        large = store(backend, scope, "k", "123456789")
        assert large.startswith(store_settings().url)
        assert resolve(backend, large) == "123456789"


def test_contract_08_a_value_that_shrinks_is_not_read_stale(
    store_settings: SettingsOf, opened: BackendOf, task: TaskScope
) -> None:
    backend = opened(store_settings(inline_threshold=10))
    large = store(backend, task, "k", "x" * 100)
    assert resolve(backend, store(backend, task, "k", "small")) == "small"
    assert backend.get(task, "k") is None
    backend.delete(task, "k")
    assert resolve(backend, large) is None


def test_contract_09_a_ref_whose_object_is_gone(
    store_settings: SettingsOf, opened: BackendOf, task: TaskScope, caplog: pytest.LogCaptureFixture
) -> None:
    backend = opened(store_settings())
    ref = store(backend, task, "k", "x")
    backend.clear(task)
    caplog.clear()
    assert backend.deserialize_task_state_store_from_ref(ref) is None
    assert backend.deserialize_asset_state_store_from_ref(ref) is None
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("async_state")]
    assert len(warnings) == 2
    assert all(ref in warning for warning in warnings)
    strict = opened(store_settings(on_missing="raise"))
    with pytest.raises(MissingObjectError, match="on_missing"):
        strict.deserialize_task_state_store_from_ref(ref)


@pytest.mark.parametrize("later", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("earlier", ["none", "gzip", "zstd"])
def test_contract_10_refs_outlive_a_change_of_compression(
    store_settings: SettingsOf, opened: BackendOf, task: TaskScope, earlier: str, later: str
) -> None:
    value = ["repeated"] * 1000
    ref = store(opened(store_settings(compression=earlier, compression_threshold=1)), task, "k", value)
    backend = opened(store_settings(compression=later, compression_threshold=1))
    assert resolve(backend, ref) == value
    # Nothing is stranded: the same object is overwritten and deleted.
    assert store(backend, task, "k", "new") == ref
    backend.delete(task, "k")
    assert resolve(backend, ref) is None


def test_contract_10_refs_outlive_a_change_of_url(
    store_settings: SettingsOf, opened: BackendOf, task: TaskScope
) -> None:
    old_url = store_settings().url
    old_ref = store(opened(store_settings()), task, "k", "old")
    new_url = moved(old_url)
    without = opened(store_settings(url=new_url))
    with pytest.raises(UntrustedRefError, match="trusted_urls"):
        resolve(without, old_ref)
    backend = opened(store_settings(url=new_url, trusted_urls=(f"{old_url}/",)))
    new_ref = store(backend, task, "k", "new")
    assert (resolve(backend, old_ref), resolve(backend, new_ref)) == ("old", "new")
    backend.purge_task_state(old_ref)
    assert (resolve(backend, old_ref), resolve(backend, new_ref)) == (None, "new")


@pytest.mark.parametrize("place", range(3))
def test_contract_10_nothing_is_purged_where_one_ref_is_refused(
    store_settings: SettingsOf, opened: BackendOf, task: TaskScope, place: int
) -> None:
    """Wherever it stands among references to two trusted URLs, in one batch or several."""
    old_url = f"{store_settings().url}/old" if "memory" not in store_settings().url else "memory://tests-old"
    both = opened(store_settings(trusted_urls=(old_url,)))
    refs = [store(opened(store_settings(url=old_url)), task, "k", 0), store(both, task, "k", 1)]
    with pytest.raises(UntrustedRefError):
        both.purge_many([*refs[:place], "s3://elsewhere/v1/task/d/r/t/-1/worker/k", *refs[place:]])
    assert [resolve(both, ref) for ref in refs] == [0, 1]
    both.purge_many(refs)
    assert [resolve(both, ref) for ref in refs] == [None, None]


def test_contract_11_scopes_of_the_wrong_type(backend: AsyncStateBackend, task: TaskScope) -> None:
    backend.set(task, "k", "1")
    for scope in (None, "dag", object(), 1):
        bad: Any = scope
        operations: list[Callable[[], object]] = [
            lambda: backend.get(bad, "k"),  # noqa: B023
            lambda: backend.set(bad, "k", "1"),  # noqa: B023
            lambda: backend.delete(bad, "k"),  # noqa: B023
            lambda: backend.clear(bad),  # noqa: B023
            lambda: backend.serialize_task_state_store_to_ref(value=1, key="k", scope=bad),  # noqa: B023
            lambda: backend.serialize_asset_state_store_to_ref(value=1, key="k", scope=bad),  # noqa: B023
        ]
        for operation in operations:
            with pytest.raises(InvalidScopeError):
                operation()
    assert backend.get(task, "k") == "1"


@pytest.mark.parametrize("key", ["", ".", "..", "k" * 513])
def test_contract_15_a_refused_key_changes_nothing(backend: AsyncStateBackend, task: TaskScope, key: str) -> None:
    ref = store(backend, task, "k", "before")
    backend.set(task, "k", '"before"')
    operations: list[Callable[[], object]] = [
        lambda: store(backend, task, key, "x"),
        lambda: backend.set(task, key, '"x"'),
        lambda: backend.get(task, key),
        lambda: backend.delete(task, key),
    ]
    for operation in operations:
        with pytest.raises(InvalidKeyError):
            operation()
    assert resolve(backend, ref) == "before"
    assert backend.get(task, "k") == '"before"'


def test_contract_18_delete_touches_its_key_alone(backend: AsyncStateBackend, task: TaskScope) -> None:
    backend.delete(task, "never set")
    refs = {key: store(backend, task, key, key) for key in ("k", "k2", "kk", "k/1")}
    backend.set(task, "k", '"row"')
    backend.set(task, "k2", '"row"')
    backend.delete(task, "k")
    backend.delete(task, "k")
    assert {key: resolve(backend, ref) for key, ref in refs.items()} == {
        "k": None,
        "k2": "k2",
        "kk": "kk",
        "k/1": "k/1",
    }
    assert (backend.get(task, "k"), backend.get(task, "k2")) == (None, '"row"')


@pytest.mark.anyio
async def test_contract_21_coroutines_do_what_their_methods_do(
    backend: AsyncStateBackend, task: TaskScope, asset: AssetScope
) -> None:
    await backend.aset(task, "k", '"row"')
    assert await backend.aget(task, "k") == '"row"' == backend.get(task, "k")
    task_ref = await backend.aserialize_task_state_store_to_ref(value=[1], key="k", scope=task)
    asset_ref = await backend.aserialize_asset_state_store_to_ref(value=[2], key="k", scope=asset)
    assert task_ref == backend.serialize_task_state_store_to_ref(value=[1], key="k", scope=task)
    assert asset_ref == backend.serialize_asset_state_store_to_ref(value=[2], key="k", scope=asset)
    assert await backend.adeserialize_task_state_store_from_ref(task_ref) == [1]
    assert await backend.adeserialize_asset_state_store_from_ref(asset_ref) == [2]
    await backend.adelete(task, "k")
    assert (await backend.aget(task, "k"), backend.deserialize_task_state_store_from_ref(task_ref)) == (None, None)
    await backend.apurge_asset_state(asset_ref)
    assert await backend.adeserialize_asset_state_store_from_ref(asset_ref) is None
    await backend.aset(asset, "k", "1")
    await backend.aclear(asset)
    assert await backend.aget(asset, "k") is None


@pytest.mark.anyio
async def test_purge_many_takes_just_its_refs(backend: AsyncStateBackend, task: TaskScope) -> None:
    refs = [await backend.aserialize_task_state_store_to_ref(value=i, key=f"k{i}", scope=task) for i in range(30)]
    await backend.apurge_many([])
    await backend.apurge_many([*refs[:20], refs[0], '"inline"'])
    found = [await backend.adeserialize_task_state_store_from_ref(ref) for ref in refs]
    assert found == [None] * 20 + list(range(20, 30))
    backend.purge_task_state(refs[20])
    backend.purge_asset_state(refs[20])
    backend.purge_many(refs[21:])
    assert [await backend.adeserialize_task_state_store_from_ref(ref) for ref in refs] == [None] * 30


def test_a_backend_works_on_after_close(store_settings: SettingsOf, task: TaskScope) -> None:
    with AsyncStateBackend(store_settings()) as backend:
        ref = store(backend, task, "k", 1)
    assert resolve(backend, ref) == 1
    backend.close()
    backend.close()


@pytest.mark.anyio
async def test_a_backend_is_an_asynchronous_context_manager_too(store_settings: SettingsOf, task: TaskScope) -> None:
    async with AsyncStateBackend(store_settings()) as backend:
        ref = await backend.aserialize_task_state_store_to_ref(value=1, key="k", scope=task)
    assert await backend.adeserialize_task_state_store_from_ref(ref) == 1
    await backend.aclose()


def test_contract_25_importing_and_constructing_do_no_io() -> None:
    """In a fresh interpreter: no AWS library, no thread, nothing on the disk; the plain import not even Airflow."""
    import os
    import subprocess
    import sys

    program = """
import sys, threading, pathlib, os
import async_state
assert not [m for m in sys.modules if m.startswith(("airflow", "anyio"))]
async_state.AsyncStateBackend()
async_state.AsyncStateBackend(async_state.Settings(url="s3://bucket/prefix"))
assert not [m for m in sys.modules if m.startswith(("aiobotocore", "botocore", "aiohttp"))]
assert threading.active_count() == 1
assert not (pathlib.Path(os.environ["AIRFLOW_HOME"]) / "async_state").exists()
"""
    # Airflow's own set-up, of its database and others, is not what is looked at, and takes a second.
    environment = {**os.environ, "_AIRFLOW__AS_LIBRARY": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment)


def test_contract_27_both_copies_of_the_base_class_and_of_the_scopes(
    backend: AsyncStateBackend, task: TaskScope, asset: AssetScope
) -> None:
    from airflow._shared import state as core

    assert isinstance(backend, BaseStoreBackend)
    assert core.BaseStoreBackend in type(backend).__mro__
    core_task = core.TaskScope(task.dag_id, task.run_id, task.task_id, task.map_index)
    backend.set(core_task, "k", '"by the server"')  # type: ignore[arg-type]
    assert backend.get(task, "k") == '"by the server"'
    core_asset = core.AssetScope(asset_id=7)
    backend.set(core_asset, "k", "1")  # type: ignore[arg-type]
    backend.clear(core_asset)  # type: ignore[arg-type]
    assert backend.get(AssetScope(asset_id=7), "k") is None


def test_contract_27_a_worker_without_airflow_core() -> None:
    """core can't be uninstalled here: its copy of the class is hidden from a fresh interpreter instead."""
    import os
    import subprocess
    import sys

    program = """
import sys
sys.modules["airflow._shared.state"] = None
from airflow.sdk.state import BaseStoreBackend, TaskScope
from async_state import AsyncStateBackend, Settings
backend = AsyncStateBackend(Settings(url="memory://x"))
assert isinstance(backend, BaseStoreBackend)
ref = backend.serialize_task_state_store_to_ref(value=1, key="k", scope=TaskScope("d", "r", "t"))
assert backend.deserialize_task_state_store_from_ref(ref) == 1
"""
    # Airflow's own set-up, of its database and others, is not what is looked at, and takes a second.
    environment = {**os.environ, "_AIRFLOW__AS_LIBRARY": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment)


def test_one_backend_on_both_sides_keeps_value_and_row_apart(backend: AsyncStateBackend, task: TaskScope) -> None:
    ref = store(backend, task, "k", "value")
    row = json.dumps({"__airflow_state_ref__": ref})
    backend.set(task, "k", row)
    assert backend.get(task, "k") == row
    assert resolve(backend, ref) == "value"
