"""Atomic updates, state by scope, and many keys at once, over real stores.

Airflow's supervisor is a double here that keeps the rows in a directory, for all threads and processes.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk.execution_time import comms
from airflow.sdk.execution_time.context import AssetStateStoreAccessor, TaskStateStoreAccessor
from airflow.sdk.execution_time.supervisor import set_supervisor_comms
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, AsyncStateStore, Settings, StateStore, compat, task_state
from async_state.errors import ConditionsError, ConfigurationError, MissingKeyError, StoreError
from async_state.testing import faults
from tests.cloud_servers import AzureServer
from tests.programs.common import fork, outcome

BackendOf = Callable[..., AsyncStateBackend]


class Supervisor:
    """Keeps rows as files, and answers one question after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        directory.mkdir(exist_ok=True)

    def row(self, key: str) -> Path:
        return self.directory / quote(key, safe="")[:200]

    def send(self, message: Any) -> Any:
        verb = type(message).__name__[:3]
        with self._lock:
            if verb == "Set":
                temporary = self.directory / f".{uuid.uuid4().hex}"
                temporary.write_text(json.dumps(message.value))
                temporary.replace(self.row(message.key))
            elif verb == "Get" and self.row(message.key).exists():
                of_task = "Task" in type(message).__name__
                result = comms.TaskStateStoreResult if of_task else comms.AssetStateStoreResult
                return result(value=json.loads(self.row(message.key).read_text()))
            elif verb == "Del":
                self.row(message.key).unlink(missing_ok=True)
            elif verb == "Cle":
                for row in self.directory.iterdir():
                    row.unlink()
        return None

    async def asend(self, message: Any) -> Any:
        await asyncio.sleep(0)
        return self.send(message)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "rows")
    with set_supervisor_comms(made):
        yield made


@pytest.fixture
def use(opened: BackendOf, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AsyncStateBackend]:
    """Have the process's worker backend be one with these settings."""

    def use(settings: Settings) -> AsyncStateBackend:
        backend = opened(settings)
        monkeypatch.setattr(compat, "worker_backend", lambda: backend)
        return backend

    return use


def on(kind: str, request: pytest.FixtureRequest, **options: Any) -> Settings:
    """Settings for a server, which is told of by the fixture of its name."""
    if kind == "az":
        azure: AzureServer = request.getfixturevalue("azure")
        return Settings(url="az://state/updates", endpoint_url=azure.endpoint, **options)
    if kind == "gs":
        return Settings(url="gs://state/updates", endpoint_url=request.getfixturevalue("gcs").url, **options)
    return Settings(url="s3://state/updates", endpoint_url=request.getfixturevalue("moto").url, **options)


@pytest.fixture(params=["file", "moto", "gs", "az"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, use: Any) -> AsyncStateBackend:
    if request.param == "file":
        settings = Settings(url=(tmp_path / "state").as_uri())
    else:
        # Thirty writers at once need many attempts.
        settings = on(request.param, request, timeout=120)
    return use(settings)  # type: ignore[no-any-return]


@pytest.fixture
def scope() -> TaskScope:
    return TaskScope(dag_id=uuid.uuid4().hex, run_id="r", task_id="t")


@pytest.fixture
def state(scope: TaskScope) -> StateStore:
    return StateStore(TaskStateStoreAccessor(uuid.UUID(int=1), scope))


def add_one(number: Any) -> Any:
    return number + 1


def test_every_update_counts_from_threads(
    backend: AsyncStateBackend, supervisor: Supervisor, state: StateStore
) -> None:
    def work(_: int) -> list[Any]:
        return [state.update("n", add_one, 0) for _ in range(3)]

    with ThreadPoolExecutor(10) as pool:
        results = [result for results in pool.map(work, range(10)) for result in results]
    assert sorted(results) == list(range(1, 31))
    assert state.get("n") == 30


def test_every_update_counts_from_tasks_of_a_loop(
    backend: AsyncStateBackend, supervisor: Supervisor, scope: TaskScope
) -> None:
    state = AsyncStateStore(TaskStateStoreAccessor(uuid.UUID(int=1), scope))

    async def main() -> list[Any]:
        return await asyncio.gather(*(state.aupdate("n", add_one, 0) for _ in range(20)))

    assert sorted(asyncio.run(main())) == list(range(1, 21))


def test_every_update_counts_from_processes(
    backend: AsyncStateBackend, supervisor: Supervisor, state: StateStore
) -> None:
    def work() -> None:
        for _ in range(4):
            state.update("n", add_one, 0)

    processes = [fork(work, "task") for _ in range(5)]
    assert [outcome(process) for process in processes] == ["fine"] * 5
    assert state.get("n") == 20


def test_an_old_value_does_not_come_back(backend: AsyncStateBackend, supervisor: Supervisor, state: StateStore) -> None:
    state.set("n", 41)
    assert state.update("n", add_one, 0) == 42
    # By REST: the object stays.
    supervisor.row("n").unlink()
    assert state.keys() == ["n"]
    assert state.update("n", add_one, 0) == 1
    assert state.get("n") == 1


def test_a_value_of_the_row_is_taken_over(
    backend: AsyncStateBackend, supervisor: Supervisor, state: StateStore
) -> None:
    supervisor.row("n").write_text("41")
    assert state.update("n", add_one, 0) == 42
    assert state.get("n") == 42


def test_a_function_that_fails_changes_nothing(
    backend: AsyncStateBackend, supervisor: Supervisor, state: StateStore
) -> None:
    state.set("n", 1)
    with pytest.raises(ZeroDivisionError):
        state.update("n", lambda n: n / 0)
    assert state.get("n") == 1


@pytest.mark.parametrize("kind", ["moto", "gs", "az"])
def test_answers_that_are_lost_do_not_count_twice(
    kind: str, request: pytest.FixtureRequest, use: Any, supervisor: Supervisor, state: StateStore
) -> None:
    use(on(kind, request))
    state.set("n", 0)
    state.update("n", add_one)
    server = request.getfixturevalue({"gs": "gcs", "az": "azure"}.get(kind, kind))
    # Google's uploads name the object in their body.
    is_write = {"method": "POST", "path": "/upload/"} if kind == "gs" else {"method": "PUT", "path": "/worker/n"}
    with server.failing(faults.reset_after_carrying_out(), **is_write, times=3) as failing:
        assert [state.update("n", add_one) for _ in range(5)] == [2, 3, 4, 5, 6]
    assert len(failing.requests) == 3


def test_a_store_without_conditions_says_so(
    rclone_url: str, use: Any, supervisor: Supervisor, state: StateStore
) -> None:
    use(Settings(url="s3://state/updates", endpoint_url=rclone_url))
    state.set("n", 1)
    with pytest.raises(ConditionsError, match="ignores If-Match"):
        state.update("n", add_one, 0)
    assert state.get("n") == 1


def test_an_assets_key_is_updated(backend: AsyncStateBackend, supervisor: Supervisor) -> None:
    state = StateStore(AssetStateStoreAccessor(name=uuid.uuid4().hex))
    assert [state.update("n", add_one, default=0) for _ in range(3)] == [1, 2, 3]


class Encrypting(AsyncStateBackend):
    """Stores values in a way of its own."""

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        return super().serialize_task_state_store_to_ref(value=f"<{value}>", key=key, scope=scope)

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        return str(super().deserialize_task_state_store_from_ref(stored))[1:-1]


def test_a_subclass_that_stores_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, scope: TaskScope, state: StateStore
) -> None:
    with Encrypting(Settings(url=(tmp_path / "state").as_uri())) as backend:
        monkeypatch.setattr(compat, "worker_backend", lambda: backend)
        state.set("k", "v")
        by_scope = StateStore(scope)
        assert by_scope.get("k") == "v"
        by_scope.set("k", "w")
        assert state.get("k") == "w"
        assert by_scope.get("none", "default") == "default"
        with pytest.raises(StoreError, match="Encrypting overrides serialize_task_state_store_to_ref"):
            state.update("k", add_one)


def test_state_by_scope(
    backend: AsyncStateBackend, supervisor: Supervisor, scope: TaskScope, state: StateStore
) -> None:
    state.set_many({"a": 1, "b/c": 2})
    with set_supervisor_comms(None):
        by_scope = AsyncStateStore.of_task(dag_id=scope.dag_id, run_id=scope.run_id, task_id=scope.task_id)

        async def main() -> None:
            assert await by_scope.aget("a") == 1
            assert await by_scope.aget("none", "default") == "default"
            assert await by_scope.aget_many(["a", "b/c", "none"]) == {"a": 1, "b/c": 2, "none": None}
            assert sorted(await by_scope.akeys()) == ["a", "b/c"]
            await by_scope.aset("a", {"new": True})
            assert await by_scope.aupdate("b/c", add_one) == 3
            for call in by_scope.aset("none", 1), by_scope.aupdate("none", add_one, 0):
                with pytest.raises(MissingKeyError, match="set the key in the task before it defers"):
                    await call
            for call in by_scope.adelete("a"), by_scope.aclear():
                with pytest.raises(TypeError, match="state by scope can't"):
                    await call
            with pytest.raises(ValueError, match="must not be None"):
                await by_scope.aset("a", None)

        asyncio.run(main())
    assert state.get_many(["a", "b/c"]) == {"a": {"new": True}, "b/c": 3}


def test_many_keys_from_a_plain_task(backend: AsyncStateBackend, supervisor: Supervisor, state: StateStore) -> None:
    values = {f"key-{n}": n for n in range(60)}
    state.set_many(values)
    assert state.get_many([*values, "none"]) == {**values, "none": None}
    assert sorted(state.keys()) == sorted(values)
    state.delete_many(list(values)[:30])
    assert sorted(state.keys()) == sorted(list(values)[30:])
    # Another call has another event loop.
    assert state.get_many(values) == {key: None if n < 30 else n for key, n in values.items()}
    state.clear()
    assert state.keys() == []


def test_many_keys_from_a_coroutine(backend: AsyncStateBackend, supervisor: Supervisor, state: StateStore) -> None:
    async def main() -> None:
        state.set_many({"a": 1, "b": 2})
        assert state.get_many(["a", "b"]) == {"a": 1, "b": 2}

    asyncio.run(main())


def test_keys_that_are_too_long_to_list_are_counted(
    backend: AsyncStateBackend, supervisor: Supervisor, state: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    state.set_many({"short": 1, "long" * 100: 2})
    assert state.keys() == ["short"]
    assert "1 keys of" in caplog.text


def test_another_backend_says_so(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, state: StateStore) -> None:
    monkeypatch.setattr(compat, "worker_backend", lambda: None)
    with pytest.raises(ConfigurationError, match="state_store_backend is not set"):
        state.update("n", add_one, 0)
    with pytest.raises(ConfigurationError, match="state_store_backend is not set"):
        state.keys()


class Trigger:
    """What Airflow sets of a trigger."""

    task_instance: Any = None


def test_a_trigger_has_its_tasks_state(
    backend: AsyncStateBackend, supervisor: Supervisor, scope: TaskScope, state: StateStore
) -> None:
    trigger: Any = Trigger()
    with pytest.raises(LookupError, match="Trigger has no task instance"):
        task_state(trigger)
    trigger.task_instance = TaskScope(dag_id=scope.dag_id, run_id=scope.run_id, task_id=scope.task_id)
    state.set("k", 1)
    assert asyncio.run(task_state(trigger).aget("k")) == 1
    # As a later Airflow may have it.
    trigger.task_state_store = TaskStateStoreAccessor(uuid.UUID(int=1), scope)
    assert asyncio.run(task_state(trigger).aget("k")) == 1
