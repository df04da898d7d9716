"""How many operations run at once: one bound for all threads and event loops of a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Final

from async_state import iothread

# How often this process was forked from one that had imported this module; a child starts with all slots free.
_generation = 0
# What the parent had is kept, since a child must not finalize futures of the parent's event loops.
_inherited: Final[list[object]] = []


def _after_fork_in_child() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_after_fork_in_child)


class NoSlotError(TimeoutError):
    """No slot became free in time. A class of its own, as a signal handler may raise a ``TimeoutError`` meanwhile."""


class Limiter:
    """Lets ``count`` operations run at once, in the order in which they ask.

    An operation that waits blocks its thread inside `iothread.run`, and suspends its task everywhere else. No lock is
    taken, so that a signal handler may use state wherever it interrupts its thread: the operations that run or wait are
    the keys of one dict, in the order in which they came, and the first ``count`` of them run.

    Args:
        count: How many operations run at once.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._places: dict[_Place, None] = {}
        self._generation = _generation

    def slot(self, timeout: float) -> Slot:
        """Return a context manager that holds a slot: ``async with limiter.slot(timeout) as remaining``.

        Args:
            timeout: The most seconds to wait for the slot. Entering returns how many of them are left.

        Raises:
            NoSlotError: No slot became free within ``timeout``. Entering raises it, and holds no slot.
        """
        return Slot(self, timeout)

    def _enter(self, place: _Place) -> bool:
        """Add the place, and tell whether its operation may run."""
        if self._generation != _generation:
            _inherited.append(self._places)
            self._places, self._generation = {}, _generation
        self._places[place] = None
        return len(self._places) <= self._count

    def _leave(self, place: _Place) -> None:
        if self._places.pop(place, place) is None and len(self._places) >= self._count:
            self._wake()

    def _wake(self) -> None:
        """Tell the operations that may run, unless they know."""
        for place in self._first():
            if not place.wake():
                self._leave(place)

    def _first(self) -> list[_Place]:
        while True:
            # Another thread may come between when the garbage is collected meanwhile.
            with contextlib.suppress(RuntimeError):
                return list(islice(self._places, self._count))


class _Place:
    """One operation's place in the order."""

    __slots__ = ("_may_run", "_waker")

    def __init__(self) -> None:
        self._may_run = False
        self._waker: Callable[[], object] | None = None

    def wake(self) -> bool:
        """Let the operation run; return ``False`` if its event loop is closed."""
        if not self._may_run:
            self._may_run = True
            if self._waker is not None:
                try:
                    self._waker()
                except RuntimeError:
                    return False
        return True

    def wait(self, timeout: float) -> bool:
        """Block this thread until the operation may run; return ``False`` if the time passes before."""
        woken = threading.Lock()
        woken.acquire()
        self._waker = woken.release
        return self._may_run or woken.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX))

    async def await_(self, timeout: float) -> bool:
        """Suspend this task until the operation may run; return ``False`` if the time passes before."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()

        def wake(may_run: bool) -> None:
            if not woken.done():
                woken.set_result(may_run)

        self._waker = lambda: loop.call_soon_threadsafe(wake, True)
        if self._may_run:
            return True
        timer = loop.call_later(timeout, wake, False)
        try:
            return await woken
        finally:
            timer.cancel()
            # The operation that runs now must not keep its event loop.
            self._waker = None


class Slot:
    """One operation's slot. It is given back at the end of the block, or when the block is never entered."""

    # Where a signal handler interrupts the constructor, `__del__` finds this.
    _place: _Place | None = None

    def __init__(self, limiter: Limiter, timeout: float) -> None:
        self._limiter = limiter
        self._timeout = timeout

    async def __aenter__(self) -> float:
        place = self._place = _Place()
        if self._limiter._enter(place) or iothread.interrupts():
            # A signal handler must not wait for the operation that it interrupts.
            return self._timeout
        began = time.monotonic()
        try:
            if iothread.blocks():
                may_run = place.wait(self._timeout)
            else:
                may_run = await place.await_(self._timeout)
            if not may_run:
                raise NoSlotError
        except BaseException:
            self._limiter._leave(place)
            raise
        return max(self._timeout - (time.monotonic() - began), 0)

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    def __del__(self) -> None:
        # An exception of a signal handler may come between two steps of the block's beginning or end.
        self._give_back()

    def _give_back(self) -> None:
        if self._place is not None:
            self._limiter._leave(self._place)
