"""Name look-ups on the I/O loop that take long; ``exit`` ends meanwhile, ``fork`` forks meanwhile.

`socket.getaddrinfo` is a double here, since a real one can't be made to stop while it holds a lock of glibc.
"""

import asyncio
import os
import socket
import sys
import threading
import warnings
from typing import Any

from async_state import iothread
from tests.programs.wire import PATIENCE

looking_up, forking = threading.Event(), threading.Event()
lock = threading.Lock()


def slow_getaddrinfo(*arguments: Any, **options: Any) -> list[Any]:
    with lock:
        looking_up.set()
        assert forking.wait(PATIENCE)
    return []


async def look_up() -> object:
    return await asyncio.get_running_loop().getaddrinfo("name.invalid", 80)


def main() -> None:
    socket.getaddrinfo = slow_getaddrinfo
    other = threading.Thread(target=iothread.run, args=(iothread.arun, look_up), daemon=True)
    other.start()
    assert looking_up.wait(PATIENCE)
    if sys.argv[1] == "exit":
        return
    os.register_at_fork(before=forking.set)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on warns of every thread
        pid = os.fork()
    if not pid:
        # As glibc would leave its lock.
        os._exit(0 if lock.acquire(blocking=False) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    other.join()


if __name__ == "__main__":
    main()
