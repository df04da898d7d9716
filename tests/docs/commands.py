"""The commands of the pages, and a terminal to type them at."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests import programs
from tests.programs.runner import Runner
from tests.programs.wire import PATIENCE
from tests.project.test_snippets import SNIPPETS

#: What installs or builds something, and is no command of this package.
LEFT_OUT: Final = ("pip", "make", ".venv/bin/python")

#: ``airflow async-state`` in a fork, as an interpreter of its own takes seconds to start; and in the same place what is
#: to be run in a cluster.
_FUNCTIONS: Final = """
airflow() { test "$1" = async-state && shift && $FROM_SHELL "$@"; }
kubectl() { while test "$1" != --; do shift; done; shift; "$@"; }
"""

#: What no two runs have in common: all else has to be what the page shows.
_VARYING: Final = (
    (re.compile(r'("(?:modified|taken_at)": ")[\d:T.+-]+"'), r'\1(a time)"'),
    (re.compile(r'(etag +\| |"etag": ")[0-9a-f]{32}\b'), r"\1(random)"),
    # Of `check`: versions, durations, and the names of its objects.
    (
        re.compile(
            r"^(ok +(?:python|airflow-async-state|apache-airflow-\S+|aiobotocore|botocore|aiohttp) +)\d\S*$", re.M
        ),
        r"\1(a version)",
    ),
    (re.compile(r" \d+\.\d ms, "), " (a time) ms, "),
    (re.compile(r"(\(|, )\d+ attempts? in \d+\.\d s\b"), r"\1(some) attempts"),
    (re.compile(r"(/v1/check/)[0-9a-f]{32}\b"), r"\1(random)"),
)


class Shown(NamedTuple):
    """A command of a page.

    Attributes:
        page: The page's name.
        line: Where it is.
        exports: What the page has the reader export before it, a line each.
        command: What is typed.
        output: What the page shows under it, with the answer that it shows; empty for nothing.
    """

    page: str
    line: int
    exports: str
    command: str
    output: str


def _shown() -> list[Shown]:
    found: list[Shown] = []
    exports: dict[str, str] = {}
    for snippet in SNIPPETS:
        for line, text in enumerate(snippet.text.splitlines(keepends=True), snippet.line + 1):
            if snippet.language == "sh" and text.startswith("export "):
                exports[snippet.page] = exports.get(snippet.page, "") + text
            elif snippet.language == "sh" and "async-state" in text:
                found.append(Shown(snippet.page, line, exports.get(snippet.page, ""), text, ""))
            elif snippet.language == "console" and text.startswith("$ "):
                found.append(Shown(snippet.page, line, exports.get(snippet.page, ""), text[2:], ""))
            elif snippet.language == "console":
                found[-1] = found[-1]._replace(output=found[-1].output + text)
    return [each for each in found if each.command.split()[0] not in LEFT_OUT]


SHOWN: Final = _shown()


def comparable(output: str) -> str:
    """Return what is printed without what varies."""
    for pattern, replacement in _VARYING:
        output = pattern.sub(replacement, output)
    return output


class Terminal:
    """A terminal in a directory, at which one command after the other is typed into a shell.

    Args:
        python: Runs ``airflow async-state``.
        directory: Where the shell is.
        environment: The shell's.
    """

    def __init__(self, python: Runner, directory: Path, environment: Mapping[str, str]) -> None:
        self._socket = python.warm.fileno()
        self._directory = directory
        self._environment = {
            **environment,
            "HOME": str(directory),
            "FROM_SHELL": f"{sys.executable} -ISE {Path(programs.__file__).with_name('from_shell.py')} {self._socket}",
        }

    def run(self, command: str, environment: Mapping[str, str], answers: list[str]) -> tuple[int, str]:
        """Return what the command ends with, and what is seen on the terminal then.

        Args:
            command: One or more lines.
            environment: More of it.
            answers: To the questions, in their order.
        """
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0):
            with os.fdopen(theirs, "rb", buffering=0) as terminal:
                shell = subprocess.Popen(
                    ["bash", "-c", _FUNCTIONS + command],
                    cwd=self._directory,
                    env={**self._environment, **environment},
                    stdin=terminal,
                    stdout=terminal,
                    stderr=terminal,
                    pass_fds=[self._socket],
                    start_new_session=True,
                )
            seen, left = "", list(answers)
            while text := _read(ours):
                seen += text
                if seen.endswith("[y/N] "):
                    os.write(ours, f"{left.pop(0) if left else ''}\n".encode())
        # Each line as it is when all that was written over is gone.
        lines = [line.rpartition("\r")[2].replace("\x1b[K", "") for line in seen.replace("\r\n", "\n").split("\n")]
        return shell.wait(), "\n".join(lines)


def _read(terminal: int) -> str:
    assert select.select([terminal], [], [], PATIENCE)[0], "it neither ends nor asks"
    # An error says that nobody has the other end any more.
    with contextlib.suppress(OSError):
        return os.read(terminal, 65536).decode()
    return ""
