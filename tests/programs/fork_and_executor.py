"""A fork while the I/O thread is about to use its loop's executor, whose lock is taken before a fork, too.

Run by itself: where Airflow was imported before, the executor may have been, and then the order is no question.
"""

import asyncio
import os
import threading
import warnings

from async_state import iothread
from tests.programs.wire import PATIENCE


def main() -> None:
    iothread.run(iothread.arun, use_executor)
    reached, forking = threading.Event(), threading.Event()
    os.register_at_fork(before=forking.set)

    async def wait_for_fork_and_use_executor() -> None:
        reached.set()
        assert forking.wait(PATIENCE)
        await use_executor()

    other = threading.Thread(target=iothread.run, args=[iothread.arun, wait_for_fork_and_use_executor])
    other.start()
    assert reached.wait(PATIENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on warns of every thread
        pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    other.join()


async def use_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, os.getpid)


if __name__ == "__main__":
    main()
