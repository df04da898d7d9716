"""A signal at every moment of a process's first operation: a forked process for each of them.

What the signal's handler does is named on the command line: ``use``, an operation of its own, or ``raise``. The second
argument says how many moments are passed over between two that are taken.
"""

import asyncio
import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from async_state import iothread, limiter
from tests.programs.wire import PATIENCE

effects: list[str] = []
slots = limiter.Limiter(1)
used: list[str] = []


async def on_io_thread(name: str) -> str:
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    effects.append(name)
    return name


async def operation(name: str) -> str:
    async with slots.slot(PATIENCE):
        return await iothread.arun(on_io_thread, name)


def use(*_: object) -> None:
    used.append(iothread.run(operation, "handler"))


def raise_(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class Moment:
    """The moment ``number`` of what this thread does: a line of Python, or an instruction of the modules under test."""

    def __init__(self, number: int) -> None:
        self.left = number

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = frame.f_code.co_filename in (iothread.__file__, limiter.__file__)
        frame.f_trace_lines = not frame.f_trace_opcodes
        self.left -= 1
        if self.left == 0:
            sys.settrace(None)
            signal.raise_signal(signal.SIGUSR1)
        return self.trace


async def tasks() -> int:
    return len(asyncio.all_tasks())


def interrupted(number: int, handler: Callable[..., None]) -> bool:
    """Do the first operation of this process, and tell whether the moment came before its end."""
    signal.signal(signal.SIGUSR1, handler)
    moment = Moment(number)
    sys.settrace(moment.trace)
    try:
        answer = iothread.run(operation, "first")
        sys.settrace(None)
        assert answer == "first"
    except KeyboardInterrupt:
        sys.settrace(None)
    # What was cancelled ends, and has no effect once something later has.
    before = iothread.run(operation, "second") and list(effects)
    while iothread.run(iothread.arun, tasks) > 2:
        pass
    assert effects == before
    if handler is use:
        assert used == ["handler"] * (moment.left <= 0)
        assert "first" in effects
    return moment.left <= 0


def main() -> None:
    handler = {"use": use, "raise": raise_}[sys.argv[1]]
    number, stride = 1, int(sys.argv[2])
    # asyncio complains where its loop's constructor is interrupted.
    warnings.simplefilter("ignore", ResourceWarning)
    sys.unraisablehook = lambda _: None
    while True:
        pid = os.fork()
        if not pid:
            signal.alarm(PATIENCE)
            status = 1
            try:
                status = 0 if interrupted(number, handler) else 3
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        if status and os.waitstatus_to_exitcode(status) == 3:
            break
        assert status == 0, f"moment {number}: {os.waitstatus_to_exitcode(status)}"
        number += stride
    print(number)


if __name__ == "__main__":
    main()
