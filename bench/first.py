"""Milliseconds and memory of a process's first ``set``: ``python -m bench first``.

On rclone's server without delay, in processes that hold what a task's process holds of Airflow. Each imports the
backend, makes it and sets one value.

- "fresh": a new interpreter, as in a Kubernetes pod. The clock starts after Airflow's SDK is imported, and "wall" is
  the process from start to end.
- "forked": a child of a process that has imported Airflow and frozen it (``gc.freeze``), as LocalExecutor does; ours
  after `async_state.stores.prepare` in the parent, as our plugin does in the scheduler, and without. Memory is what
  private pages the child has more than before.

A sample is one process. Rounds alternate between the clients; the parents of the forks wait beside each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from subprocess import Popen
from typing import Any

from bench.clear import private_bytes
from bench.clients import CLIENTS, KEYS, Client, Ours, installed
from bench.samples import Found, Sizes, rotated
from bench.servers import Servers

#: Ours in a process whose parent has not prepared it.
UNPREPARED = "async_state, unprepared"
_NAMES = ("async_state", "common-io", "aiobotocore")
_AIRFLOW = (
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.execution_time.supervisor",
    "airflow.executors.local_executor",
)


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure fresh interpreters and forks in turn."""
    endpoint = servers.rclone[0]
    names = installed(*_NAMES)
    with contextlib.ExitStack() as stack:
        parents = {
            name: stack.enter_context(servers.process("first.parent", endpoint, name=name))
            for name in [*names, UNPREPARED]
        }
        for number in range(sizes.rounds):
            for name in rotated(names, number):
                begun = time.perf_counter()
                seconds, _ = servers.child("first.fresh", endpoint, name=name)
                found.add("first", name, "ms", (time.perf_counter() - begun) * 1000, process="fresh", clock="wall")
                found.add("first", name, "ms", seconds * 1000, process="fresh")
            for name in rotated(list(parents), number):
                seconds, grown = fork(parents[name])
                found.add("first", name, "ms", seconds * 1000, process="forked")
                found.add("first", name, "MB", grown / 1e6, process="forked")


def fork(parent: Popen[str]) -> tuple[float, int]:
    """Let a process that runs `forks` fork, and return seconds and bytes of its child's first set."""
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write("fork\n")
    parent.stdin.flush()
    seconds, grown = json.loads(parent.stdout.readline())
    return seconds, grown


def fresh(endpoint: str, name: str) -> tuple[float, int]:
    """Return seconds and bytes of the first set in this interpreter."""
    load_airflow()
    return first_set(lambda: CLIENTS[name](endpoint))


def parent(endpoint: str, name: str) -> Iterator[tuple[float, int]]:
    """For each line of the input, fork, and yield seconds and bytes of the child's first set."""
    load_airflow()
    if name == "async_state":
        prepare_ours(Ours.settings(endpoint))
    yield from forks(lambda: CLIENTS[name.partition(",")[0]](endpoint))


def prepare_ours(settings: Any) -> None:
    """Do before forks what our plugin does in the scheduler."""
    # As the plugin finds out that it is asked for.
    from async_state.backend import AsyncStateBackend  # noqa: F401
    from async_state.stores import prepare

    prepare(settings)


def forks(make: Callable[[], Client]) -> Iterator[tuple[float, int]]:
    """For each line of the input, fork, and yield seconds and bytes of the first set with what ``make`` makes."""
    gc.collect()
    gc.freeze()
    for _ in sys.stdin:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(writer, json.dumps(first_set(make)).encode() + b"\n")
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            line = told.read()
        os.waitpid(pid, 0)
        yield json.loads(line)


def load_airflow() -> None:
    """Import what a task's process and LocalExecutor's worker have imported."""
    for module in _AIRFLOW:
        importlib.import_module(module)


def first_set(make: Callable[[], Client]) -> tuple[float, int]:
    """Make a client and set with it, and return the seconds, and by how many bytes the process has grown."""
    before = private_bytes()
    begun = time.perf_counter()
    client = make()
    if client.synchronous:
        client.put(KEYS[0])
        took = time.perf_counter() - begun
    else:
        took = asyncio.run(_afirst(client, begun))
    return took, private_bytes() - before


async def _afirst(client: Client, begun: float) -> float:
    await client.aopen()
    await client.aput(KEYS[0])
    took = time.perf_counter() - begun
    await client.aclose()
    return took
