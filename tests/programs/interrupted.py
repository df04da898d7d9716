"""Ctrl-C while a synchronous method waits, or just when it has handed its operation over to the I/O thread."""

import signal
import sys
from types import FrameType
from typing import Any

from tests.programs.common import hear, say, start, task, use


def main() -> None:
    # What a shell starts in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    backend = start()
    backend.set(task("interrupted"), "held", "answer")
    if sys.argv[3] == "handing over":
        sys.setprofile(interrupt_handing_over)
    try:
        backend.get(task("interrupted"), "held")
    except KeyboardInterrupt:
        say("interrupted")
    hear("released")
    assert backend.get(task("interrupted"), "held") == "answer"
    use(backend, "interrupted")
    say("fine")


def interrupt_handing_over(frame: FrameType, event: str, function: Any) -> None:
    if event == "c_return" and function.__name__ == "send":  # the I/O thread has been woken
        sys.setprofile(None)
        hear("held")
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
