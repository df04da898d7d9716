"""The first use of state is in a function of `atexit`."""

import atexit
import sys

import anyio

from async_state import iothread


def use() -> None:
    try:
        iothread.run(iothread.arun, anyio.sleep, 0)
    except OSError as e:
        assert sys.version_info >= (3, 12)
        print("refused" if "the interpreter is exiting" in str(e) else e)
    else:
        print("used")


if __name__ == "__main__":
    atexit.register(use)
