"""What many callers at once may rely on, whether they are threads, processes or tasks of one event loop.

Keys do not touch each other: whatever happens to one, the others keep their values. For one key:

* A `get` gives one value that was set, whole, never parts of two.
* What a completed `set` has written is what every later `get` sees, in every thread and process, until the key is set
  or deleted again. A reader never sees an earlier value after a later one of the same writer.
* Of sets that overlap, one is the last; every `get` after all of them gives that one.
* A `delete` or `clear` that overlaps a `set` leaves the new value or none, never the one before. Airflow writes object
  and row one after the other, so that a row may be left whose object is gone, which reads as ``None``; or an object
  without a row, which nothing reads. The next `set` repairs either.

The file store and moto's server are what it is shown on. rclone's server writes in place, and is not.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.state import AssetScope, TaskScope

from async_state import AsyncStateBackend, Settings, iothread
from tests.programs.common import fork, outcome

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]

THREADS = 32
PROCESSES = 8
BURST = 10_000


@pytest.fixture(params=["file", "moto"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> SettingsOf:
    """Settings for each store in turn that keeps what it promises."""
    if request.param == "file":
        given = {"url": (tmp_path / "state").as_uri()}
    else:
        given = {"url": "s3://state/concurrency", "endpoint_url": request.getfixturevalue("moto").url}
    return lambda **options: Settings(**{**given, **options})


def store(backend: AsyncStateBackend, scope: TaskScope, key: str, value: Any) -> str:
    return backend.serialize_task_state_store_to_ref(value=value, key=key, scope=scope)


def resolve(backend: AsyncStateBackend, ref: str) -> Any:
    return backend.deserialize_task_state_store_from_ref(ref)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what each of so many threads does, which all begin at once."""
    together = threading.Barrier(count)

    def begin(number: int) -> Any:
        together.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


class Processes:
    """Forked processes that all begin at once, when told to."""

    def __init__(self, count: int, work: Callable[[int], None]) -> None:
        waiting, self._start = os.pipe()

        def begin(number: int) -> None:
            os.close(self._start)
            os.read(waiting, 1)
            work(number)

        self._pids = [fork(partial(begin, number), "task") for number in range(count)]
        os.close(waiting)

    def start(self) -> None:
        os.close(self._start)

    def end(self) -> None:
        assert [outcome(pid) for pid in self._pids] == ["fine"] * len(self._pids)


# Distinct keys.


def test_threads_on_distinct_keys_lose_nothing(opened: BackendOf, place: SettingsOf, task: TaskScope) -> None:
    backend = opened(place())

    def work(number: int) -> dict[str, Any]:
        refs = {store(backend, task, f"{number}/{n}", [number, n]): [number, n] for n in range(4)}
        store(backend, task, f"{number}/gone", "gone")
        backend.delete(task, f"{number}/gone")
        return refs

    done = in_threads(THREADS, work)
    assert {ref: resolve(backend, ref) for refs in done for ref in refs} == {
        k: v for refs in done for k, v in refs.items()
    }
    gone = store(backend, task, "gone", 0).removesuffix("gone")
    assert [resolve(backend, f"{gone}{number}%2Fgone") for number in range(THREADS)] == [None] * THREADS


def test_processes_on_distinct_keys_lose_nothing(opened: BackendOf, place: SettingsOf, task: TaskScope) -> None:
    backend = opened(place())
    # Used before the forks, as by a task that starts processes of its own.
    base = store(backend, task, "parent", "kept").removesuffix("parent")

    def work(number: int) -> None:
        for n in range(4):
            ref = store(backend, task, f"{number}-{n}", [number, n])
            assert resolve(backend, ref) == [number, n]
        backend.delete(task, f"{number}-0")

    processes = Processes(PROCESSES, work)
    processes.start()
    processes.end()
    for number in range(PROCESSES):
        found = [resolve(backend, f"{base}{number}-{n}") for n in range(4)]
        assert found == [None, [number, 1], [number, 2], [number, 3]]
    assert resolve(backend, f"{base}parent") == "kept"


# One key.

VERSIONS = 6


def version(writer: int, number: int) -> Any:
    """Return a value that shows if it is put together from two, and whose size is another each time."""
    return [[writer, number]] * (1 + 700 * ((writer + number) % 5))


class Reader:
    """Reads one key again and again while others write it."""

    def __init__(self, backend: AsyncStateBackend, ref: str) -> None:
        self._backend, self._ref = backend, ref
        self._seen: dict[int, int] = {}

    def read(self) -> tuple[int, int] | None:
        value = resolve(self._backend, self._ref)
        if value is None:
            return None
        writer, number = value[0]
        assert value == version(writer, number), "parts of two values"
        assert number >= self._seen.get(writer, 0), "an earlier value after a later one"
        self._seen[writer] = number
        return writer, number


def test_writers_in_many_processes_of_one_key(opened: BackendOf, place: SettingsOf, task: TaskScope) -> None:
    backends = [opened(place(compression=c, compression_threshold=100)) for c in ("none", "gzip", "zstd")]
    ref = store(backends[0], task, "k", version(0, 0))

    def work(writer: int) -> None:
        backend = backends[writer % len(backends)]
        reader = Reader(backend, ref)
        for number in range(VERSIONS):
            store(backend, task, "k", version(writer, number))
            assert reader.read() is not None

    reader = Reader(backends[0], ref)
    processes = Processes(PROCESSES, work)
    processes.start()
    for _ in range(PROCESSES * VERSIONS):
        assert reader.read() is not None
    processes.end()
    # The last value of one of them, since each wrote its others before that.
    last = reader.read()
    assert last in [(writer, VERSIONS - 1) for writer in range(PROCESSES)]
    assert [Reader(backend, ref).read() for backend in backends] == [last] * len(backends)


def test_writers_in_many_threads_of_one_key(opened: BackendOf, place: SettingsOf, task: TaskScope) -> None:
    backend = opened(place())
    ref = store(backend, task, "k", version(0, 0))

    def work(writer: int) -> None:
        reader = Reader(backend, ref)
        for number in range(3):
            store(backend, task, "k", version(writer, number))
            assert reader.read() is not None

    in_threads(THREADS, work)
    last = Reader(backend, ref).read()
    assert last in [(writer, 2) for writer in range(THREADS)]
    assert Reader(backend, ref).read() == last


@pytest.mark.parametrize("removal", ["delete", "clear", "purge"])
def test_a_delete_that_races_a_set_leaves_the_new_value_or_none(
    opened: BackendOf, place: SettingsOf, task: TaskScope, removal: str
) -> None:
    backend = opened(place())
    neighbour = store(backend, TaskScope(task.dag_id, task.run_id, task.task_id, 0), "k", "neighbour")
    ref = store(backend, task, "k", "before")
    removals: dict[str, Callable[[], None]] = {
        "delete": lambda: backend.delete(task, "k"),
        "clear": lambda: backend.clear(task),
        "purge": lambda: backend.purge_task_state(ref),
    }
    for n in range(10):

        def work(number: int, n: int = n) -> None:
            if number:
                removals[removal]()
            else:
                store(backend, task, "k", ["new", n])

        in_threads(2, work)
        left = resolve(backend, ref)
        assert left in (None, ["new", n])
        assert resolve(backend, ref) == left
        assert store(backend, task, "k", ["repaired", n]) == ref
        assert resolve(backend, ref) == ["repaired", n]
    assert resolve(backend, neighbour) == "neighbour"


def test_a_clear_that_races_sets_of_other_processes(opened: BackendOf, place: SettingsOf, task: TaskScope) -> None:
    backend = opened(place())
    base = store(backend, task, "parent", "before").removesuffix("parent")
    other = AssetScope(name=task.dag_id)
    kept = backend.serialize_asset_state_store_to_ref(value="kept", key="k", scope=other)

    def work(number: int) -> None:
        for n in range(4):
            store(backend, task, f"{number}-{n}", [number, n])

    processes = Processes(4, work)
    processes.start()
    for _ in range(4):
        backend.clear(task)
    processes.end()
    left = {(p, n): resolve(backend, f"{base}{p}-{n}") for p in range(4) for n in range(4)}
    assert all(value in (None, list(at)) for at, value in left.items())
    assert resolve(backend, f"{base}parent") is None
    backend.clear(task)
    assert {resolve(backend, f"{base}{p}-{n}") for p, n in left} == {None}
    assert resolve(backend, kept) == "kept"


def test_every_order_of_a_set_and_a_delete_with_the_database(task: TaskScope) -> None:
    """As the SDK's accessors make their steps: a set writes object and row, a delete removes row and object."""
    left = {}
    with AsyncStateBackend(Settings(url="memory://orders")) as backend:
        rows: dict[str, str] = {}

        def set_object() -> None:
            assert store(backend, task, "k", "new") == ref

        def set_row() -> None:
            rows["k"] = ref

        def delete_row() -> None:
            rows.pop("k", None)

        def delete_object() -> None:
            backend.delete(task, "k")

        for order in sorted(set(itertools.permutations("ssdd"))):
            rows["k"] = ref = store(backend, task, "k", "before")
            steps = {"s": iter([set_object, set_row]), "d": iter([delete_row, delete_object])}
            for who in order:
                next(steps[who])()
            left["".join(order)] = resolve(backend, rows["k"]) if rows else "no row"
            assert resolve(backend, store(backend, task, "k", "repaired")) == "repaired"
    assert left == {
        "ddss": "new",
        "dsds": None,
        "dssd": None,
        "sdds": None,
        "sdsd": None,
        "ssdd": "no row",
    }


# One loop.


async def tasks_of_io_loop() -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return await iothread.arun(count)


async def most_tasks_of_io_loop(done: asyncio.Event) -> int:
    most = 0
    while not done.is_set():
        most = max(most, await tasks_of_io_loop())
    return most


@pytest.mark.anyio
async def test_ten_thousand_operations_in_flight(task: TaskScope) -> None:
    async with AsyncStateBackend(Settings(url="memory://burst")) as backend:
        assert await backend.aget(task, "first") is None
        before, mine = await tasks_of_io_loop(), len(asyncio.all_tasks())

        async def operate(n: int) -> Any:
            ref = await backend.aserialize_task_state_store_to_ref(value=[n], key=f"k{n}", scope=task)
            return await backend.adeserialize_task_state_store_from_ref(ref)

        # Each sets and then gets, so that all of them are in flight as long as there are any.
        burst = [asyncio.create_task(operate(n)) for n in range(BURST)]
        assert await asyncio.gather(*burst) == [[n] for n in range(BURST)]
        assert await tasks_of_io_loop() == before
        assert len(asyncio.all_tasks()) == mine
        await backend.aclear(task)
        assert await asyncio.gather(*(backend.aget(task, f"k{n}") for n in range(BURST))) == [None] * BURST


@pytest.mark.anyio
async def test_a_burst_opens_no_more_connections_than_it_may(task: TaskScope) -> None:
    command = [sys.executable, "-m", "tests.programs.object_server"]
    server = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin is not None
    assert server.stdout is not None
    endpoint_url = f"http://127.0.0.1:{int(await server.stdout.readline())}"
    try:
        # With those of the I/O thread, which this may be the first to start.
        await tasks_of_io_loop()
        before = open_descriptors()
        async with AsyncStateBackend(
            Settings(url="s3://state/burst", endpoint_url=endpoint_url, max_concurrency=8)
        ) as backend:
            assert await backend.aget(task, "first") is None
            idle = await tasks_of_io_loop()
            watching = asyncio.create_task(most_tasks_of_io_loop(done := asyncio.Event()))
            values: dict[str, Any] = {f"k{n}": [n] for n in range(1000)}
            refs = await asyncio.gather(
                *(backend.aserialize_task_state_store_to_ref(value=v, key=k, scope=task) for k, v in values.items())
            )
            found = await asyncio.gather(*(backend.adeserialize_task_state_store_from_ref(ref) for ref in refs))
            assert found == list(values.values())
            await asyncio.gather(*(backend.apurge_task_state(ref) for ref in refs[:100]))
            done.set()
            # Beside its own, each may have some that connect.
            assert idle < await watching <= idle + 4 * 8
            assert await tasks_of_io_loop() == idle
        assert open_descriptors() == before
        most, _ = await server.communicate(b"\n")
        assert 1 < int(most) <= 8
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
