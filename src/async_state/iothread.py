"""The one event loop that does I/O in this process.

It runs on a daemon thread of its own, started at first use. `run` brings a coroutine to it from synchronous code,
`arun` from any other event loop. What is bound to that loop (S3 clients, their sockets) is kept by `resource`.

Why like this, and not on the caller's loop or with anyio's portals:

* A trigger's loop is shared with thousands of others: building a client on it stalls them all.
* A portal of ``start_blocking_portal`` left open hangs the interpreter's exit, and cancelling a call through any anyio
  portal blocks the canceller until the portal's loop answers.
* Airflow forks a process for each task. A thread does not survive that, so a forked process starts afresh, and never
  touches what it inherited, not even to close it: the epoll descriptor of the inherited loop is still the parent's. Nor
  may a fork find the I/O thread in the middle of anything: a module that it was importing would stay locked for ever.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import os
import selectors
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import copy_context
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import anyio
import greenback

#: As logs name it.
THREAD_NAME: Final = "async_state-io"

T = TypeVar("T")
P = ParamSpec("P")


class _Selector(selectors.DefaultSelector):
    """Lets forks happen while the I/O thread waits for events, and at no other time."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        _busy.release()
        try:
            return super().select(timeout)
        finally:
            _busy.acquire()


class _Bridge:
    """Takes calls from one loop to another: all that one iteration has together, and then one an iteration.

    Together, since each wakes the other thread, and two threads that wake each other by turns do little else. One at a
    time, so that an operation sends its request before the next one composes its own: of many that start at once, all
    would otherwise wait for all at every step, and for the same again when their answers come.
    """

    def __init__(self, target: asyncio.AbstractEventLoop) -> None:
        self._target = weakref.ref(target)
        self._sent: list[Callable[[], None]] = []
        self._arrived: deque[Callable[[], None]] = deque()

    def send(self, call: Callable[[], None]) -> None:
        """Have the call made on the other loop, in the order of these, and in the context that this is called in."""
        if not self._sent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._sent.append(partial(copy_context().run, call))

    def _flush(self) -> None:
        calls, self._sent = self._sent, []
        target = self._target()
        if target is not None:
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                target.call_soon_threadsafe(self._arrive, calls)

    def _arrive(self, calls: list[Callable[[], None]]) -> None:
        idle = not self._arrived
        self._arrived.extend(calls)
        if idle:
            self._make_next_call()

    def _make_next_call(self) -> None:
        call = self._arrived.popleft()
        if self._arrived:
            asyncio.get_running_loop().call_soon(self._make_next_call)
        call()


class _IoThread:
    """The thread, its loop, and what is bound to that loop.

    After a fork, the child's reference to it is dropped and nothing of it is finalized: the thread is gone, but its
    frames are never unwound, and they refer to all of this.
    """

    def __init__(self) -> None:
        # Made here, since a loop takes calls before it runs: nobody has to wait for the thread.
        self.loop = asyncio.SelectorEventLoop(_Selector())
        self.opening = asyncio.Lock()
        self.resources: dict[Hashable, tuple[AsyncExitStack, Any]] = {}
        self._bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[_Bridge, _Bridge]] = (
            weakref.WeakKeyDictionary()
        )
        # A daemon: it never ends, and the interpreter's exit must not wait for it.
        self.thread = threading.Thread(target=self._main, name=THREAD_NAME, daemon=True)
        self.thread.start()

    def bridges(self, caller: asyncio.AbstractEventLoop) -> tuple[_Bridge, _Bridge]:
        """Return the ways from the caller's loop to this one, and back."""
        bridges = self._bridges.get(caller)
        if bridges is None:
            bridges = self._bridges[caller] = _Bridge(self.loop), _Bridge(caller)
        return bridges

    def _main(self) -> None:
        with _busy:
            self.loop.run_until_complete(anyio.sleep_forever())


_current: _IoThread | None = None
_starting = threading.Lock()
# Held by the I/O thread unless it waits for events, and by whoever forks.
_busy = threading.RLock()


def _after_fork_in_child() -> None:
    global _current, _starting
    _current, _starting = None, threading.Lock()
    _busy.release()


# After `concurrent.futures.thread` has done so, which is imported above for this: functions are called in reverse order
# before a fork, and its lock must not be taken while the I/O thread may want it.
os.register_at_fork(before=_busy.acquire, after_in_parent=_busy.release, after_in_child=_after_fork_in_child)


def _io() -> _IoThread:
    global _current
    if _current is None:
        with _starting:
            if _current is None:
                _current = _IoThread()
    return _current


def _on_io_thread() -> bool:
    io = _current
    return io is not None and io.thread.ident == threading.get_ident()


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
    if (task := _current_task()) is not None and not _portals_forbidden():
        # Best effort: a task of another event loop implementation may refuse it, and it only helps the next call.
        with contextlib.suppress(Exception):
            greenback.bestow_portal(task)
    # Ctrl-C may come at any point after the I/O thread has the call, so by then it must be possible to cancel it.
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    try:
        _submit(function(*args, **kwargs), outcome)
        return outcome.result()
    except BaseException:
        outcome.cancel()
        raise


def awaits_in_place() -> bool:
    """Tell whether `run`, called here and now, would let the running loop go on."""
    return greenback.has_portal()


async def arun(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the coroutine function on the I/O thread and await its result without blocking the running loop.

    Cancelling the wait cancels the call. On the I/O thread itself the call is made in place.
    """
    if _on_io_thread():
        return await function(*args, **kwargs)
    io, caller = _io(), asyncio.get_running_loop()
    there, back = io.bridges(caller)
    outcome: asyncio.Future[T] = caller.create_future()
    task: asyncio.Task[T] | None = None

    def begin() -> None:
        nonlocal task
        if not outcome.cancelled():
            task = io.loop.create_task(function(*args, **kwargs))
            task.add_done_callback(lambda task: back.send(lambda: end(task)))

    def end(task: asyncio.Task[T]) -> None:
        error = _error(task)
        if outcome.cancelled():
            return
        if error is None:
            outcome.set_result(task.result())
        else:
            outcome.set_exception(error)

    def cancel() -> None:
        if task is not None:
            task.cancel()

    there.send(begin)
    try:
        return await outcome
    except asyncio.CancelledError:
        there.send(cancel)
        raise


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

    def one(self) -> asyncio.Semaphore:
        """Return what waits for a slot of this loop, and holds it for the block, in ``async with``."""
        loop = asyncio.get_running_loop()
        semaphore = self._of_loop.get(loop)
        if semaphore is None:
            semaphore = self._of_loop[loop] = asyncio.Semaphore(self._count)
        return semaphore


def _submit(call: Coroutine[Any, Any, T], outcome: concurrent.futures.Future[T]) -> None:
    """Start the call on the I/O thread. Cancelling ``outcome`` cancels it.

    What `asyncio.run_coroutine_threadsafe` does, but for a future that the caller has before the call begins.
    """
    loop = _io().loop

    def begin() -> None:
        task = loop.create_task(call)
        task.add_done_callback(end)
        outcome.add_done_callback(lambda _: outcome.cancelled() and loop.call_soon_threadsafe(task.cancel))

    def end(task: asyncio.Task[T]) -> None:
        error = _error(task)
        if not outcome.set_running_or_notify_cancel():
            return
        if error is None:
            outcome.set_result(task.result())
        else:
            outcome.set_exception(error)

    loop.call_soon_threadsafe(begin)


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _portals_forbidden() -> bool:
    # As Airflow's triggerer reads it.
    return os.environ.get("AIRFLOW_DISABLE_GREENBACK_PORTAL", "").lower() == "true"


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop is running on this thread
        return None


def blocks() -> bool:
    return False
