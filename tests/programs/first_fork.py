"""A fork in the middle of the process's first operation, which another thread has begun.

The moment is named on the command line: a module that the I/O thread is importing then, or else ``start``, when the
thread is being started.
"""

import _thread
import os
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tests.programs.common import fork, outcome, say, start, use
from tests.programs.wire import PATIENCE


class Moment:
    """Keeps a thread where it is until the main thread forks."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.forking = threading.Event()
        # Registered last, so called before any other that may wait for the thread that waits here.
        os.register_at_fork(before=self.forking.set)

    def here(self) -> None:
        self.reached.set()
        assert self.forking.wait(PATIENCE)


class SlowImport:
    """An import hook that stops in the middle of one module."""

    def __init__(self, module: str, moment: Moment) -> None:
        self.module = module
        self.moment = moment
        self.begun = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if threading.current_thread().name == "async_state-io":
            if self.begun:
                self.moment.here()  # the module imports its first one
            self.begun |= name == self.module
        return None


def main() -> None:
    where = sys.argv[3]
    backend = start()
    moment = Moment()
    first = threading.Thread(target=use, args=(backend, "parent"), daemon=True)
    if where == "start":
        start_new_thread = _thread.start_new_thread

        def start_slowly(*arguments: Any) -> int:
            if not moment.forking.is_set():
                moment.here()
            return start_new_thread(*arguments)

        _thread.start_new_thread = start_slowly
    else:
        assert where not in sys.modules
        sys.meta_path.insert(0, SlowImport(where, moment))
    first.start()
    assert moment.reached.wait(PATIENCE)
    parent_is_done, done = os.pipe()

    def work() -> None:
        # One at a time: rclone's server, which prunes empty directories, loses what is put there meanwhile.
        os.read(parent_is_done, 1)
        use(backend, "child")

    pid = fork(work, "task")
    first.join()
    say("parent: fine")
    os.write(done, b"!")
    say(f"child: {outcome(pid)}")
    use(backend, "parent")


if __name__ == "__main__":
    main()
