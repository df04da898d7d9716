"""What the programs share."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, Literal

from airflow.sdk.state import AssetScope, TaskScope

from async_state import AsyncStateBackend, Settings
from tests.programs.wire import PATIENCE

Ending = Literal["task", "exit"]


def start(**options: Any) -> AsyncStateBackend:
    """Return a backend on the URL that the program was given, with these options, and make complaints visible."""
    faulthandler.enable()  # whoever hangs is aborted, and then says where
    # Airflow's handler writes to standard output.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    warnings.simplefilter("default", ResourceWarning)
    # Python's development mode reports slow callbacks, and building the first client is one, on the I/O loop.
    logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
    url, endpoint_url = sys.argv[1:3]
    # An answer that a test holds is not late.
    return AsyncStateBackend(Settings(url=url, endpoint_url=endpoint_url, timeout=2 * PATIENCE, **options))


def say(line: str) -> None:
    """Tell the test."""
    print(line, flush=True)


def hear(line: str) -> None:
    """Wait for the test to say ``line``."""
    heard = sys.stdin.readline().rstrip("\n")
    assert heard == line, f"{heard!r} instead of {line!r}"


def task(name: str) -> TaskScope:
    return TaskScope(dag_id="dag", run_id="run", task_id=name)


def use(backend: AsyncStateBackend, name: str) -> None:
    """Do everything there is, on state that nobody else with another ``name`` touches."""
    scope, asset = task(name), AssetScope(name=name)
    ref = backend.serialize_task_state_store_to_ref(value={"of": name}, key="value", scope=scope)
    assert backend.deserialize_task_state_store_from_ref(ref) == {"of": name}
    asset_ref = backend.serialize_asset_state_store_to_ref(value=[name], key="value", scope=asset)
    assert backend.deserialize_asset_state_store_from_ref(asset_ref) == [name]
    backend.purge_task_state(ref)
    backend.purge_asset_state(asset_ref)
    backend.set(scope, "row", name)
    assert backend.get(scope, "row") == name
    backend.delete(scope, "row")
    assert backend.get(scope, "row") is None
    backend.set(scope, "row", name)
    backend.clear(scope)
    assert backend.get(scope, "row") is None
    asyncio.run(ause(backend, name))


async def ause(backend: AsyncStateBackend, name: str) -> None:
    """As `use`, by the coroutine methods."""
    scope, asset = task(name), AssetScope(name=name)
    ref = await backend.aserialize_task_state_store_to_ref(value={"of": name}, key="value", scope=scope)
    assert await backend.adeserialize_task_state_store_from_ref(ref) == {"of": name}
    asset_ref = await backend.aserialize_asset_state_store_to_ref(value=[name], key="value", scope=asset)
    assert await backend.adeserialize_asset_state_store_from_ref(asset_ref) == [name]
    await backend.apurge_many([ref, asset_ref])
    await backend.aset(scope, "row", name)
    assert await backend.aget(scope, "row") == name
    await backend.adelete(scope, "row")
    assert await backend.aget(scope, "row") is None
    await backend.aset(scope, "row", name)
    await backend.aclear(scope)
    assert await backend.aget(scope, "row") is None


def io_threads() -> int:
    """Count this process's I/O threads."""
    return sum(thread.name == "async_state-io" for thread in threading.enumerate())


def fork(work: Callable[[], None], ending: Ending) -> int:
    """Do ``work`` in a forked process that ends as an Airflow task does, or as an interpreter does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on warns of every thread
        pid = os.fork()
    if pid:
        return pid
    if ending == "exit":
        work()
        sys.exit()
    # Airflow's supervisor, in `_fork_main`, as far as it could matter.
    atexit._clear()
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def outcome(pid: int) -> str:
    """Wait for a forked process, and tell how it ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return "fine" if status == 0 else f"status {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.005)
    os.kill(pid, signal.SIGABRT)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return "hung"
