"""What `AsyncStateStore` asks the supervisor, and what it makes of the responses.

The supervisor here is a double, since a real one neither refuses a `get` nor shows how many requests wait at once. The
messages and responses are the SDK's own. See test_accessors.py for tasks below a real supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import comms
from airflow.sdk.execution_time.context import NEVER_EXPIRE, AssetStateStoreAccessor, TaskStateStoreAccessor
from airflow.sdk.execution_time.supervisor import set_supervisor_comms
from airflow.sdk.state import AssetScope, TaskScope

from async_state import AsyncStateBackend, AsyncStateStore, Settings, compat
from async_state.compat import REF_MARKER

pytestmark = pytest.mark.anyio

SCOPE = TaskScope(dag_id="dag", run_id="run", task_id="task")
TI = uuid.UUID(int=1)


class Supervisor:
    """Records the messages, and gives each the same response."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.response: Any = None

    async def asend(self, message: Any) -> Any:
        self.asked.append(message)
        return self.response


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    use(monkeypatch, None)
    double = Supervisor()
    with set_supervisor_comms(double):
        yield double


def use(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Make it the worker's backend, of which the SDK has one a process."""
    monkeypatch.setattr(compat, "worker_backend", lambda: backend)


class UnknownTaskAccessor:
    """As a later SDK may have one: no subclass of a known class, but with the same attributes."""

    def __init__(self) -> None:
        self._ti_id = TI
        self._scope = SCOPE


class UnknownAssetAccessor:
    def __init__(self) -> None:
        self._name = "orders"
        self._uri = None


class UnknownAssetAccessors:
    def _single_accessor(self) -> UnknownAssetAccessor:
        return UnknownAssetAccessor()


TASK = TaskStateStoreAccessor(TI, SCOPE)
ASSET = AssetStateStoreAccessor(name="orders")


@pytest.mark.parametrize(
    ("unknown", "known"),
    [(UnknownTaskAccessor(), TASK), (UnknownAssetAccessor(), ASSET), (UnknownAssetAccessors(), ASSET)],
    ids=lambda accessor: type(accessor).__name__,
)
async def test_an_unknown_accessor_is_served_by_what_it_has(supervisor: Supervisor, unknown: Any, known: Any) -> None:
    asked = []
    for accessor in unknown, known:
        state = AsyncStateStore(accessor)
        await state.aget("k")
        await state.adelete("k")
        await state.aclear()
        asked.append(supervisor.asked)
        supervisor.asked = []
    assert asked[0] == asked[1]
    assert len(asked[0]) == 3


@pytest.mark.parametrize(
    ("accessor", "error"),
    [(TASK, ErrorType.PERMISSION_DENIED), (TASK, ErrorType.ASSET_STORE_NOT_FOUND), (ASSET, ErrorType.API_SERVER_ERROR)],
)
async def test_a_get_that_the_server_refuses_raises(supervisor: Supervisor, accessor: Any, error: ErrorType) -> None:
    supervisor.response = comms.ErrorResponse(error=error)
    with pytest.raises(AirflowRuntimeError):
        await AsyncStateStore(accessor).aget("k", "default")


@pytest.mark.parametrize(
    ("accessor", "error"), [(TASK, ErrorType.TASK_STORE_NOT_FOUND), (ASSET, ErrorType.ASSET_STORE_NOT_FOUND)]
)
async def test_a_key_that_the_server_does_not_know_gives_the_default(
    supervisor: Supervisor, accessor: Any, error: ErrorType
) -> None:
    supervisor.response = comms.ErrorResponse(error=error)
    assert await AsyncStateStore(accessor).aget("k", "default") == "default"


@pytest.mark.parametrize(
    ("days", "retention", "expires_in"),
    [
        ("0", None, None),
        ("7", None, timedelta(days=7)),
        ("0", timedelta(hours=1), timedelta(hours=1)),
        ("7", NEVER_EXPIRE, None),
    ],
)
async def test_when_a_tasks_state_expires(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, days: str, retention: Any, expires_in: timedelta | None
) -> None:
    monkeypatch.setenv("AIRFLOW__STATE_STORE__DEFAULT_RETENTION_DAYS", days)
    before = datetime.now(tz=timezone.utc)
    await AsyncStateStore(TASK).aset("k", 1, retention=retention)
    after = datetime.now(tz=timezone.utc)
    (message,) = supervisor.asked
    if expires_in is None:
        assert message.expires_at is None
    else:
        assert before + expires_in <= message.expires_at <= after + expires_in


async def test_a_negative_retention_is_refused_by_the_options_name(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__STATE_STORE__DEFAULT_RETENTION_DAYS", "-1")
    with pytest.raises(ValueError, match=r"\[state_store\] default_retention_days"):
        await AsyncStateStore(TASK).aset("k", 1)
    assert supervisor.asked == []


@pytest.mark.parametrize(
    ("accessor", "by", "scope"),
    [
        (AssetStateStoreAccessor(uri="s3://orders/daily"), {"uri": "s3://orders/daily"}, {"uri": "s3://orders/daily"}),
        (AssetStateStoreAccessor(name="orders"), {"name": "orders"}, {"name": "orders"}),
        (
            AssetStateStoreAccessor(name="orders", uri="s3://orders/daily"),
            {"name": "orders"},
            {"name": "orders", "uri": "s3://orders/daily"},
        ),
    ],
    ids=["uri", "name", "both"],
)
async def test_an_asset_is_asked_for_by_what_it_is_known_by(
    supervisor: Supervisor, accessor: Any, by: dict[str, str], scope: dict[str, Any]
) -> None:
    state = AsyncStateStore(accessor)
    assert state._state.scope == AssetScope(**scope)
    await state.aget("k")
    await state.aset("k", 1)
    await state.adelete("k")
    await state.aclear()
    kind = f"AssetStateStoreBy{next(iter(by)).title()}"
    assert supervisor.asked == [
        getattr(comms, f"Get{kind}")(**by, key="k"),
        getattr(comms, f"Set{kind}")(**by, key="k", value=1),
        getattr(comms, f"Delete{kind}")(**by, key="k"),
        getattr(comms, f"Clear{kind}")(**by),
    ]


class SyncOnly:
    """A backend of somebody else, with no coroutine at all."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        self.called.append("serialize")
        return f"ref-{value}"

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        self.called.append("deserialize")
        return stored.removeprefix("ref-")

    def delete(self, scope: Any, key: str) -> None:
        self.called.append("delete")

    def clear(self, scope: Any) -> None:
        self.called.append("clear")


async def test_a_backend_with_synchronous_hooks_alone_is_served(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = SyncOnly()
    use(monkeypatch, backend)
    state = AsyncStateStore(TASK)
    await state.aset("k", "v")
    supervisor.response = comms.TaskStateStoreResult(value={REF_MARKER: "ref-v"})
    assert await state.aget("k") == "v"
    await state.adelete("k")
    await state.aclear()
    assert backend.called == ["serialize", "deserialize", "delete", "clear"]
    assert supervisor.asked[0].value == {REF_MARKER: "ref-v"}


class Counted(Supervisor):
    """Lets no message be answered before as many wait as ever will, and records how many."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Future[None]] = []
        self.most = 0

    async def asend(self, message: Any) -> Any:
        self.asked.append(message)
        self.waiting.append(asyncio.get_running_loop().create_future())
        self.most = max(self.most, len(self.waiting))
        await self.waiting[-1]

    async def answer(self) -> None:
        """Answer all that wait, again and again, each time once no further message comes."""
        while True:
            for _ in range(5):
                await asyncio.sleep(0)
            waiting, self.waiting = self.waiting, []
            for future in waiting:
                future.set_result(None)


@pytest.mark.parametrize(("limit", "most"), [(5, 5), (None, 24)], ids=["of the backend", "without a backend"])
@pytest.mark.parametrize("operation", ["aget_many", "aset_many", "adelete_many"])
async def test_operations_on_many_keys_begin_only_so_many_at_once(
    monkeypatch: pytest.MonkeyPatch, operation: str, limit: int | None, most: int
) -> None:
    # With everything inline, so that the supervisor alone is waited for; its objects are deleted from an empty store.
    settings = Settings(url="memory://bounded", max_concurrency=limit or 1, inline_threshold=100)
    use(monkeypatch, AsyncStateBackend(settings) if limit else None)
    keys = [f"k{i}" for i in range(60)]
    double = Counted()
    with set_supervisor_comms(double):
        answering = asyncio.create_task(double.answer())
        call = getattr(AsyncStateStore(TASK), operation)
        await call(dict.fromkeys(keys, 1) if operation == "aset_many" else keys)
        answering.cancel()
    assert {message.key for message in double.asked} == set(keys)
    assert len(double.asked) == len(keys)
    if operation == "adelete_many" and limit:
        # Of those that the supervisor has answered, some are still in the store.
        assert double.most <= most
    else:
        assert double.most == most


async def test_a_reference_without_a_backend_is_warned_of(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    stored: Any = {REF_MARKER: "s3://state/v1/task/a/b/c/-1/worker/k"}
    supervisor.response = comms.TaskStateStoreResult(value=stored)
    with caplog.at_level(logging.WARNING, "async_state"):
        assert await AsyncStateStore(TASK).aget("k") == stored
    assert "[workers] state_store_backend" in caplog.text


async def test_a_supervisor_without_asend_is_asked_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``dag.test()``: see test_accessors.py for the real one."""
    use(monkeypatch, None)
    threads = []

    def send(message: Any) -> Any:
        threads.append(asyncio.get_running_loop())
        return comms.TaskStateStoreResult(value=1)

    with set_supervisor_comms(SimpleNamespace(send=send)):
        assert await AsyncStateStore(TASK).aget("k") == 1
    assert threads == [asyncio.get_running_loop()]
