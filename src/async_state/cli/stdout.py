"""Standard output, which may lead to a disk that is full, or to a program that has read enough."""

from __future__ import annotations

import os
import sys

from async_state.errors import AsyncStateError


class OutputError(AsyncStateError):
    """Standard output can't be written."""


def write(text: str) -> None:
    """Write a command's result, or a part of it.

    Raises:
        BrokenPipeError: Nobody reads it any more.
        OutputError: It can't be written for another reason.
    """
    try:
        sys.stdout.write(text)
    except OSError as e:
        raise _error(e) from e


def flush() -> None:
    """Write what is buffered.

    Raises:
        BrokenPipeError: As `write`.
        OutputError: As `write`.
    """
    try:
        sys.stdout.flush()
    except OSError as e:
        raise _error(e) from e


def discard() -> None:
    """Let what is buffered go nowhere, since Python flushes it once more at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _error(error: OSError) -> OSError | OutputError:
    if isinstance(error, BrokenPipeError):
        return error
    return OutputError(f"standard output can't be written: {error.strerror}")
