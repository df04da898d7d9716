"""The test's side of a program."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs.wire import PATIENCE


class Runner(NamedTuple):
    """Where programs can be run.

    Attributes:
        cold: A process that has imported Airflow.
        warm: A process that has also imported what a backend imports at its first use, as a scheduler has, and what
            ``python -m async_state`` imports.
    """

    cold: socket.socket
    warm: socket.socket


@contextlib.contextmanager
def runner(*options: str) -> Iterator[Runner]:
    """Start a Python, with these options, that runs programs."""
    with contextlib.ExitStack() as stack:
        ours: list[socket.socket] = []
        theirs: list[socket.socket] = []
        for _ in Runner._fields:
            for ends, end in zip((ours, theirs), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), strict=True):
                ends.append(stack.enter_context(end))
        descriptors = [end.fileno() for end in theirs]
        process = subprocess.Popen(
            [sys.executable, *options, "-m", "tests.programs", *map(str, descriptors)],
            cwd=Path(__file__).parents[2],
            pass_fds=descriptors,
            start_new_session=True,
        )
        for end in theirs:
            end.close()
        yield Runner(*ours)
    assert process.wait() == 0


def wait_until_asleep(pid: int) -> None:
    """Wait until a process's main thread waits for something else than its turn among the threads.

    Python would notice a signal only after a wait that is about to begin.
    """
    status = Path(f"/proc/{pid}/task/{pid}/status")
    seen: list[str] = []
    deadline = time.monotonic() + PATIENCE
    while True:
        before, seen = seen, [line for line in status.read_text().splitlines() if line.startswith(("State", "volunt"))]
        if seen == before and "sleeping" in seen[0]:
            return
        assert time.monotonic() < deadline
        # Whoever waits for its turn wakes up every five milliseconds, to ask for it.
        time.sleep(0.05)


class Command:
    """``python -m async_state`` in a fork of a warm process, with what the tests use of `subprocess.Popen`.

    It starts in a tenth of a second instead of two. Only one runs at a time.
    """

    def __init__(
        self, runner: Runner, *arguments: str, environment: Mapping[str, str], stdin: int | None = None
    ) -> None:
        self._runner = runner.warm
        self._output, self._complaints = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - `__exit__`
        request = "\n".join(["command", json.dumps([dict(environment), arguments, str(Path.cwd())])])
        with Path(os.devnull).open("rb") as nothing:
            given = nothing.fileno() if stdin is None else stdin
            files = [given, self._output.fileno(), self._complaints.fileno()]
            socket.send_fds(self._runner, [request.encode()], files)
        self.pid = int(self._runner.recv(100))
        self.returncode: int | None = None

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.send_signal(signal.SIGKILL)
        self.wait()
        self._output.close()
        self._complaints.close()

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Return what the command ended with, or ``None`` if it runs."""
        if self.returncode is None and select.select([self._runner], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Return what the command ended with."""
        if self.returncode is None:
            self.returncode = int(self._runner.recv(100))
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Return what the command has written to standard output and to standard error when it has ended."""
        self.wait()
        written = []
        for file in self._output, self._complaints:
            file.seek(0)
            written.append(file.read().decode())
        out, err = written
        return out, err


class Program:
    """A running program. Only one runs at a time."""

    def __init__(self, runner: socket.socket, name: str, *arguments: str) -> None:
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - `clean_up` closes it
        request = "\n".join([name, *arguments]).encode()
        socket.send_fds(runner, [request], [theirs_in, theirs_out, self._complaints.fileno()])
        os.close(theirs_in)
        os.close(theirs_out)
        self._input = os.fdopen(ours_in, "w")
        self._output = os.fdopen(ours_out)
        self._runner = runner
        self._pid = int(runner.recv(100))
        self._abort = threading.Timer(2 * PATIENCE, os.kill, [self._pid, signal.SIGABRT])
        self._abort.start()
        self._status: int | None = None

    def hear(self, line: str) -> None:
        """Wait for the program to say ``line``."""
        heard = self._output.readline().rstrip("\n")
        if not heard:
            self.end()
        assert heard == line

    def tell(self, line: str) -> None:
        print(line, file=self._input, flush=True)

    def interrupt(self) -> None:
        """Press Ctrl-C while the main thread sleeps."""
        wait_until_asleep(self._pid)
        os.kill(self._pid, signal.SIGINT)

    def end(self) -> None:
        """Wait for the program to end, in peace."""
        self._wait()
        self._complaints.seek(0)
        if complaints := self._complaints.read().decode():
            pytest.fail(complaints)
        assert (self._output.read(), self._status) == ("", 0)

    def clean_up(self) -> None:
        """End the program if it has not ended, and what it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        self._wait()
        for file in (self._input, self._output, self._complaints):
            file.close()

    def _wait(self) -> None:
        if self._status is None:
            self._status = int(self._runner.recv(100))
            self._abort.cancel()
            self._abort.join()
