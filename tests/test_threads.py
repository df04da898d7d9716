"""threads.py: blocking functions on threads that nothing waits for."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator

import pytest

from async_state import threads

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_idle_threads() -> Iterator[None]:
    """Those of other tests would be reused."""
    kept = threads._idle[:]
    threads._idle.clear()
    yield
    threads._idle.extend(kept)


async def test_the_result_comes_back() -> None:
    assert await threads.call(int, "ff", base=16) == 255


async def test_an_error_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        await threads.call(divmod, 1, 0)
    # The thread that raised it works on.
    assert await threads.call(divmod, 7, 2) == (3, 1)


async def test_idle_threads_are_reused() -> None:
    idents = {await threads.call(threading.get_ident) for _ in range(20)}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


async def test_a_thread_that_can_not_be_started_is_an_error_of_the_system() -> None:
    # No thread can have a stack of 64 TiB. This stands for a limit of threads, of which root has none.
    threading.stack_size(1 << 46)
    try:
        with pytest.raises(BlockingIOError) as caught:
            await threads.call(str)
    finally:
        threading.stack_size(0)
    assert "as many threads as the system allows" in str(caught.value.strerror)
    assert await threads.call(str) == ""


async def test_calls_overlap() -> None:
    barrier = threading.Barrier(5)
    await asyncio.gather(*(threads.call(barrier.wait, 30) for _ in range(5)))


async def test_the_context_is_the_callers() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")
    variable.set("caller's")
    assert await threads.call(variable.get) == "caller's"
    assert await threads.call(lambda: variable.set("thread's")) is not None
    assert variable.get() == "caller's"


async def test_a_call_that_blocks_can_be_given_up() -> None:
    release, ended = threading.Event(), threading.Event()

    def block() -> None:
        release.wait()
        ended.set()

    blocked = asyncio.create_task(threads.call(block))
    await asyncio.sleep(0)
    blocked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await blocked
    # Others do not wait for it, and its outcome bothers nobody.
    assert await threads.call(str, 1) == "1"
    release.set()
    assert await threads.call(ended.wait, 30)


async def test_nothing_of_a_call_outlives_it() -> None:
    class Argument:
        pass

    argument = Argument()
    freed = threading.Event()
    weakref.finalize(argument, freed.set)
    assert await threads.call(lambda it: type(it), argument) is Argument
    del argument
    gc.collect()
    # The thread drops it just after it has reported.
    assert freed.wait(30)


def test_a_loop_that_is_closed_is_left_alone() -> None:
    release, ended = threading.Event(), threading.Event()

    def block() -> None:
        release.wait()

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(threads.call(block), 0.01)

    asyncio.run(give_up())
    release.set()

    async def use() -> None:
        await threads.call(ended.set)

    asyncio.run(use())
    assert ended.is_set()


def test_an_idle_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_MAX_IDLE_SECONDS", 0.01)
    # Those that other tests have left wait with another limit until they are used.
    count = len(threads._idle) + 1
    all_at_once = threading.Barrier(count)

    def use() -> threading.Thread:
        all_at_once.wait(30)
        return threading.current_thread()

    async def use_all() -> list[threading.Thread]:
        return await asyncio.gather(*(threads.call(use) for _ in range(count)))

    for thread in asyncio.run(use_all()):
        thread.join(30)
        assert not thread.is_alive()
    assert threads._idle == []
    # And is not missed.
    assert asyncio.run(threads.call(str, 1)) == "1"


def test_a_forked_process_has_threads_of_its_own() -> None:
    asyncio.run(threads.call(str, 1))
    with warnings.catch_warnings():
        # Python 3.12 warns of forks in a process that has threads, which is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        # pytest must not see this process end.
        status = 1
        try:
            status = int(asyncio.run(threads.call(str, 2)) != "2")
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_interpreters_exit_does_not_wait() -> None:
    program = """
import asyncio, threading
from async_state import threads

async def main():
    asyncio.create_task(threads.call(threading.Event().wait))
    assert await threads.call(str, 1) == "1"

asyncio.run(main())
print("the end")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout == "the end\n"
    assert done.stderr == ""
