"""One backend under 32 threads from its very first use, and then under two event loops in turn."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.programs.common import ause, io_threads, say, start, task

THREADS = 32


def main() -> None:
    backend = start()
    sys.setswitchinterval(1e-6)  # what can go wrong between two threads does
    together = threading.Barrier(THREADS)

    def work(number: int) -> object:
        scope = task(f"thread-{number}")
        together.wait()
        ref = backend.serialize_task_state_store_to_ref(value={"of": number}, key="value", scope=scope)
        backend.set(scope, "row", ref)
        assert backend.get(scope, "row") == ref
        return backend.deserialize_task_state_store_from_ref(ref)

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [{"of": number} for number in range(THREADS)]
    say(f"{io_threads()} I/O thread after {THREADS} threads")
    asyncio.run(ause(backend, "first-loop"))
    asyncio.run(ause(backend, "second-loop"))
    say(f"{io_threads()} I/O thread after two loops")


if __name__ == "__main__":
    main()
