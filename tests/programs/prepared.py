"""A process that prepares for the tasks that it forks, as a scheduler does, and forks them."""

import sys
import threading
from functools import partial

from async_state import Settings
from async_state.stores import prepare
from tests.programs.common import fork, io_threads, outcome, say, start, use


def main() -> None:
    url, endpoint_url, *modules = sys.argv[1:]
    backend = start()
    prepare(Settings(url=url, endpoint_url=endpoint_url))
    assert threading.active_count() == 1, threading.enumerate()
    for module in modules:
        assert module in sys.modules, f"{module} is not imported"
    say("prepared")
    for name in "first", "second":
        say(f"{name}: {outcome(fork(partial(use, backend, name), 'task'))}")
    assert io_threads() == 0


if __name__ == "__main__":
    main()
