"""The one event loop that does I/O in this process.

It runs on a daemon thread of its own, started at first use. `run` brings a coroutine to it from synchronous code,
`arun` from any other event loop. What is bound to that loop (S3 clients, their sockets) is kept by `resource`.

Why like this, and not on the caller's loop or with anyio's portals:

* A trigger's loop is shared with thousands of others: building a client on it stalls them all.
* A portal of ``start_blocking_portal`` left open hangs the interpreter's exit, and cancelling a call through any anyio
  portal blocks the canceller until the portal's loop answers; `asyncio.run_coroutine_threadsafe` does not.
* Airflow forks a process for each task. A thread does not survive that, so everything here belongs to one process id;
  a forked process starts afresh and never touches what it inherited, not even to close it: the epoll descriptor of the
  inherited loop is still the parent's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ParamSpec, TypeVar

import anyio
import greenback

T = TypeVar("T")
P = ParamSpec("P")


class _IoThread:
    """The thread, its loop, and what is bound to that loop."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self.resources: dict[Hashable, tuple[AsyncExitStack, Any]] = {}
        self.thread = threading.Thread(target=self._main, name="async_state-io", daemon=True)
        self.thread.start()

    def _main(self) -> None:
        # Never read: after a fork this frame is dead but never unwound, so in the child it keeps `resources` from being
        # finalized, which would close sockets and warn about it.
        pinned = self.resources  # noqa: F841
        anyio.run(self._serve)

    async def _serve(self) -> None:
        self.opening = asyncio.Lock()
        self.loop.set_result(asyncio.get_running_loop())
        await anyio.sleep_forever()


_current: _IoThread | None = None
_starting = threading.Lock()
# Held by whoever imports modules on the I/O thread: a fork in the middle of an import would leave the child with a
# module lock that nobody releases.
_importing = threading.RLock()


def _before_fork() -> None:
    _importing.acquire()
    _starting.acquire()


def _after_fork_in_parent() -> None:
    _starting.release()
    _importing.release()


def _after_fork_in_child() -> None:
    global _current, _starting, _importing
    _starting, _importing = threading.Lock(), threading.RLock()
    _current = None


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _io() -> _IoThread:
    global _current
    io = _current
    if io is None or io.pid != os.getpid():
        with _starting:
            io = _current
            if io is None or io.pid != os.getpid():
                io = _current = _IoThread()
    return io


def _on_io_thread() -> bool:
    io = _current
    return io is not None and io.thread.ident == threading.get_ident() and io.pid == os.getpid()


def run(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the coroutine function on the I/O thread and wait for its result.

    For synchronous callers on any thread. On a thread whose event loop is running (Airflow's asynchronous accessors
    call synchronous hooks there), the loop keeps running where the current task has a greenback portal, as Airflow's
    triggerer gives to triggers. Where it has none, this waits, since the I/O thread needs nothing of the caller's
    loop, and leaves the task with a portal, so that its next call does not block the loop.

    Raises:
        RuntimeError: called on the I/O thread itself, which would wait for itself.
        KeyboardInterrupt: the wait was interrupted; the operation is cancelled.
    """
    if _on_io_thread():
        raise RuntimeError(
            "a synchronous state-store method was called on async_state's own I/O thread, where it would wait for "
            "itself for ever; await its coroutine instead"
        )
    if awaits_in_place():
        # The call itself, and not its hop: what it does before the hop belongs on this loop.
        return greenback.await_(function(*args, **kwargs))
    if (task := _current_task()) is not None:
        # Best effort: a task of another event loop implementation may refuse it, and it only helps the next call.
        with contextlib.suppress(Exception):
            greenback.bestow_portal(task)
    loop = _io().loop.result()
    future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def awaits_in_place() -> bool:
    """Tell whether `run`, called here and now, would let the running loop go on."""
    return _current_task() is not None and greenback.has_portal()


async def arun(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the coroutine function on the I/O thread and await its result without blocking the running loop.

    Cancelling the wait cancels the call. On the I/O thread itself the call is made in place.
    """
    if _on_io_thread():
        return await function(*args, **kwargs)
    loop = await _wrapped(_io().loop)
    return await _wrapped(asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop))


async def resource(owner: Hashable, open_: Callable[[], AbstractAsyncContextManager[T]]) -> T:
    """Return what ``owner`` keeps open on the I/O loop, opening it at first use.

    Parameters:
        owner: whose resource it is; `release` closes it.
        open_: makes the context manager that opens it; called at most once for ``owner`` at a time.

    Raises:
        RuntimeError: called elsewhere than on the I/O thread.
    """
    io = _current
    if io is None or not _on_io_thread():
        raise RuntimeError("a store works on async_state's I/O thread only; go through iothread.run or iothread.arun")
    if owner not in io.resources:
        async with io.opening:
            if owner not in io.resources:
                stack = AsyncExitStack()
                io.resources[owner] = (stack, await stack.enter_async_context(open_()))
    value: T = io.resources[owner][1]
    return value


async def release(owner: Hashable) -> None:
    """Close what ``owner`` keeps open on the I/O loop, if anything; its next use opens it anew."""
    if _on_io_thread() and _current is not None:
        stack, _ = _current.resources.pop(owner, (None, None))
        if stack is not None:
            await stack.aclose()


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Hold off forks of this process while modules are imported on the I/O thread."""
    with _importing:
        yield


class Slots:
    """At most so many operations at once for each event loop that asks, counted on that loop.

    The bound is on the caller's side of the hop, so that thousands of operations started at once wait where they
    are, and swamp neither their loop nor the I/O loop.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for the block."""
        loop = asyncio.get_running_loop()
        semaphore = self._of_loop.get(loop)
        if semaphore is None:
            semaphore = self._of_loop[loop] = asyncio.Semaphore(self._count)
        async with semaphore:
            yield


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop is running on this thread
        return None


def _wrapped(future: concurrent.futures.Future[T]) -> Awaitable[T]:
    return asyncio.wrap_future(future)
