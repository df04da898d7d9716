"""Many keys from a plain task: how long `StateStore` takes, and what of that is the supervisor.

    python -m bench.many [delay in ms, default 20] [keys, default 200]

The store is `bench.server` in a process of its own, which answers after the delay. The supervisor is a double that
answers at once or after 5 ms. The ideal is what the longer of the two takes by itself: the store ``max_concurrency``
requests at a time, and the supervisor one question. Rounds are interleaved.
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
    command = [sys.executable, "-m", "bench.server", str(delay_ms)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"  # type: ignore[union-attr]
    values = {f"key-{n}": n for n in range(count)}
    found: dict[str, list[float]] = {}
    waves = -(-count // Settings().max_concurrency) * delay_ms
    ideals: dict[str, float] = {}
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
                        for call in state.set_many, state.get_many:
                            what = f"{call.__name__}, {told}"
                            ideals[what] = max(waves, ms * count)
                            found.setdefault(what, []).append(measured(call, values))
                alone = found.setdefault("the store's part of set_many", [])
                alone.append(measured(asyncio.run, write(backend, scope, values)))
    finally:
        server.kill()
    print(f"{count} keys at {delay_ms:g} ms a request, {ROUNDS} rounds: median (least to most)")
    for what, times in found.items():
        middle, ideal = statistics.median(times), ideals.get(what, waves)
        print(
            f"{what:30} {middle:6.0f} ms ({min(times):.0f} to {max(times):.0f}), {middle / ideal:.2f} x the ideal, "
            f"which is {ideal:g} ms"
        )


async def write(backend: Any, scope: Any, values: dict[str, int]) -> None:
    """Write the values without any rows."""
    serialize = backend.aserialize_task_state_store_to_ref
    await asyncio.gather(*(serialize(value=value, key=key, scope=scope) for key, value in values.items()))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 20, int(given[1]) if len(given) > 1 else 200)
