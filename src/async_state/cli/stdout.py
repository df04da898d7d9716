"""Standard output, which may lead to a disk that is full, or to a program that has read enough."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from async_state.errors import AsyncStateError


class OutputError(AsyncStateError):
    """Standard output can't be written."""


def write(text: str) -> None:
    """Write a command's result, or a part of it.

    Raises:
        BrokenPipeError: Nobody reads it any more.
        OutputError: It can't be written for another reason.
    """
    _call(sys.stdout.write, text)


def flush() -> None:
    """Write what is buffered.

    Raises:
        BrokenPipeError: As `write`.
        OutputError: As `write`.
    """
    _call(sys.stdout.flush)


def discard() -> None:
    """Let what is buffered go nowhere, since Python flushes it once more at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _call(function: Callable[..., object], *args: str) -> None:
    try:
        function(*args)
    except BrokenPipeError:
        raise
    except OSError as e:
        raise OutputError(f"standard output can't be written: {e.strerror}") from e
