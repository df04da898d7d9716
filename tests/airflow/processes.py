"""A process for each function, as what the plugin and the components do changes Airflow for good.

They are forked from one that has imported Airflow, which takes seconds, and of this package no more than every process
that reads Airflow's configuration. A module whose functions run there imports nothing else of it at its top.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

SECONDS = 600.0

processes = multiprocessing.get_context("forkserver")


def in_process(function: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """Return what the function returns in a process with these variables in its environment."""
    processes.set_forkserver_preload(["tests.airflow.inherited"])
    ours, theirs = processes.Pipe(duplex=False)
    given = {name: value for name, value in os.environ.items() if name.startswith(("AIRFLOW_", "AWS_"))}
    process = processes.Process(target=_call, args=(theirs, function, arguments, {**given, **environment}), daemon=True)
    process.start()
    theirs.close()
    try:
        with ours:
            assert ours.poll(SECONDS), "no answer"
            return ours.recv()
    finally:
        process.kill()
        process.join()


def _call(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], given: dict[str, str]) -> None:
    os.environ.update(given)
    # Airflow's configuration knows our options, and so imports what describes them.
    assert not {"async_state.plugin", "async_state.backend", "botocore"} & set(sys.modules)
    pipe.send(function(*arguments))


def listened() -> list[tuple[str, str]]:
    """Return a list of what we log from now on, with its level."""
    told: list[tuple[str, str]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append((record.levelname, record.getMessage()))

    logging.getLogger("async_state").addHandler(Listener())
    return told
