"""Many keys from a plain task: how long `StateStore` takes, and what of that is the supervisor.

    python -m bench.many [delay in ms, default 20] [keys, default 200]

The store is moto's server behind a proxy that holds each answer back, each in a process of its own. The supervisor is a
double that answers at once or after 5 ms. Rounds are interleaved.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

ROUNDS = 7
SUPERVISOR_MS = (0, 5)


class Supervisor:
    """Keeps rows in memory, and answers one question after the other."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._rows: dict[str, Any] = {}

    def send(self, message: Any) -> Any:
        """Answer."""
        from airflow.sdk.execution_time import comms

        with self._lock:
            if self._seconds:
                time.sleep(self._seconds)
            if isinstance(message, comms.SetTaskStateStore):
                self._rows[message.key] = message.value
            elif isinstance(message, comms.GetTaskStateStore):
                return comms.TaskStateStoreResult(value=self._rows[message.key])
        return None


def serve() -> None:
    """Serve S3 until standard input ends."""
    from async_state.testing import fake_s3

    with fake_s3(["bench"]) as server:
        print(server.url, flush=True)
        sys.stdin.read()


def measured(call: Callable[[Any], object], argument: Any) -> float:
    """Return the call's milliseconds."""
    begun = time.perf_counter()
    call(argument)
    return (time.perf_counter() - begun) * 1000


def main(delay_ms: float, count: int) -> None:
    """Print medians, with the least and the most."""
    from airflow.sdk.execution_time.context import TaskStateStoreAccessor
    from airflow.sdk.execution_time.supervisor import set_supervisor_comms
    from airflow.sdk.state import TaskScope

    from async_state import AsyncStateBackend, Settings, StateStore, compat

    logging.disable(logging.INFO)
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    run = [sys.executable, "-m"]
    server = subprocess.Popen([*run, "bench.many", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    host, _, port = server.stdout.readline().strip().removeprefix("http://").partition(":")  # type: ignore[union-attr]
    proxy = subprocess.Popen([*run, "bench.delay", host, port, str(delay_ms)], stdout=subprocess.PIPE, text=True)
    endpoint = f"http://127.0.0.1:{proxy.stdout.readline().strip()}"  # type: ignore[union-attr]
    values = {f"key-{n}": n for n in range(count)}
    found: dict[str, list[float]] = {}
    try:
        with AsyncStateBackend(Settings(url="s3://bench/many", endpoint_url=endpoint)) as backend:
            compat.worker_backend = lambda: backend
            gc.freeze()
            for _ in range(ROUNDS):
                for ms in SUPERVISOR_MS:
                    scope = TaskScope(dag_id=uuid.uuid4().hex, run_id="r", task_id="t", map_index=-1)
                    state = StateStore(TaskStateStoreAccessor(uuid.UUID(int=1), scope))
                    with set_supervisor_comms(Supervisor(ms / 1000)):
                        state.set("warm", 1)
                        told = f"supervisor {ms} ms"
                        found.setdefault(f"set_many, {told}", []).append(measured(state.set_many, values))
                        found.setdefault(f"get_many, {told}", []).append(measured(state.get_many, values))
                alone = found.setdefault("the store's part of set_many", [])
                alone.append(measured(asyncio.run, write(backend, scope, values)))
        ideal = -(-count // Settings().max_concurrency) * delay_ms
    finally:
        proxy.kill()
        server.kill()
    print(f"{count} keys at {delay_ms:g} ms a request, {ROUNDS} rounds; ideal {ideal:g} ms: median (least to most)")
    for what, times in found.items():
        middle = statistics.median(times)
        print(f"{what:30} {middle:6.0f} ms ({min(times):.0f} to {max(times):.0f}), {middle / ideal:.2f} x the ideal")


async def write(backend: Any, scope: Any, values: dict[str, int]) -> None:
    """Write the values without any rows."""
    serialize = backend.aserialize_task_state_store_to_ref
    await asyncio.gather(*(serialize(value=value, key=key, scope=scope) for key, value in values.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    else:
        given = sys.argv[1:]
        main(float(given[0]) if given else 20, int(given[1]) if len(given) > 1 else 200)
