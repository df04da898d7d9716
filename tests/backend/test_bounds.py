"""What a backend keeps off event loops: operations beyond ``max_concurrency``, large values and blocking lookups."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import pytest
from airflow.sdk import Connection
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings, iothread
from async_state.testing import FakeS3, Request
from tests import servers

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]
Operation = Callable[[AsyncStateBackend, TaskScope, int], Coroutine[Any, Any, object]]

pytestmark = pytest.mark.anyio

CONCURRENCY = 4
STARTED = 60


def ref(task: TaskScope, number: int) -> str:
    return f"s3://state/s3/v1/task/{task.dag_id}/run/task/-1/worker/k{number}"


OPERATIONS: dict[str, Operation] = {
    "aget": lambda backend, task, n: backend.aget(task, f"k{n}"),
    "aset": lambda backend, task, n: backend.aset(task, f"k{n}", "1"),
    "adelete": lambda backend, task, n: backend.adelete(task, f"k{n}"),
    "aclear": lambda backend, task, n: backend.aclear(task),
    "aserialize": lambda backend, task, n: backend.aserialize_task_state_store_to_ref(value=n, key=f"k{n}", scope=task),
    "adeserialize": lambda backend, task, n: backend.adeserialize_task_state_store_from_ref(ref(task, n)),
    "apurge": lambda backend, task, n: backend.apurge_task_state(ref(task, n)),
    "apurge_many": lambda backend, task, n: backend.apurge_many([ref(task, n)]),
}


@contextlib.contextmanager
def held_back(server: FakeS3) -> Iterator[threading.Semaphore]:
    """Answer nothing until the block ends; the semaphore counts the requests that arrive."""
    arrived, answering = threading.Semaphore(0), threading.Event()

    def hold(_: Request) -> None:
        arrived.release()
        answering.wait()

    server.intercept = hold
    try:
        yield arrived
    finally:
        server.intercept = None
        answering.set()


async def tasks_of_io_loop() -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return await iothread.arun(count)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_operations_wait_for_their_slot_on_the_callers_side(
    s3_settings: SettingsOf, opened: BackendOf, moto: FakeS3, task: TaskScope, operation: Operation
) -> None:
    backend = opened(s3_settings(max_concurrency=CONCURRENCY))
    await backend.aget(task, "first")
    idle = await tasks_of_io_loop()
    with held_back(moto) as arrived:
        async with anyio.create_task_group() as group:
            for number in range(STARTED):
                group.start_soon(operation, backend, task, number)
            for _ in range(CONCURRENCY):
                await anyio.to_thread.run_sync(arrived.acquire)
            # All have been started when the first requests arrive. Beside its own task, each that runs may have a few
            # that send and receive.
            under_way = await tasks_of_io_loop()
            moto.intercept = None
            group.cancel_scope.cancel()
    assert idle < under_way <= idle + 4 * CONCURRENCY


@pytest.fixture
def packed_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads on which something was compressed or decompressed, in order."""
    threads: list[int] = []
    for name in ("compressobj", "compress", "decompressobj", "decompress"):
        function = getattr(zlib, name)

        def seen(*args: Any, function: Callable[..., Any] = function, **kwargs: Any) -> Any:
            threads.append(threading.get_ident())
            return function(*args, **kwargs)

        monkeypatch.setattr(zlib, name, seen)
    return threads


async def io_thread() -> int:
    async def ident() -> int:
        return threading.get_ident()

    return await iothread.arun(ident)


@pytest.mark.parametrize("waits", [True, False], ids=["method", "coroutine"])
@pytest.mark.parametrize(
    "value",
    [
        random.Random(1).randbytes(400_000).hex(),
        "repeated" * 100_000,
    ],
    ids=["random", "repeated"],
)
async def test_large_values_are_packed_off_the_io_loop(
    opened: BackendOf, task: TaskScope, packed_on: list[int], waits: bool, value: str
) -> None:
    """That loop serves every caller of the process."""
    backend = opened(Settings(url="memory://packed", compression="gzip", compression_threshold=1))
    text = json.dumps(value)
    if waits:
        await anyio.to_thread.run_sync(backend.set, task, "k", text)
        found = await anyio.to_thread.run_sync(backend.get, task, "k")
    else:
        await backend.aset(task, "k", text)
        found = await backend.aget(task, "k")
    assert found == text
    assert len(packed_on) == 2
    assert await io_thread() not in packed_on


async def test_coroutines_look_a_connection_up_without_blocking(
    monkeypatch: pytest.MonkeyPatch, s3_settings: SettingsOf, opened: BackendOf, moto: FakeS3, task: TaskScope
) -> None:
    """`Connection.get` waits for an answer of Airflow's supervisor, on whatever thread it is called."""
    called = []
    get = Connection.get.__func__  # type: ignore[attr-defined]
    async_get = Connection.async_get.__func__  # type: ignore[attr-defined]

    def seen(cls: type[Connection], conn_id: str) -> Connection:
        called.append("get")
        found: Connection = get(cls, conn_id)
        return found

    async def aseen(cls: type[Connection], conn_id: str) -> Connection:
        called.append("async_get")
        found: Connection = await async_get(cls, conn_id)
        return found

    monkeypatch.setattr(Connection, "get", classmethod(seen))
    monkeypatch.setattr(Connection, "async_get", classmethod(aseen))
    given = {"conn_type": "aws", "login": servers.ACCESS_KEY, "password": servers.SECRET_KEY}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_STATE", json.dumps(given))
    settings = s3_settings(aws_conn_id="aws_state")
    for operation in (OPERATIONS["aget"], OPERATIONS["aserialize"], OPERATIONS["aclear"]):
        await operation(opened(settings), task, 0)
    assert called == ["async_get"] * 3
    called.clear()
    await anyio.to_thread.run_sync(opened(settings).get, task, "k")
    assert called == ["get"]
