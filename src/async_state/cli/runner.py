"""Runs a command's coroutine on the I/O thread, and turns what it raises into a message and an exit code."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from async_state import compat, iothread
from async_state.cli import stdout
from async_state.errors import AsyncStateError

DONE, FAILED, USAGE = 0, 1, 2


class UsageError(Exception):
    """The arguments can't be used together; the message says what to type instead."""


def run(command: Callable[[argparse.Namespace], Coroutine[Any, Any, int]], args: argparse.Namespace) -> int:
    """Run a command and return its exit code.

    Args:
        command: The coroutine, which runs on the I/O thread and so may use stores.
        args: The parsed arguments.

    Returns:
        0 for done, 1 for found or failed, 2 for a wrong use.
    """
    _log_to_stderr(verbose=args.verbose)
    try:
        code = iothread.run(iothread.arun, command, args)
        stdout.flush()
        return code
    except UsageError as e:
        print(e, file=sys.stderr)  # noqa: T201 - a command's output
        return USAGE
    except AsyncStateError as e:
        print(e, file=sys.stderr)  # noqa: T201
        if isinstance(e, stdout.OutputError):
            stdout.discard()
        return FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who reads the output, `head` say, has enough.
        stdout.discard()
        return FAILED


def _log_to_stderr(*, verbose: bool) -> None:
    # Airflow sets its logging up when it is imported. Its handlers write to standard output, which a program may read.
    compat.airflow_conf()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.setLevel(logging.DEBUG if verbose else logging.WARNING)
    root = logging.getLogger()
    root.setLevel(handler.level)
    for logger in (root, *logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers[:] = [handler] if logger is root else []
            logger.propagate = True
