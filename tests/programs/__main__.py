"""Runs programs in forks of processes that have imported what takes longer than most of them.

One of the two has imported Airflow alone; the other one also what a backend imports at its first use, and what
``python -m async_state`` imports.
"""

import gc
import importlib
import os
import pkgutil
import runpy
import socket
import sys

import tests.programs.common
from async_state import Settings, cli
from async_state.stores import prepare

LARGEST_REQUEST = 128 * 1024


def main() -> None:
    assert "aiobotocore" not in sys.modules
    cold, warm = (socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[1:])
    if not os.fork():
        warm.close()
        serve(cold)
        return
    cold.close()
    prepare(Settings(url="s3://state/warm"))
    for module in pkgutil.iter_modules(cli.__path__, f"{cli.__name__}."):
        importlib.import_module(module.name)
    serve(warm)


def serve(requests: socket.socket) -> None:
    assert tests.programs.common.io_threads() == 0
    # A program need not go through what it has inherited.
    gc.freeze()
    while True:
        request, streams, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 3)
        if not request:
            return
        pid = os.fork()
        if not pid:
            requests.close()
            os.setsid()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            name, *sys.argv[1:] = request.decode().split("\n")
            # From here on it is a process like any other, and ends as an interpreter does.
            runpy.run_module(f"tests.programs.{name}", run_name="__main__", alter_sys=True)
            return
        for stream in streams:
            os.close(stream)
        requests.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        requests.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    main()
