"""One bound for all threads and event loops of a process."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from async_state import iothread
from async_state.limiter import Limiter, Slot
from tests.programs.wire import PATIENCE

pytestmark = pytest.mark.anyio


class Counted:
    """Counts how many are in the block of a limiter at once."""

    def __init__(self, count: int) -> None:
        self.limiter = Limiter(count)
        self.now = self.most = 0
        self.done: list[int] = []
        self._lock = threading.Lock()

    def _change(self, by: int) -> None:
        with self._lock:
            self.now += by
            self.most = max(self.most, self.now)

    async def work(self, number: int = 0) -> None:
        async with self.limiter.slot(PATIENCE):
            self._change(1)
            try:
                await (iothread.arun(asyncio.sleep, 0) if iothread.blocks() else asyncio.sleep(0))
            finally:
                self._change(-1)
            self.done.append(number)


def assert_free(limiter: Limiter, count: int) -> None:
    """Assert that ``count`` slots are free: a limiter that is asked without patience tells at once."""

    async def take_all() -> None:
        held = [limiter.slot(0) for _ in range(count)]
        for slot in held:
            await slot.__aenter__()
        with pytest.raises(TimeoutError):
            await limiter.slot(0).__aenter__()
        for slot in held:
            await slot.__aexit__()

    iothread.run(take_all)


def in_fork(check: Callable[[], object]) -> int:
    """Return the status of a forked process in which ``check`` was called: 0 if it raised nothing."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            check()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def take(limiter: Limiter) -> Slot:
    """Take a free slot, in a process that has no event loop."""
    slot = limiter.slot(0)
    with pytest.raises(StopIteration):
        slot.__aenter__().send(None)
    return slot


def give_back(slot: Slot) -> None:
    with pytest.raises(StopIteration):
        slot.__aexit__().send(None)


def test_threads_and_loops_share_one_bound() -> None:
    counted = Counted(3)

    async def on_a_loop() -> None:
        await asyncio.gather(*(counted.work() for _ in range(40)))

    def on_a_thread() -> None:
        for _ in range(20):
            iothread.run(counted.work)

    threads = [threading.Thread(target=on_a_thread) for _ in range(6)]
    threads += [threading.Thread(target=lambda: asyncio.run(on_a_loop())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(counted.done), counted.now, counted.most) == (240, 0, 3)
    assert_free(counted.limiter, 3)


async def test_slots_are_given_in_the_order_in_which_they_are_asked_for() -> None:
    counted = Counted(1)
    async with counted.limiter.slot(PATIENCE):
        tasks = [asyncio.create_task(counted.work(number)) for number in range(20)]
        await asyncio.sleep(0)
        thread = threading.Thread(target=iothread.run, args=(counted.work, 20))
        thread.start()
        while len(counted.limiter._places) < 22:
            await asyncio.sleep(0.001)
    late = asyncio.create_task(counted.work(21))
    await asyncio.gather(*tasks, late)
    await asyncio.to_thread(thread.join)
    assert counted.done == list(range(22))


async def test_the_time_that_is_left_is_what_waiting_leaves() -> None:
    limiter = Limiter(1)
    async with limiter.slot(7.5) as left:
        assert left == 7.5
        with pytest.raises(TimeoutError):
            async with limiter.slot(0.01):
                pytest.fail("two at once")

        async def wait() -> float:
            async with limiter.slot(PATIENCE) as left:
                return left

        asked = time.monotonic()
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        began = time.monotonic()
        await asyncio.sleep(0.01)
        waited = time.monotonic() - began
    left = await waiting
    assert PATIENCE - (time.monotonic() - asked) <= left <= PATIENCE - waited
    assert_free(limiter, 1)


def test_a_blocking_caller_gives_up_in_time() -> None:
    limiter = Limiter(1)

    async def ask_twice() -> None:
        async with limiter.slot(1), limiter.slot(0.01):
            pytest.fail("two at once")

    with pytest.raises(TimeoutError):
        iothread.run(ask_twice)
    assert_free(limiter, 1)


def test_a_blocking_caller_waits_no_longer_than_it_may() -> None:
    limiter = Limiter(1)

    async def ask_often() -> None:
        async with limiter.slot(1):
            for _ in range(50):
                with pytest.raises(TimeoutError):
                    await limiter.slot(0).__aenter__()

    began = time.monotonic()
    iothread.run(ask_often)
    # Half a second for each would be too long.
    assert time.monotonic() - began < 25


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_slot_that_is_given_back_before_the_wait_begins_is_taken(
    blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = Limiter(1)
    blocks = iothread.blocks

    async def ask() -> None:
        held = limiter.slot(0)
        await held.__aenter__()

        def meanwhile() -> bool:
            give_back(held)
            return blocks()

        with monkeypatch.context() as patched:
            # It is asked between the place in the order and the wait.
            patched.setattr(iothread, "blocks", meanwhile)
            async with limiter.slot(0) as left:
                assert left == 0

    if blocking:
        await asyncio.to_thread(iothread.run, ask)
    else:
        await ask()
    assert_free(limiter, 1)


async def test_others_may_give_up_whenever_garbage_is_collected() -> None:
    """A collection may begin at any allocation, and lets other code run, or another thread."""
    limiter = Limiter(1)
    held = limiter.slot(0)
    await held.__aenter__()
    waiting = [limiter.slot(PATIENCE).__aenter__() for _ in range(50)]
    for coroutine in waiting:
        coroutine.send(None)

    def give_up(phase: str, _: object) -> None:
        if waiting:
            waiting.pop().close()

    before = gc.get_threshold()
    gc.callbacks.append(give_up)
    gc.set_threshold(1)
    try:
        await held.__aexit__()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(give_up)
    for coroutine in waiting:
        coroutine.close()
    assert_free(limiter, 1)


@pytest.mark.parametrize("steps", range(6))
async def test_whoever_is_cancelled_at_any_step_gives_the_slot_on(steps: int) -> None:
    counted = Counted(1)
    holding = asyncio.create_task(counted.work())
    waiting = [asyncio.create_task(counted.work(number)) for number in range(1, 5)]
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in (holding, *waiting[:3]):
        task.cancel()
    await asyncio.wait([holding, *waiting], timeout=PATIENCE)
    assert counted.done[-1] == 4
    assert_free(counted.limiter, 1)


def test_a_loop_that_was_closed_while_it_waited_strands_no_slot() -> None:
    counted = Counted(1)
    loop = asyncio.new_event_loop()

    async def stay() -> None:
        slot = counted.limiter.slot(PATIENCE)
        await slot.__aenter__()
        task = loop.create_task(counted.work())
        await asyncio.sleep(0)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        left.append((slot, task))

    left: list[tuple[object, object]] = []
    loop.run_until_complete(stay())
    loop.close()
    slot = left[0][0]
    iothread.run(slot.__aexit__, None, None, None)  # type: ignore[attr-defined]
    assert_free(counted.limiter, 1)


def test_no_loop_is_kept_once_its_operations_have_ended() -> None:
    counted = Counted(2)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def burst() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await asyncio.gather(*(counted.work() for _ in range(10)))

    for _ in range(5):
        asyncio.run(burst())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 5


def test_a_forked_process_starts_with_all_slots_free() -> None:
    limiter = Limiter(1)

    async def fork_while_held() -> int:
        async with limiter.slot(PATIENCE):
            return in_fork(lambda: take(limiter))

    assert iothread.run(fork_while_held) == 0
    assert_free(limiter, 1)


def test_so_does_one_that_is_forked_from_a_forked_process() -> None:
    limiter = Limiter(1)

    def fork_while_held() -> None:
        slot = take(limiter)
        assert in_fork(lambda: take(limiter)) == 0
        give_back(slot)

    assert in_fork(fork_while_held) == 0
    assert_free(limiter, 1)


def test_a_forked_process_finalizes_no_event_loop_of_its_parent() -> None:
    """To close it, it would take the loop's descriptors out of what the parent waits for."""
    limiter = Limiter(1)
    held = take(limiter)

    def begin_to_wait() -> weakref.ref[asyncio.AbstractEventLoop]:
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(limiter.slot(PATIENCE).__aenter__())
        loop.run_until_complete(asyncio.sleep(0))
        assert not waiting.done()
        return weakref.ref(loop)

    loop = begin_to_wait()

    def check() -> None:
        take(limiter)
        gc.collect()
        assert loop() is not None

    assert in_fork(check) == 0
    parents = loop()
    assert parents is not None
    (task,) = asyncio.all_tasks(parents)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        parents.run_until_complete(task)
    parents.close()
    give_back(held)
    assert_free(limiter, 1)
