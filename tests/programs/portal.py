"""Why blocking callers do not cross by anyio's portal: a signal handler that uses it may wait for ever.

The handler interrupts its thread while it waits for the portal, just as it has the lock of the future it waits for. The
portal's event loop needs that lock to answer, and the handler needs the portal's event loop.
"""

import concurrent.futures
import signal
import sys
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any

import anyio.from_thread

SECONDS = 2  # for ever, but for the test


def main() -> None:
    interrupted = threading.Event()

    def begin() -> Coroutine[Any, Any, None]:
        # The event loop goes on to need the lock only once the handler runs, on a machine of any speed.
        interrupted.wait()
        return anyio.sleep(0)

    with anyio.from_thread.start_blocking_portal() as portal:

        def handler(*_: object) -> None:
            interrupted.set()
            future: concurrent.futures.Future[None] = concurrent.futures.Future()

            async def answer() -> None:
                future.set_result(None)

            threading.Thread(target=portal.start_task_soon, args=(answer,), daemon=True).start()
            try:
                future.result(SECONDS)
            except concurrent.futures.TimeoutError:
                print("the handler waits for ever")

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if frame.f_code.co_name == "wait" and frame.f_code.co_filename == threading.__file__:
                sys.settrace(None)
                signal.raise_signal(signal.SIGUSR1)
            return trace

        signal.signal(signal.SIGUSR1, handler)
        sys.settrace(trace)
        portal.call(begin)


if __name__ == "__main__":
    main()
