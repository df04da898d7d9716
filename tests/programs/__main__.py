"""Runs programs in forks of one process that has imported Airflow, which takes longer than most of them."""

import os
import runpy
import socket
import sys

import tests.programs.common


def main() -> None:
    assert "aiobotocore" not in sys.modules
    assert tests.programs.common.io_threads() == 0
    requests = socket.socket(fileno=int(sys.argv[1]))
    while True:
        request, streams, _, _ = socket.recv_fds(requests, 4096, 3)
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
