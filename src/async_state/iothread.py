"""The one event loop that does I/O in this process.

It runs on a daemon thread of its own, which the first use starts. `arun` is the hop: it calls a coroutine function
there. `run` is for blocking callers: it drives a coroutine on the caller's thread, and the hop inside it blocks that
thread. `resource` keeps what is bound to the I/O loop, such as stores' clients and their sockets.

The reasons for this design:

* A trigger's event loop is shared with thousands of others: building a client on it stalls them all.
* Blocking callers do not cross by anyio's ``BlockingPortal``. A portal hands a call over, and waits for it, with a
  ``concurrent.futures.Future``, and the event loop takes that future's lock to answer. A signal handler that
  interrupts the caller while it holds the lock, and uses state itself, waits for an event loop that waits for the lock.
  ``tests/iothread/test_portal.py`` shows it. Here nothing that the I/O loop does to answer can block it.
* Callers on an event loop do not cross by a portal either: cancelling its call blocks the canceller until the portal's
  event loop answers.
* Airflow forks a process for each task. A thread does not survive that, so a forked process starts afresh, and never
  touches what it inherited, not even to close it: the epoll descriptor of the inherited loop is still the parent's. Nor
  may a fork find the I/O thread in the middle of anything: a module that it was importing would stay locked for ever.
"""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures.thread  # noqa: F401 - see `os.register_at_fork` below
import contextlib
import logging
import os
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import copy_context
from functools import partial
from typing import Any, Final, Generic, ParamSpec, TypeVar

import greenback

from async_state import threads
from async_state.errors import StoreUnavailableError

log = logging.getLogger(__name__)

#: As logs name it.
THREAD_NAME: Final = "async_state-io"

#: For so many seconds, a fork waits for functions that run on threads of the I/O loop, such as ``getaddrinfo``: glibc
#: takes its locks when a look-up begins and ends, but not while it waits for a name server. A look-up that takes longer
#: than this therefore waits for a name server that does not answer, and a fork need not wait for it.
_FORK_PATIENCE: Final = 2.0

T = TypeVar("T")
P = ParamSpec("P")


class NotReadyError(OSError):
    """This process lacks what an operation needs before it begins: a thread, an event loop, a module."""


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """Let an `OSError` of the block be a `NotReadyError`.

    An ``OSError`` that comes out of a blocking call may as well be what a signal handler has raised there, such as a
    ``TimeoutError``. So this is for blocks in which nothing waits.
    """
    try:
        yield
    except OSError as e:
        raise NotReadyError(str(e)) from e


class _Selector(selectors.DefaultSelector):
    """Lets forks happen while the I/O thread waits for events, and at no other time."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        _busy.release()
        try:
            return super().select(timeout)
        finally:
            _busy.acquire()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose default executor are daemon threads, which forks wait for and the exit does not."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future: asyncio.Future[T] = self.create_future()
        running = threading.Lock()
        running.acquire()
        _running.add(running)

        def deliver(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = func(*args)
            except BaseException as e:
                error = e
            _running.discard(running)
            running.release()
            self.call_soon_threadsafe(deliver, result, error)

        try:
            _thread.start_new_thread(work, ())
        except RuntimeError:
            # The interpreter is exiting and starts no thread any more. Nobody else needs the I/O thread by now.
            work()
        return future

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        # As in the base class; here so that it is certain that no other executor is used.
        options = {"family": 0, "type": 0, "proto": 0, "flags": 0} | options
        return await self.run_in_executor(None, partial(socket.getaddrinfo, host, port, **options))

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> Any:
        return await self.run_in_executor(None, socket.getnameinfo, sockaddr, flags)


class _Bridge:
    """Takes calls from one loop to another, which is woken once for all that come meanwhile, and makes them one by one.

    Once, since two threads that wake each other by turns do little else. One an iteration, so that an operation sends
    its request before the next one composes its own: of many that start at once, all would otherwise wait for all at
    every step, and for the same again when their answers come.
    """

    def __init__(self, target: asyncio.AbstractEventLoop) -> None:
        self._target = weakref.ref(target)
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False
        self._waking = False

    def send(self, call: Callable[[], object]) -> None:
        """Have the call made on the other loop, in the order of these."""
        self._calls.append(call)
        target = self._target()
        # A signal handler may interrupt this before that loop is woken, and send a call as well, or raise.
        if target is not None and (self._waking or not self._woken):
            self._waking = self._woken = True
            try:
                target.call_soon_threadsafe(self._make_next_call)
            except RuntimeError:
                # It is closed, and has nobody left who waits.
                self._calls.clear()
                self._woken = False
            self._waking = False

    def _make_next_call(self) -> None:
        # Before the look for calls: whoever adds one after that wakes this loop, perhaps for nothing.
        self._woken = False
        if not self._calls:
            return
        call = self._calls.popleft()
        if self._calls:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._make_next_call)
        call()


class _Resource:
    """What one owner keeps open."""

    def __init__(self) -> None:
        self.opening = asyncio.Lock()
        self.stack: AsyncExitStack | None = None
        self.value: Any = None


class _IoThread:
    """The thread, its loop, and what is bound to that loop."""

    def __init__(self) -> None:
        # Made here, since a loop takes calls before it runs: nobody has to wait for the thread.
        self.loop = _Loop(_Selector())
        self.ident: int | None = None
        self.resources: weakref.WeakKeyDictionary[Any, _Resource] = weakref.WeakKeyDictionary()
        # Refers to all that is open, so that a forked process never finalizes it.
        self.open: set[AsyncExitStack] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[_Bridge, _Bridge]] = (
            weakref.WeakKeyDictionary()
        )
        self._run_once = threading.Lock()

    def start(self) -> None:
        """Start the thread. It does no harm to start it twice.

        It is not a ``threading.Thread``, whose ``start`` waits for the thread while it holds a lock that the thread
        needs: a signal handler that interrupts that must not wait for the thread as well.

        Raises:
            OSError: No thread could be started.
        """
        try:
            _thread.start_new_thread(self._main, ())
        except RuntimeError as e:
            raise threads.refused(e) from e

    def bridges(self, caller: asyncio.AbstractEventLoop) -> tuple[_Bridge, _Bridge]:
        """Return the ways from the caller's loop to this one, and back."""
        bridges = self._bridges.get(caller)
        if bridges is None:
            bridges = self._bridges[caller] = _Bridge(self.loop), _Bridge(caller)
        return bridges

    async def close(self, kept: _Resource) -> None:
        """Close the resource, if it is open."""
        stack, kept.stack, kept.value = kept.stack, None, None
        if stack is not None:
            try:
                await stack.aclose()
            finally:
                self.open.discard(stack)

    def abandon(self, kept: _Resource) -> None:
        """Close the resource soon, since its owner is gone. May be called on any thread, at any time."""
        if self is _current:
            self.loop.call_soon_threadsafe(self._begin_closing, kept)

    def _begin_closing(self, kept: _Resource) -> None:
        task = self.loop.create_task(self.close(kept))
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("Connections of a store that is no longer used were not closed: %r", task.exception())

    def _main(self) -> None:
        if not self._run_once.acquire(blocking=False):
            return
        self.ident = threading.get_ident()
        threading.current_thread().name = THREAD_NAME
        with _busy:
            # Nothing may fail here, not even an import: whoever has called would wait for ever.
            self.loop.run_forever()


class _Call(Generic[T]):
    """A coroutine function's call on the I/O loop, which its caller can cancel at any time, also before it begins.

    Args:
        loop: The I/O loop.
        answer: Called on the I/O thread once there is an outcome, but not after `cancel`. It must not block.
        function: The coroutine function, with its arguments.
    """

    __slots__ = ("_answer", "_cancelled", "_error", "_function", "_loop", "_result", "_task")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: Callable[[], object],
        function: Callable[[], Coroutine[Any, Any, T]],
    ) -> None:
        self._loop = loop
        self._answer = answer
        self._function = function
        self._cancelled = False
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Begin, unless the call is cancelled. Runs on the I/O thread."""
        if not self._cancelled:
            self._task = self._loop.create_task(self._perform())

    def cancel(self, send: Callable[[Callable[[], None]], object]) -> None:
        """Cancel the call. Runs on the caller's thread.

        Args:
            send: Has a function called on the I/O thread, after what was sent before.
        """
        self._cancelled = True
        send(self._cancel_task)

    def outcome(self) -> T:
        """Return the result, or raise the error that there is in its place."""
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _perform(self) -> None:
        try:
            self._result = await self._function()
        except asyncio.CancelledError as e:
            if self._cancelled:
                raise
            self._error = StoreUnavailableError(
                "the operation was cancelled inside the store's client, although its caller did not cancel it: the "
                "connections were probably closed meanwhile; call it again"
            )
            self._error.__cause__ = e
        except BaseException as e:
            self._error = e
        if not self._cancelled:
            self._answer()


class _Blocking(threading.local):
    """How many coroutines this thread drives for blocking callers, and under which event loop (or none).

    More than one where a signal handler calls `run` while its thread is in `run`.
    """

    depth = 0
    loop: asyncio.AbstractEventLoop | None = None


_blocking: Final = _Blocking()
_current: _IoThread | None = None
# Chosen, but perhaps not running yet.
_chosen: dict[str, _IoThread] = {}
# What was inherited by forks, which must never be finalized.
_inherited: Final[list[object]] = []
# Reentrant, since a signal handler may use state where it interrupts the start.
_starting = threading.RLock()
# Held by the I/O thread unless it waits for events, and by whoever forks.
_busy = threading.RLock()
# Locks that threads of the I/O loop's executor hold while they run a function.
_running: set[threading.Lock] = set()


def _before_fork() -> None:
    # No new function begins while this is held.
    _busy.acquire()
    deadline = time.monotonic() + _FORK_PATIENCE
    for running in list(_running):
        if running.acquire(timeout=max(0, deadline - time.monotonic())):
            running.release()


def _after_fork_in_child() -> None:
    global _current, _chosen, _starting, _running
    _inherited.append((_current, _chosen, _running))
    _current, _chosen, _starting, _running = None, {}, threading.RLock(), set()
    _busy.release()


# After `concurrent.futures.thread` has done so, which is imported above for this: functions are called in reverse order
# before a fork, and its lock must not be taken while the I/O thread may want it.
os.register_at_fork(before=_before_fork, after_in_parent=_busy.release, after_in_child=_after_fork_in_child)


def _io() -> _IoThread:
    return _current or _start()


def _start() -> _IoThread:
    global _current
    with _starting:
        if _current is None:
            with preparing():
                made = _IoThread()
                # A signal handler may have made one meanwhile.
                chosen = _chosen.setdefault("io", made)
                if chosen is not made:
                    made.loop.close()
                chosen.start()
            _current = chosen
        return _current


def _on_io_thread() -> bool:
    io = _current
    return io is not None and io.ident == threading.get_ident()


def run(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Drive the coroutine on this thread, block the thread wherever it calls `arun`, and return its result.

    For synchronous callers on any thread. On a thread whose event loop is running (Airflow's asynchronous accessors
    call synchronous hooks there), the loop keeps running where the current task has a greenback portal, as Airflow's
    triggerer gives to triggers. Where it has none, this blocks the loop, since the I/O thread needs nothing of it, and
    leaves the task with a portal, so that its next call does not block the loop.

    Args:
        function: A coroutine function that awaits nothing but `arun` and what works with `blocks`.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Raises:
        RuntimeError: This was called on the I/O thread itself, which would wait for itself, or ``function`` awaited
            something that only an event loop can wait for.
        KeyboardInterrupt: The wait was interrupted; the operation is cancelled.
    """
    if _on_io_thread():
        raise RuntimeError(
            "a synchronous state-store method was called on async_state's own I/O thread, where it would wait for "
            "itself for ever; await its coroutine instead"
        )
    if awaits_in_place():
        return greenback.await_(function(*args, **kwargs))
    if (task := _current_task()) is not None and not _portals_forbidden():
        # Best effort: a task of another event loop implementation may refuse it, and it only helps the next call.
        with contextlib.suppress(Exception):
            greenback.bestow_portal(task)
    with _blocked():
        coroutine = function(*args, **kwargs)
        try:
            coroutine.send(None)
        except StopIteration as e:
            result: T = e.value
            return result
        finally:
            coroutine.close()
    raise RuntimeError(
        f"{function!r} awaited something other than async_state's I/O thread in a synchronous call, where no event "
        "loop runs that could wait for it"
    )


def awaits_in_place() -> bool:
    """Tell whether `run`, called here and now, would let the running loop go on."""
    return greenback.has_portal()


def blocks() -> bool:
    """Tell whether the code that calls this is driven by `run`, and must block its thread where it has to wait."""
    return _blocking.depth > 0 and _blocking.loop is asyncio._get_running_loop()


def interrupts() -> bool:
    """Tell whether `run` drives this code inside another `run` of its thread, as in a signal handler."""
    return _blocking.depth > 1 and blocks()


async def arun(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the coroutine function on the I/O thread and return its result.

    Cancelling the wait cancels the call. Inside `run` this blocks the thread, and everywhere else it never blocks the
    running loop. On the I/O thread itself the call is made in place.

    Args:
        function: The coroutine function.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Raises:
        StoreUnavailableError: The call was cancelled on the I/O thread, but not by this caller.
        NotReadyError: This is the process's first call, and it can start no thread (the interpreter is exiting, for
            example), or open no more files.
    """
    if _on_io_thread():
        return await function(*args, **kwargs)
    io, bound = _io(), partial(function, *args, **kwargs)
    if blocks():
        return _wait(io, bound)
    caller = asyncio.get_running_loop()
    there, back = io.bridges(caller)
    answered: asyncio.Future[None] = caller.create_future()

    def wake() -> None:
        if not answered.done():
            answered.set_result(None)

    call = _Call(io.loop, lambda: back.send(wake), bound)
    context = copy_context()
    # A task that is cancelled cancels at once what it awaits, but comes to the line below in its next step only.
    there.send(lambda: None if answered.cancelled() else context.run(call.begin))
    try:
        await answered
    except BaseException:
        call.cancel(there.send)
        raise
    return call.outcome()


def _wait(io: _IoThread, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Call the coroutine function on the I/O thread, and block this thread until its outcome is there."""
    # A bare lock, since the I/O thread must never wait for a caller: see the module's docstring.
    answered = threading.Lock()
    answered.acquire()
    call = _Call(io.loop, answered.release, function)
    try:
        io.loop.call_soon_threadsafe(call.begin)
        answered.acquire()
    except BaseException:
        # Ctrl-C, or an exception of another signal handler, may come at any point.
        call.cancel(io.loop.call_soon_threadsafe)
        raise
    return call.outcome()


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    before = _blocking.depth, _blocking.loop
    _blocking.depth, _blocking.loop = before[0] + 1, asyncio._get_running_loop()
    try:
        yield
    finally:
        _blocking.depth, _blocking.loop = before


async def resource(owner: object, open_: Callable[[], AbstractAsyncContextManager[T]]) -> T:
    """Return what ``owner`` keeps open on the I/O loop, and open it at the first use.

    It is closed by `release`, or on the I/O loop after ``owner`` was garbage-collected.

    Args:
        owner: Whose resource it is; anything that is hashable and can be referred to weakly. The resource must not
            refer to it.
        open_: Makes the context manager that opens it; called at most once for ``owner`` at a time.

    Raises:
        RuntimeError: This was called elsewhere than on the I/O thread.
    """
    io = _current
    if io is None or not _on_io_thread():
        raise RuntimeError("a store works on async_state's I/O thread only; go through iothread.run or iothread.arun")
    kept = io.resources.get(owner)
    if kept is None:
        kept = io.resources[owner] = _Resource()
        # The exit closes nothing: the operating system does.
        weakref.finalize(owner, io.abandon, kept).atexit = False
    if kept.stack is None:
        async with kept.opening:
            if kept.stack is None:
                stack = AsyncExitStack()
                kept.value = await stack.enter_async_context(open_())
                kept.stack = stack
                io.open.add(stack)
    value: T = kept.value
    return value


async def release(owner: object) -> None:
    """Close what ``owner`` keeps open on the I/O loop, if anything; its next use opens it anew."""
    if _on_io_thread() and _current is not None:
        kept = _current.resources.get(owner)
        if kept is not None:
            await _current.close(kept)


def _portals_forbidden() -> bool:
    # As Airflow's triggerer reads it.
    return os.environ.get("AIRFLOW_DISABLE_GREENBACK_PORTAL", "").lower() == "true"


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop is running on this thread
        return None
