"""Uses state while no thread can be started, and then as it likes."""

import sys
import threading

from async_state.errors import StoreUnavailableError
from tests.programs.common import say, start, task, use


def main() -> None:
    backend = start()
    # No thread can have a stack of 64 TiB. This stands for a limit of threads, of which root has none.
    threading.stack_size(1 << 46)
    for _ in range(2):
        try:
            backend.set(task("none"), "key", "1")
        except StoreUnavailableError as e:
            said = f"nothing was sent to {sys.argv[1]}" in str(e) and "as many threads as the system allows" in str(e)
            say("refused" if said else str(e))
    threading.stack_size(0)
    use(backend, "many")


if __name__ == "__main__":
    main()
