"""The I/O thread as its callers on threads and event loops of this process see it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import sys
import threading
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextvars import ContextVar
from functools import partial

import anyio
import greenback
import pytest
from airflow.sdk.state import BaseStoreBackend, TaskScope
from pydantic import JsonValue

from async_state import AsyncStateBackend, Settings, iothread
from async_state.errors import StoreUnavailableError
from tests.programs.wire import PATIENCE, Hold, Relay, relay

pytestmark = pytest.mark.anyio


@pytest.fixture
def wire(rclone_url: str) -> Iterator[Relay]:
    """The way to a server that keeps connections, as S3 does and moto's does not."""
    with relay(rclone_url) as made:
        yield made


@pytest.fixture
def settings(wire: Relay) -> Settings:
    url = f"s3://state/{uuid.uuid4().hex}"
    return Settings(url=url, endpoint_url=wire.url, max_concurrency=4, timeout=2 * PATIENCE)


@pytest.fixture
def backend(settings: Settings) -> Iterator[AsyncStateBackend]:
    with AsyncStateBackend(settings) as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def release(held: Hold, waiting: int = 1) -> None:
    """Release what is held once so many wait: which this loop does in time only if nothing blocks it."""
    await until(lambda: held.waiting == waiting)
    held.released.set()


async def tasks_of_io_loop() -> int:
    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return await iothread.arun(count)


async def until_tasks_of_io_loop(count: int) -> None:
    with anyio.fail_after(PATIENCE):
        while await tasks_of_io_loop() != count:
            await asyncio.sleep(0.001)


# Calls on the I/O thread itself.


def test_a_synchronous_method_refuses_the_io_thread(backend: AsyncStateBackend, task: TaskScope) -> None:
    async def call() -> str | None:
        return backend.get(task, "row")

    with pytest.raises(RuntimeError, match="await its coroutine instead"):
        iothread.run(iothread.arun, call)


def test_a_coroutine_method_works_on_the_io_thread(backend: AsyncStateBackend, task: TaskScope) -> None:
    async def call() -> str | None:
        await backend.aset(task, "row", "there")
        return await backend.aget(task, "row")

    assert iothread.run(iothread.arun, call) == "there"


# A synchronous hook on the thread of a running loop.


async def test_a_hook_in_a_task_with_a_portal_leaves_the_loop_running(
    wire: Relay, backend: AsyncStateBackend, task: TaskScope
) -> None:
    await greenback.ensure_portal()
    for number in range(2):
        with wire.hold(rb"PUT", seconds=10) as held:
            releasing = asyncio.create_task(release(held))
            ref = backend.serialize_task_state_store_to_ref(value=number, key="value", scope=task)
            await releasing
        assert not held.overdue
        with wire.hold(rb"GET", seconds=10) as held:
            releasing = asyncio.create_task(release(held))
            assert backend.deserialize_task_state_store_from_ref(ref) == number
            await releasing
        assert not held.overdue


async def test_a_hook_in_a_task_without_a_portal_leaves_one_behind(
    wire: Relay, backend: AsyncStateBackend, task: TaskScope
) -> None:
    async def task_code() -> JsonValue:
        assert not iothread.awaits_in_place()
        ref = backend.serialize_task_state_store_to_ref(value=[1], key="value", scope=task)
        assert backend.deserialize_task_state_store_from_ref(ref) == [1], "the second in a row waits too"
        await asyncio.sleep(0)
        assert iothread.awaits_in_place()
        return backend.deserialize_task_state_store_from_ref(ref)

    running = asyncio.create_task(task_code())
    await asyncio.sleep(0)
    assert greenback.has_portal(running)
    with wire.hold(rb"GET", seconds=10) as held:
        await release(held)
        assert await running == [1], "the task's outcome is its own"
    assert not held.overdue


async def test_no_portal_is_left_behind_where_airflow_forbids_them(
    backend: AsyncStateBackend, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_DISABLE_GREENBACK_PORTAL", "true")

    async def task_code() -> None:
        backend.set(task, "row", "set")
        await asyncio.sleep(0)
        assert not iothread.awaits_in_place()
        assert backend.get(task, "row") == "set"

    await asyncio.create_task(task_code())


async def test_hooks_of_several_tasks_wait_at_the_same_time(
    wire: Relay, backend: AsyncStateBackend, task: TaskScope
) -> None:
    async def task_code(number: int) -> JsonValue:
        backend.serialize_task_state_store_to_ref(value=number, key=f"first-{number}", scope=task)
        await asyncio.sleep(0)
        ref = backend.serialize_task_state_store_to_ref(value=number, key=f"second-{number}", scope=task)
        return backend.deserialize_task_state_store_from_ref(ref)

    with wire.hold(rb"PUT \S+second", seconds=10) as held:
        *answers, _ = await asyncio.gather(*map(task_code, range(4)), release(held, waiting=4))
    assert answers == [0, 1, 2, 3]
    assert not held.overdue


async def test_a_hook_in_a_callback_of_the_loop_waits(backend: AsyncStateBackend, task: TaskScope) -> None:
    answered: asyncio.Future[JsonValue] = asyncio.get_running_loop().create_future()

    def callback() -> None:
        ref = backend.serialize_task_state_store_to_ref(value=[1], key="value", scope=task)
        answered.set_result(backend.deserialize_task_state_store_from_ref(ref))

    asyncio.get_running_loop().call_soon(callback)
    assert await answered == [1]


async def test_a_hook_that_waits_in_place_can_be_cancelled(
    wire: Relay, backend: AsyncStateBackend, task: TaskScope
) -> None:
    await backend.aset(task, "held", "kept")

    async def task_code() -> str | None:
        await greenback.ensure_portal()
        return backend.get(task, "held")

    with wire.hold(rb"GET") as held:
        running = asyncio.create_task(task_code())
        await until(lambda: held.waiting == 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.to_thread(wire.wait_for_hang_up, 1)
    assert backend.get(task, "held") == "kept"


# Cancelling.

CancelAs = Callable[[Awaitable[object], asyncio.Event], Awaitable[None]]


async def cancel_the_task(operation: Awaitable[object], now: asyncio.Event) -> None:
    running = asyncio.ensure_future(operation)
    await now.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def cancel_the_scope(operation: Awaitable[object], now: asyncio.Event) -> None:
    async def cancel() -> None:
        await now.wait()
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        await operation
    assert group.cancel_scope.cancelled_caught


async def asyncio_timeout(operation: Awaitable[object], now: asyncio.Event) -> None:
    async def expire() -> None:
        await now.wait()
        timeout.reschedule(asyncio.get_running_loop().time())

    if sys.version_info >= (3, 11):
        expiring = asyncio.create_task(expire())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                await operation
        await expiring


async def asyncio_wait_for(operation: Awaitable[object], now: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    clock = loop.time

    async def expire() -> None:
        await now.wait()
        loop.time = lambda: clock() + PATIENCE  # type: ignore[method-assign]

    expiring = asyncio.create_task(expire())
    try:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(operation, PATIENCE)
    finally:
        loop.time = clock  # type: ignore[method-assign]
    await expiring


CANCELLATIONS: list[CancelAs] = [cancel_the_task, cancel_the_scope, asyncio_wait_for]
if sys.version_info >= (3, 11):
    CANCELLATIONS.append(asyncio_timeout)


@pytest.mark.parametrize("cancel_as", CANCELLATIONS)
async def test_cancelling_an_await_cancels_the_request(
    wire: Relay, backend: AsyncStateBackend, task: TaskScope, cancel_as: CancelAs
) -> None:
    await backend.aset(task, "held", "kept")
    tasks = await tasks_of_io_loop()
    with wire.hold(rb"GET") as held:
        arrived = asyncio.Event()

        async def watch() -> None:
            await until(lambda: held.waiting == 1)
            arrived.set()

        watching = asyncio.create_task(watch())
        await cancel_as(backend.aget(task, "held"), arrived)
        await watching
        await asyncio.to_thread(wire.wait_for_hang_up, 1)
        await until_tasks_of_io_loop(tasks)
        assert not held.overdue
    assert await backend.aget(task, "held") == "kept"


async def test_cancelling_at_once_leaves_nothing(backend: AsyncStateBackend, task: TaskScope) -> None:
    await backend.aset(task, "row", "kept")
    tasks = await tasks_of_io_loop()
    operations = [asyncio.create_task(backend.aget(task, "row")) for _ in range(20)]
    await asyncio.sleep(0)
    for operation in operations:
        operation.cancel()
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*operations, return_exceptions=True))
    await until_tasks_of_io_loop(tasks)
    assert await backend.aget(task, "row") == "kept"


# The way from loop to loop.


@contextlib.contextmanager
def io_loop_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Keep the I/O loop from doing anything in the block, and yield a list of the wakes that it is sent meanwhile."""
    loop = iothread._io().loop
    wakes: list[object] = []
    wake = loop.call_soon_threadsafe
    done = threading.Event()
    wake(done.wait, PATIENCE)

    def noted(callback: Callable[..., object], *args: object) -> asyncio.Handle:
        # Not those of stores that are collected meanwhile.
        if isinstance(getattr(callback, "__self__", None), iothread._Bridge):
            wakes.append(callback)
        return wake(callback, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "call_soon_threadsafe", noted)
        try:
            yield wakes
        finally:
            done.set()


async def test_operations_that_start_together_wake_the_thread_once_and_start_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []
    iterations: list[int] = []
    iteration = 0

    async def count_iterations() -> None:
        nonlocal iteration
        while True:
            iteration += 1
            await asyncio.sleep(0)

    async def begin(number: int) -> None:
        begun.append(number)
        iterations.append(iteration)

    async def start_counting() -> asyncio.Task[None]:
        return asyncio.create_task(count_iterations())

    async def stop(counting: asyncio.Task[None]) -> None:
        counting.cancel()

    counting = await iothread.arun(start_counting)
    with io_loop_that_is_busy(monkeypatch) as wakes:
        operations = [asyncio.create_task(iothread.arun(begin, number)) for number in range(50)]
        await asyncio.sleep(0)
        assert len(wakes) == 1
    await asyncio.gather(*operations)
    await iothread.arun(stop, counting)
    assert begun == list(range(50))
    # One an iteration; and none waits for another, or for a second wake of the thread, in between.
    assert [later - iterations[0] for later in iterations] == list(range(50))


async def test_operations_that_cross_together_keep_their_callers_contexts() -> None:
    # Airflow's triggerer tells by it which trigger a log line belongs to.
    caller: ContextVar[int] = ContextVar("caller")

    async def read() -> int:
        return caller.get()

    async def call(number: int) -> int:
        caller.set(number)
        return await iothread.arun(read)

    assert await asyncio.gather(*(call(number) for number in range(10))) == list(range(10))


@pytest.mark.parametrize("follows", [True, False], ids=["a cancellation follows", "none follows"])
async def test_an_operation_that_is_cancelled_on_its_way_never_begins(
    follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    async def begin(number: int) -> None:
        begun.append(number)

    with io_loop_that_is_busy(monkeypatch):
        operations = [asyncio.create_task(iothread.arun(begin, number)) for number in range(3)]
        await asyncio.sleep(0)
        operations[1].cancel()
        if follows:
            await asyncio.wait(operations[1:2])
    # On this loop still nothing happens, so that nothing can follow what is on its way.
    call = asyncio.run_coroutine_threadsafe(anyio.sleep(0), iothread._io().loop)
    call.result(PATIENCE)
    await asyncio.wait(operations)
    assert operations[1].cancelled()
    assert begun == [0, 2]


class _InterruptError(BaseException):
    """As a signal handler raises it."""


async def test_a_call_that_is_made_before_its_sender_has_looked_whether_to_wake_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = iothread._io().loop
    there, _ = iothread._io().bridges(asyncio.get_running_loop())

    class MadeAtOnce(deque[Callable[[], object]]):
        def append(self, call: Callable[[], object]) -> None:
            super().append(call)
            # As one that is made with those before it.
            made = threading.Event()
            loop.call_soon_threadsafe(there._make_next_call)
            loop.call_soon_threadsafe(made.set)
            assert made.wait(PATIENCE)

    with monkeypatch.context() as patched:
        patched.setattr(there, "_calls", MadeAtOnce())
        await iothread.arun(anyio.sleep, 0)
    with anyio.fail_after(PATIENCE):
        await iothread.arun(anyio.sleep, 0)


async def test_a_signal_that_comes_before_the_loop_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler sends a call, waits for that, and raises."""
    loop = iothread._io().loop
    there, _ = iothread._io().bridges(asyncio.get_running_loop())
    made: list[str] = []
    handled = threading.Event()

    def of_handler() -> None:
        made.append("the handler's")
        handled.set()

    with monkeypatch.context() as patched:

        def interrupted(callback: Callable[..., object], *args: object) -> asyncio.Handle:
            patched.undo()
            there.send(of_handler)
            assert handled.wait(PATIENCE)
            raise _InterruptError

        patched.setattr(loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(_InterruptError):
            there.send(lambda: made.append("the interrupted one's"))
    with anyio.fail_after(PATIENCE):
        await iothread.arun(anyio.sleep, 0)
    assert made == ["the interrupted one's", "the handler's"]


async def test_calls_to_a_loop_that_is_closed_are_not_kept() -> None:
    closed = asyncio.new_event_loop()
    closed.close()
    _, back = iothread._io().bridges(closed)
    calls = [partial(print, number) for number in range(2)]
    left = [weakref.ref(call) for call in calls]
    while calls:
        back.send(calls.pop())
    gc.collect()
    assert [call() for call in left] == [None, None]


def test_a_loop_that_is_closed_before_the_answer_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    begun, leave, left = threading.Event(), threading.Event(), threading.Event()

    async def linger() -> None:
        # Past its cancelling, until the loop that waited is closed.
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE)
        await asyncio.to_thread(leave.wait, PATIENCE)
        asyncio.current_task().add_done_callback(lambda _: left.set())  # type: ignore[union-attr]

    async def wait_and_give_up() -> None:
        waiting = asyncio.create_task(iothread.arun(linger))
        # A call that is given up before it begins never does.
        while not begun.is_set():
            await asyncio.sleep(0.001)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    loop = asyncio.new_event_loop()
    loop.run_until_complete(wait_and_give_up())
    loop.close()
    leave.set()
    assert left.wait(PATIENCE)
    assert asyncio.run(iothread.arun(anyio.sleep, 0)) is None
    assert caplog.records == []


# The bound on operations in flight.


async def test_a_burst_reaches_the_io_loop_and_the_server_in_slots(
    wire: Relay, backend: AsyncStateBackend, task: TaskScope
) -> None:
    assert await backend.aget(task, "row-0") is None
    tasks = await tasks_of_io_loop()
    with wire.hold(rb"PUT") as held:
        burst = asyncio.gather(*(backend.aset(task, f"row-{n}", str(n)) for n in range(200)))
        await until(lambda: held.waiting == 4)
        assert await tasks_of_io_loop() == tasks + 4
        assert held.waiting == 4
        held.released.set()
        await burst
    assert wire.opened <= 4
    assert await asyncio.gather(*(backend.aget(task, f"row-{n}") for n in (0, 99, 199))) == ["0", "99", "199"]


async def test_cancelled_operations_give_their_slots_back(
    wire: Relay, backend: AsyncStateBackend, task: TaskScope
) -> None:
    with wire.hold(rb"PUT") as held:
        burst = [asyncio.create_task(backend.aset(task, f"row-{n}", "lost")) for n in range(8)]
        await until(lambda: held.waiting == 4)
        for operation in burst:
            operation.cancel()
        await asyncio.wait(burst)
    await asyncio.gather(*(backend.aset(task, f"row-{n}", "set") for n in range(8)))
    assert await backend.aget(task, "row-7") == "set"


# What is kept open on the I/O loop.


def test_closing_ends_connections_and_the_next_use_opens_new_ones(
    wire: Relay, backend: AsyncStateBackend, task: TaskScope
) -> None:
    backend.set(task, "row", "kept")
    assert (wire.opened, wire.hung_up) == (1, 0)
    backend.close()
    wire.wait_for_hang_up(1)
    backend.close()
    assert backend.get(task, "row") == "kept"
    assert wire.opened == 2


class Owner:
    """Can be referred to weakly, as a store can and a bare object can't."""


async def test_a_resource_is_opened_once_and_after_a_cancelled_opening_again() -> None:
    owner = Owner()
    opened: list[str] = []
    opening = threading.Event()

    @contextlib.asynccontextmanager
    async def open_() -> AsyncIterator[str]:
        opened.append("opened")
        if len(opened) == 1:
            opening.set()
            await anyio.sleep_forever()
        await asyncio.sleep(0)
        yield "resource"
        opened.append("closed")

    async def get() -> str:
        return await iothread.resource(owner, open_)

    first = asyncio.create_task(iothread.arun(get))
    await asyncio.to_thread(opening.wait, PATIENCE)
    others = [asyncio.create_task(iothread.arun(get)) for _ in range(3)]
    first.cancel()
    assert await asyncio.gather(*others) == ["resource"] * 3
    assert opened == ["opened", "opened"]
    await iothread.arun(iothread.release, owner)
    assert opened == ["opened", "opened", "closed"]


async def test_a_resource_is_closed_once_its_owner_is_gone() -> None:
    events: list[str] = []
    closed = threading.Event()

    @contextlib.asynccontextmanager
    async def open_() -> AsyncIterator[None]:
        yield
        events.append(threading.current_thread().name)
        closed.set()

    async def use(owner: Owner) -> None:
        await iothread.resource(owner, open_)

    tasks, others = await tasks_of_io_loop(), set(iothread._io().open)
    for _ in range(20):
        owner = Owner()
        await iothread.arun(use, owner)
        del owner
        gc.collect()
        assert await asyncio.to_thread(closed.wait, PATIENCE)
        closed.clear()
    assert events == [iothread.THREAD_NAME] * 20
    await until_tasks_of_io_loop(tasks)
    assert iothread._io().open <= others


async def test_a_resource_that_can_not_be_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @contextlib.asynccontextmanager
    async def open_() -> AsyncIterator[None]:
        yield
        raise OSError("broken")

    async def use(owner: Owner) -> None:
        await iothread.resource(owner, open_)

    await iothread.arun(use, Owner())
    gc.collect()
    await until(lambda: bool(caplog.records))
    assert "were not closed" in caplog.text


# Errors.


async def cancelled_from_inside() -> None:
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(0)


async def test_a_cancellation_that_nobody_asked_for_is_an_error() -> None:
    with pytest.raises(StoreUnavailableError, match="did not cancel it"):
        await iothread.arun(cancelled_from_inside)
    with pytest.raises(StoreUnavailableError, match="did not cancel it"):
        await asyncio.to_thread(lambda: iothread.run(iothread.arun, cancelled_from_inside))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
async def test_every_error_reaches_the_caller_and_not_the_io_loop(error: type[BaseException]) -> None:
    async def fail() -> None:
        raise error("said")

    async def catch() -> str:
        try:
            await iothread.arun(fail)
        except error as e:
            return str(e)
        return ""

    assert await catch() == "said"
    assert await asyncio.to_thread(iothread.run, catch) == "said"


def test_a_synchronous_call_refuses_what_only_a_loop_can_wait_for() -> None:
    async def sleep() -> None:
        await Sleep()

    class Sleep:
        def __await__(self) -> Generator[None, None, None]:
            yield

    with pytest.raises(RuntimeError, match="where no event loop runs"):
        iothread.run(sleep)


def test_a_blocking_caller_does_its_own_part_on_its_own_thread() -> None:
    async def where() -> str:
        return threading.current_thread().name

    async def operation() -> tuple[str, str, str]:
        return await where(), await iothread.arun(where), await where()

    here = threading.current_thread().name
    assert iothread.run(operation) == (here, iothread.THREAD_NAME, here)


async def test_blocking_does_not_leak_to_other_tasks_of_the_loop() -> None:
    seen: list[bool] = []

    async def look() -> None:
        seen.append(iothread.blocks())

    async def operation() -> None:
        asyncio.get_running_loop().call_soon(lambda: seen.append(iothread.blocks()))
        other = asyncio.create_task(look())
        others.append(other)
        seen.append(iothread.blocks())
        await iothread.arun(anyio.sleep, 0)

    others: list[asyncio.Task[None]] = []
    iothread.run(operation)
    await others[0]
    assert seen == [True, False, False]


async def test_a_resource_is_refused_elsewhere_than_on_the_io_thread() -> None:
    with pytest.raises(RuntimeError, match="I/O thread only"):
        await iothread.resource(object(), lambda: contextlib.nullcontext())


# Both ways to call the backend.

PAIRS = [
    "get",
    "set",
    "delete",
    "clear",
    "cleanup",
    "serialize_task_state_store_to_ref",
    "deserialize_task_state_store_from_ref",
    "serialize_asset_state_store_to_ref",
    "deserialize_asset_state_store_from_ref",
    "purge_task_state",
    "purge_asset_state",
    "purge_many",
    "close",
]


@pytest.mark.parametrize("name", PAIRS)
def test_synchronous_and_coroutine_methods_have_the_same_signature(name: str) -> None:
    synchronous, coroutine = getattr(AsyncStateBackend, name), getattr(AsyncStateBackend, f"a{name}")
    assert inspect.iscoroutinefunction(coroutine)
    assert not inspect.iscoroutinefunction(synchronous)
    assert inspect.signature(synchronous) == inspect.signature(coroutine)


def test_every_method_is_one_of_a_pair() -> None:
    own = {name for name in vars(AsyncStateBackend) if not name.startswith("_")}
    assert own == {*PAIRS, *(f"a{name}" for name in PAIRS)}


@pytest.mark.parametrize("name", [name for name in dir(BaseStoreBackend) if name in PAIRS or name[1:] in PAIRS])
def test_signatures_agree_with_airflow(name: str) -> None:
    def shape(cls: type) -> list[tuple[str, object, object]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, name)).parameters.values()]

    assert shape(AsyncStateBackend) == shape(BaseStoreBackend)
