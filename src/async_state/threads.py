"""Blocking functions, called from an event loop on daemon threads.

The worker threads of anyio and asyncio are joined when the interpreter exits, so that one blocked call (a disk or a
name server that does not answer) keeps a process from ending. These threads are daemons: the exit does not wait.

A thread can't be stopped. A call that is cancelled is given up: its function goes on, and its outcome is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

#: As logs name the threads.
THREAD_NAME: Final = "async_state-worker"
#: An idle thread ends after this many seconds.
_MAX_IDLE_SECONDS: Final = 10.0


class _Worker:
    """One thread, which makes one call at a time."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Callable[[], None]]] = queue.SimpleQueue()
        threading.Thread(target=self._main, name=THREAD_NAME, daemon=True).start()

    def make(self, call: Callable[[], Callable[[], None]]) -> None:
        """Make the call, which returns what reports its outcome."""
        self._calls.put(call)

    def _main(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_MAX_IDLE_SECONDS)
            except queue.Empty:
                # Of this thread and a caller, only one can take the worker from the idle ones.
                with contextlib.suppress(ValueError):
                    _idle.remove(self)
                    return
                call = self._calls.get()
            report = call()
            # Before the report, so that whoever waits for it finds this thread idle.
            _idle.append(self)
            report()
            # An idle thread must not keep arguments and outcomes alive.
            del call, report


# Each operation on the list is atomic: there is no lock that a fork could find taken.
_idle: list[_Worker] = []

# Threads do not survive a fork.
os.register_at_fork(after_in_child=lambda: _idle.clear())


async def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function on a daemon thread, in the caller's context, and await its result.

    There is no limit on the number of threads: a call that blocks for ever holds up no other one.

    Args:
        function: Anything that may block.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        What the function returns.

    Raises:
        OSError: No thread could be started; as `refused` says it.
        asyncio.CancelledError: The wait was cancelled. The function goes on, and nobody learns its outcome.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    in_context = partial(contextvars.copy_context().run, function, *args, **kwargs)
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _new_worker()
    worker.make(partial(_make, loop, outcome, in_context))
    return await outcome


def refused(error: RuntimeError) -> OSError:
    """Return an error that says why Python starts no thread; its own does not say it."""
    return OSError(
        errno.EAGAIN,
        f"{error}: the interpreter is exiting, as in a function of atexit, or there are as many threads as the system "
        "allows",
    )


def _new_worker() -> _Worker:
    try:
        return _Worker()
    except RuntimeError as e:
        raise refused(e) from e


def _make(loop: asyncio.AbstractEventLoop, outcome: asyncio.Future[T], function: Callable[[], T]) -> Callable[[], None]:
    try:
        settle = partial(_settle, outcome, outcome.set_result, function())
    except BaseException as e:
        settle = partial(_settle, outcome, outcome.set_exception, e)

    def report() -> None:
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle)

    return report


def _settle(outcome: asyncio.Future[T], set_: Callable[[Any], None], value: object) -> None:
    if not outcome.done():
        set_(value)
