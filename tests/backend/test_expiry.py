"""Rows of the API server's side that expire: `aset(expires_at=…)`, `aget` and `cleanup`."""

from __future__ import annotations

import datetime
import json
import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from airflow.sdk.execution_time import comms
from airflow.sdk.execution_time.context import NEVER_EXPIRE, TaskStateStoreAccessor
from airflow.sdk.execution_time.supervisor import set_supervisor_comms
from airflow.sdk.state import AssetScope, TaskScope
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from async_state import AsyncStateBackend, Settings, StateStore, codec, compat, connections, iothread, keys
from async_state.errors import InvalidValueError, StoreError
from async_state.keys import Side
from async_state.stores import open_store
from async_state.testing import FakeS3, faults
from async_state.testing.server import FakeServer
from tests import cloud_places

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]
Forward = Callable[[datetime.timedelta], datetime.datetime]

UTC = datetime.timezone.utc
HOUR = datetime.timedelta(hours=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(tz=UTC)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Forward:
    """Set this process's clock forward, as the backend reads it, and return its time."""
    ahead = datetime.timedelta()

    class AnyDatetime(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime.datetime)

    class Clock(datetime.datetime, metaclass=AnyDatetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return datetime.datetime.now(tz) + ahead

    def forward(by: datetime.timedelta) -> datetime.datetime:
        nonlocal ahead
        ahead += by
        return now() + ahead

    monkeypatch.setattr(codec, "datetime", Clock)
    return forward


@pytest.fixture
def own(store_settings: SettingsOf, opened: BackendOf, task: TaskScope) -> AsyncStateBackend:
    """A backend on each kind of store in turn, below a base of its own: `cleanup` takes all that is below it."""
    base = store_settings().url
    separator = "-" if base.startswith("memory") else "/"
    return opened(store_settings(url=f"{base}{separator}{task.dag_id}"))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_what_has_expired_is_gone(
    own: AsyncStateBackend,
    opened: BackendOf,
    store_settings: SettingsOf,
    clock: Forward,
    task: TaskScope,
    asset: AssetScope,
    compression: str,
) -> None:
    backend = opened(store_settings(url=own._settings.url, compression=compression, compression_threshold=1))
    text = '{"k": "\\u00e4ä\ud800"}\n '
    for scope in (task, asset):
        backend.set(scope, "soon", text, expires_at=now() + HOUR)
        backend.set(scope, "later", text, expires_at=now() + 3 * HOUR)
        backend.set(scope, "never", text, expires_at=None)
        backend.set(scope, "past", text, expires_at=now() - HOUR)

    def left() -> list[str]:
        found = [key for key in ("soon", "later", "never", "past") if backend.get(task, key) is not None]
        assert found == [key for key in ("soon", "later", "never", "past") if backend.get(asset, key) is not None]
        assert {backend.get(task, key) for key in found} == {text}
        return found

    assert left() == ["soon", "later", "never"]
    assert backend.cleanup() == 2
    clock(HOUR)
    assert left() == ["later", "never"]
    assert (backend.cleanup(), backend.cleanup()) == (2, 0)
    clock(1000 * HOUR)
    assert left() == ["never"]
    assert backend.cleanup() == 2
    assert left() == ["never"]


def test_a_later_set_decides(own: AsyncStateBackend, clock: Forward, task: TaskScope) -> None:
    own.set(task, "renewed", "1", expires_at=now() + HOUR)
    own.set(task, "renewed", "1", expires_at=now() + 3 * HOUR)
    own.set(task, "kept", "1", expires_at=now() + HOUR)
    own.set(task, "kept", "1")
    own.set(task, "shortened", "1")
    own.set(task, "shortened", "1", expires_at=now() + HOUR)
    clock(2 * HOUR)
    assert own.cleanup() == 1
    assert [own.get(task, key) for key in ("renewed", "kept", "shortened")] == ["1", "1", None]
    own.set(task, "shortened", "2")
    assert own.get(task, "shortened") == "2"


@pytest.mark.parametrize("tz", [None, UTC, datetime.timezone(datetime.timedelta(hours=-11))])
def test_time_zones(own: AsyncStateBackend, task: TaskScope, tz: datetime.tzinfo | None) -> None:
    """Airflow's times have one; the interface says "an absolute UTC datetime" of those that have none."""

    def in_zone(moment: datetime.datetime) -> datetime.datetime:
        return moment.replace(tzinfo=None) if tz is None else moment.astimezone(tz)

    own.set(task, "past", "1", expires_at=in_zone(now() - HOUR / 60))
    own.set(task, "coming", "1", expires_at=in_zone(now() + HOUR))
    assert (own.get(task, "past"), own.get(task, "coming")) == (None, "1")


def test_no_time_at_all(own: AsyncStateBackend, task: TaskScope) -> None:
    own.set(task, "k", "before")
    when: Any = "2026-01-01"
    with pytest.raises(InvalidValueError, match="expires_at"):
        own.set(task, "k", "after", expires_at=when)
    assert own.get(task, "k") == "before"


@pytest.mark.anyio
async def test_coroutines(own: AsyncStateBackend, task: TaskScope, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "async_state")
    await own.aset(task, "k", "1", expires_at=now() - HOUR)
    await own.aset(task, "k2", "1", expires_at=now() + HOUR)
    assert (await own.aget(task, "k"), await own.aget(task, "k2")) == (None, "1")
    assert await own.acleanup() == 1
    assert f"Deleted 1 expired rows below {own._settings.url}" in caplog.text


def test_cleanup_leaves_everything_else(
    own: AsyncStateBackend, task: TaskScope, caplog: pytest.LogCaptureFixture
) -> None:
    """Values of the worker's side, names that are not ours, and what can't be read."""
    ref = own.serialize_task_state_store_to_ref(value=1, key="k", scope=task)
    own.set(task, "k", "1", expires_at=now() - HOUR)
    url = own._settings.url
    row = keys.object_name(task, "k", Side.SERVER)
    expired, _ = codec.encode("1", "none", expires_at=now() - HOUR)
    foreign = f"{row}~more"
    damaged = keys.object_name(task, "damaged", Side.SERVER)

    async def put() -> None:
        store = open_store(url, own._settings, connections.empty(url))
        try:
            await store.put(foreign, expired, "", timeout=10)
            await store.put(ref.removeprefix(f"{url}/"), expired, "", timeout=10)
            await store.put(damaged, b"\xffexpires never\n1", "", timeout=10)
        finally:
            await store.aclose()

    async def names() -> set[str]:
        store = open_store(url, own._settings, connections.empty(url))
        try:
            return {entry.name async for page in store.entries("v1/task/", timeout=10) for entry in page}
        finally:
            await store.aclose()

    anyio.run(iothread.arun, put)
    before = anyio.run(iothread.arun, names)
    assert row in before
    assert own.cleanup() == 1
    assert anyio.run(iothread.arun, names) == before - {row}
    assert damaged in caplog.text


async def fill(backend: AsyncStateBackend, task: TaskScope, rows: int) -> None:
    """Set so many rows, of which every tenth has expired."""
    for i in range(rows):
        await backend.aset(task, f"k{i}", "1", expires_at=None if i % 10 else now() - HOUR)


@pytest.mark.anyio
async def test_cleanup_takes_more_than_a_page(task: TaskScope) -> None:
    async with AsyncStateBackend(Settings(url=f"memory://{task.dag_id}")) as backend:
        await fill(backend, task, 2050)
        assert (await backend.acleanup(), await backend.acleanup()) == (205, 0)
        assert [await backend.aget(task, f"k{i}") for i in (0, 1, 2040, 2049)] == [None, "1", None, "1"]


@pytest.mark.anyio
async def test_the_requests_of_a_cleanup(s3_settings: SettingsOf, moto: FakeS3, task: TaskScope) -> None:
    """Tasks and assets are listed, each row is read, and two more requests delete one that has expired."""
    async with AsyncStateBackend(s3_settings(url=f"s3://state/{task.dag_id}")) as backend:
        await fill(backend, task, 30)
        await backend.aserialize_task_state_store_to_ref(value=1, key="k", scope=task)
        moto.requests.clear()
        assert await backend.acleanup() == 3
    methods = [request.method for request in moto.requests]
    assert {method: methods.count(method) for method in set(methods)} == {"GET": 2 + 30, "HEAD": 3, "DELETE": 3}


@pytest.mark.parametrize("scheme", ["s3", *cloud_places.CLOUDS])
def test_a_row_that_is_set_while_it_is_cleaned_up_stays(
    scheme: str, request: pytest.FixtureRequest, s3_settings: SettingsOf, opened: BackendOf, task: TaskScope
) -> None:
    """Whichever of cleanup's requests it comes before; here with the same text."""
    if scheme == "s3":
        settings = s3_settings(url=f"s3://state/{task.dag_id}")
    else:
        settings = Settings(**cloud_places.options(request, scheme, task.dag_id))
    server: FakeServer = request.getfixturevalue({"s3": "moto", "gs": "gcs", "az": "azure"}[scheme])
    backend, other = opened(settings), opened(settings)
    for place in range(5):
        backend.set(task, "k", "1", expires_at=now() - HOUR)
        seen = 0

        def set_before(request: Any) -> None:
            nonlocal seen
            if request.method in ("PUT", "POST"):
                return
            if seen == place:  # noqa: B023
                server.intercept = None
                other.set(task, "k", "1", expires_at=now() + HOUR)
            seen += 1

        server.intercept = set_before
        try:
            deleted = backend.cleanup()
        finally:
            server.intercept = None
        # Tasks are listed; the row is read, looked at and deleted; assets are listed.
        assert (place, deleted, backend.get(task, "k")) == (place, int(place == 4), "1")


def test_cleanup_fails_loudly_and_can_be_run_again(
    s3_settings: SettingsOf, opened: BackendOf, moto: FakeS3, task: TaskScope
) -> None:
    backend = opened(s3_settings(url=f"s3://state/{task.dag_id}", max_attempts=1))
    for i in range(3):
        backend.set(task, f"k{i}", "1", expires_at=now() - HOUR)
    with moto.failing(faults.error(503, "ServiceUnavailable")), pytest.raises(StoreError):
        backend.cleanup()
    assert backend.cleanup() == 3


def test_an_expired_row_is_no_value_to_airflows_server(own: AsyncStateBackend, task: TaskScope) -> None:
    """`delete` and `clear` take it like any other."""
    for key in ("k", "k2"):
        own.set(task, key, "1", expires_at=now() - HOUR)
    own.delete(task, "k")
    own.clear(task)
    assert own.cleanup() == 0


class Server:
    """The API server's part between a task's accessor and the backend that keeps its rows."""

    def __init__(self, backend: AsyncStateBackend, scope: TaskScope) -> None:
        self.backend = backend
        self.scope = scope

    def send(self, message: Any) -> Any:
        if isinstance(message, comms.SetTaskStateStore):
            text = json.dumps(message.value)
            self.backend.set(self.scope, message.key, text, expires_at=message.expires_at)
        elif isinstance(message, comms.GetTaskStateStore):
            found = self.backend.get(self.scope, message.key)
            return None if found is None else comms.TaskStateStoreResult(value=json.loads(found))
        return None

    async def asend(self, message: Any) -> Any:
        return await anyio.to_thread.run_sync(self.send, message)


def test_accessors_see_no_value_that_has_expired(
    opened: BackendOf,
    clock: Forward,
    monkeypatch: pytest.MonkeyPatch,
    task: TaskScope,
    tmp_path: Path,
) -> None:
    """Wherever the value is: in the store, in the row, below a moved URL, or where common-io has put it."""
    old, new, io = ((tmp_path / name).as_uri() for name in ("old", "new", "io"))
    server = Server(opened(Settings(url=(tmp_path / "rows").as_uri())), task)
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__URL", new)
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__MOVED_URLS", old)
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__INLINE_THRESHOLD", "10")
    monkeypatch.setenv("AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH", io)
    values: dict[str, Any] = {"stored": "x" * 20, "inline": 1, "moved": "y" * 20, "common-io": "z"}
    (tmp_path / "io" / task.dag_id / "r" / "t" / "-1").mkdir(parents=True)
    (tmp_path / "io" / task.dag_id / "r" / "t" / "-1" / "k").write_text('"z"')
    with AsyncStateBackend() as worker, set_supervisor_comms(server):
        monkeypatch.setattr(compat, "worker_backend", lambda: worker)
        state = StateStore(TaskStateStoreAccessor(uuid.UUID(int=1), task))
        for key in ("stored", "inline", "moved"):
            state.set(key, values[key], retention=HOUR)
        found = json.loads(server.backend.get(task, "moved") or "")[compat.REF_MARKER]
        elsewhere = {"moved": found.replace(new, old), "common-io": f"{io}/{task.dag_id}/r/t/-1/k"}
        for key, ref in elsewhere.items():
            server.backend.set(task, key, json.dumps({compat.REF_MARKER: ref}), expires_at=now() + HOUR)
        assert state.get_many(values) == values
        clock(2 * HOUR)
        assert state.get_many(values) == dict.fromkeys(values)
        assert [state.get(key, "default") for key in values] == ["default"] * 4
        # Nor does what has expired come back.
        assert [state.update(key, lambda number: number + 1, default=0) for key in values] == [1] * 4
        assert server.backend.cleanup() == 0
        assert state.get_many(values) == dict.fromkeys(values, 1)


def test_an_update_does_not_renew_a_row(
    opened: BackendOf, clock: Forward, monkeypatch: pytest.MonkeyPatch, task: TaskScope, tmp_path: Path
) -> None:
    server = Server(opened(Settings(url=(tmp_path / "rows").as_uri())), task)
    worker = opened(Settings(url=(tmp_path / "values").as_uri()))
    monkeypatch.setattr(compat, "worker_backend", lambda: worker)
    with set_supervisor_comms(server):
        state = StateStore(TaskStateStoreAccessor(uuid.UUID(int=1), task))
        state.set("short", 1, retention=2 * HOUR)
        state.set("kept", 1, retention=NEVER_EXPIRE)
        clock(HOUR)
        assert [state.update(key, lambda number: number + 1) for key in ("short", "kept")] == [2, 2]
        clock(HOUR)
        assert state.get_many(["short", "kept"]) == {"short": None, "kept": 2}


class Rows(RuleBasedStateMachine):
    """Any sequence of sets, deletes, clears and cleanups, while the clock goes on, leaves the rows that it should."""

    scopes: list[Any] = [TaskScope("d", "r", "t", 1), TaskScope("d", "r", "t", 10), AssetScope(asset_id=1)]  # noqa: RUF012
    forward: Forward
    places = st.tuples(st.sampled_from(scopes), st.sampled_from(["a/b", "a_b"]))

    def __init__(self) -> None:
        super().__init__()
        self.ahead = datetime.timedelta()
        self.rows: dict[tuple[Any, str], tuple[str, datetime.timedelta | None]] = {}
        # The clock has gone on in the histories before.
        self.began = self.forward(datetime.timedelta())
        self.backend = AsyncStateBackend(Settings(url=f"memory://{uuid.uuid4()}"))

    @rule(place=places, text=st.sampled_from(["1", "2"]), hours=st.none() | st.integers(-1, 5))
    def set(self, place: tuple[Any, str], text: str, hours: int | None) -> None:
        expires = None if hours is None else self.ahead + hours * HOUR
        # Half an hour between a time of expiry and the clock, whatever the machine takes meanwhile.
        moment = None if expires is None else self.began + expires + HOUR / 2
        self.backend.set(*place, text, expires_at=moment)
        self.rows[place] = text, expires

    @rule(place=places)
    def delete(self, place: tuple[Any, str]) -> None:
        self.backend.delete(*place)
        self.rows.pop(place, None)

    @rule(scope=st.sampled_from(scopes))
    def clear(self, scope: Any) -> None:
        self.backend.clear(scope)
        self.rows = {place: row for place, row in self.rows.items() if place[0] != scope}

    @rule(hours=st.integers(1, 3))
    def wait(self, hours: int) -> None:
        self.ahead += hours * HOUR
        self.forward(hours * HOUR)

    @rule()
    def cleanup(self) -> None:
        expired = [place for place in self.rows if self._has_expired(place)]
        assert self.backend.cleanup() == len(expired)
        for place in expired:
            del self.rows[place]

    @invariant()
    def rows_are_as_they_should_be(self) -> None:
        for scope in self.scopes:
            for key in ("a/b", "a_b"):
                row = self.rows.get((scope, key))
                expected = None if row is None or self._has_expired((scope, key)) else row[0]
                assert self.backend.get(scope, key) == expected

    def _has_expired(self, place: tuple[Any, str]) -> bool:
        expires = self.rows[place][1]
        return expires is not None and expires < self.ahead


def test_any_history_of_rows(clock: Forward) -> None:
    Rows.forward = staticmethod(clock)
    run_state_machine_as_test(
        Rows,
        settings=settings(max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[*HealthCheck]),
    )


class Shouting(AsyncStateBackend):
    """A subclass that overrides the method which Airflow documents."""

    cleaned = 0

    def cleanup(self) -> int:  # type: ignore[override]
        self.cleaned += 1
        return super().cleanup()


@pytest.mark.anyio
async def test_a_subclass_may_override_cleanup(tmp_path: Any, task: TaskScope) -> None:
    backend = Shouting(Settings(url=(tmp_path / "state").as_uri()))
    await backend.aset(task, "k", "1", expires_at=now() - HOUR)
    assert await backend.acleanup() == 1
    assert backend.cleaned == 1
