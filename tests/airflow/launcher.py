"""Starts Airflow's commands as forks of one process that has imported the libraries that Airflow imports.

That is most of what a command's start takes. Of Airflow itself it imports nothing: that reads its configuration
meanwhile, and each command has its own. As a program, it is given a socket from which it takes what to start. The
commands serve Airflow's execution API in its newest version alone.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.airflow import newest_version

_COMMAND: Final = Path(__file__).parent / "airflow_command.py"
_ROOT: Final = Path(__file__).parents[2]
_LARGEST_REQUEST: Final = 128 * 1024
#: Most of the time of Airflow's imports. What Airflow stops importing one day costs time here, and nothing else.
_LIBRARIES: Final = (
    "alembic",
    "dill",
    "fastapi",
    "fsspec",
    "httpx",
    "jinja2",
    "jsonschema",
    "jwt",
    "libcst",
    "pathspec",
    "pendulum",
    "psutil",
    "pydantic",
    "rich",
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "structlog",
    "svcs.fastapi",
    "tenacity",
    "upath",
    "uvicorn",
    "yaml",
)


class Process:
    """A command that was started, with what the tests use of `subprocess.Popen`. It leads a session of its own."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], directory: Path, output: int) -> None:
        self._told, theirs = socket.socketpair()
        request = json.dumps([list(arguments), dict(environment), str(directory)]).encode()
        with theirs:
            socket.send_fds(_launcher(), [request], [output, theirs.fileno()])
        self._lines = self._told.makefile()
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return what the command ended with, or ``None`` if it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return what the command ended with.

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._told.close()
        return self.returncode

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@functools.cache
def _launcher() -> socket.socket:
    """Start the launcher, once for a process of tests, and return the socket that it listens to."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        launcher = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=_ROOT,
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def stop() -> None:
        ours.close()
        launcher.wait()

    atexit.register(stop)
    return ours


def main() -> None:
    gc.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in _LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(library)
        newest_version.build_it_alone()
    assert not [name for name in sys.modules if name.partition(".")[0] == "airflow"]
    assert threading.active_count() == 1
    gc.freeze()
    requests = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C is for the tests, which end what they have started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, files, _, _ = socket.recv_fds(requests, _LARGEST_REQUEST, 2)
        if not request:
            return
        if not os.fork():
            requests.close()
            if _watch(*files):
                os._exit(0)
            _become(*json.loads(request))
            return
        for file in files:
            os.close(file)
        # Those that watched commands that have ended.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _watch(output: int, told: int) -> bool:
    """Fork, and tell how the child ended. In that child, return ``False``."""
    pid = os.fork()
    if pid:
        os.close(output)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
        return True
    os.setsid()
    os.write(told, b"%d\n" % os.getpid())
    os.close(told)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.close(output)
    return False


def _become(arguments: list[str], environment: dict[str, str], directory: str) -> None:
    """Be ``python airflow_command.py`` with these arguments."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    for stream in sys.stdout, sys.stderr:
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(write_through=True)
    gc.enable()
    sys.argv = [str(_COMMAND), *arguments]
    runpy.run_path(str(_COMMAND), run_name="__main__")


if __name__ == "__main__":
    main()
