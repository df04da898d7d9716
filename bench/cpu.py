"""Milliseconds of CPU time that the client spends on one put or get of 64 bytes: ``python -m bench cpu``.

All threads of the process count, the server's process does not. On rclone's server without delay, one after the other;
a sample is a round's time by its operations. Rounds alternate between the rivals, under ``gc.freeze`` as in Airflow's
executors.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

from bench.rivals import KEYS, RIVALS, Rival, installed, opened
from bench.samples import Found, Sizes, rotated
from bench.servers import Servers

_NAMES = ("async_state", "boto3", "aiobotocore", "aiohttp")


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure in a process of its own."""
    samples = servers.child("cpu.child", servers.rclone[0], rounds=sizes.rounds, operations=sizes.cpu_operations)
    for name, operation, mode, value in samples:
        found.add("cpu", name, "ms", value, operation=operation, mode=mode)


def child(endpoint: str, rounds: int, operations: int) -> list[Any]:
    """Return rival, operation, mode and milliseconds an operation of each round."""
    rivals = [RIVALS[name](endpoint) for name in installed(*_NAMES)]
    ways = [(rival, "sync") for rival in rivals if rival.synchronous]
    ways += [(rival, "async") for rival in rivals if rival.asynchronous]
    samples = []
    with opened(rivals) as loop:
        for rival, mode in ways:
            for operation in "put", "get":
                _take(loop, rival, mode, operation, 3)
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            for rival, mode in rotated(ways, number):
                for operation in "put", "get":
                    took = _take(loop, rival, mode, operation, operations)
                    samples.append((rival.name, operation, mode, took / operations * 1000))
    return samples


def _take(loop: asyncio.AbstractEventLoop, rival: Rival, mode: str, operation: str, operations: int) -> float:
    keys = (KEYS[:3] * operations)[:operations]
    if mode == "async":
        return loop.run_until_complete(_atake(rival, operation, keys))
    call = rival.put if operation == "put" else rival.get
    begun = time.process_time()
    for key in keys:
        call(key)
    return time.process_time() - begun


async def _atake(rival: Rival, operation: str, keys: list[str]) -> float:
    call = rival.aput if operation == "put" else rival.aget
    begun = time.process_time()
    for key in keys:
        await call(key)
    return time.process_time() - begun
