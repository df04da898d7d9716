"""Milliseconds of CPU time that the client spends on one put or get of 64 bytes: ``python -m bench cpu``.

All threads of the process count, the server's process does not. On rclone's server without delay, one after the other;
a sample is a round's time by its operations. Rounds alternate between the clients, under ``gc.freeze`` as in Airflow's
executors.

obstore takes the least, and is not the backend's client: it can't be used in a process that was forked after its first
use, as Airflow forks its tasks, and it has not botocore's chain of credentials, from which the backend's come.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

from bench.clients import CLIENTS, KEYS, Client, installed, opened
from bench.samples import Found, Sizes, rotated
from bench.servers import Servers

_NAMES = ("async_state", "boto3", "aiobotocore", "obstore", "aiohttp")


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure in a process of its own."""
    samples = servers.child("cpu.child", servers.rclone[0], rounds=sizes.rounds, operations=sizes.cpu_operations)
    for name, operation, mode, value in samples:
        found.add("cpu", name, "ms", value, operation=operation, mode=mode)


def child(endpoint: str, rounds: int, operations: int) -> list[Any]:
    """Return client, operation, mode and milliseconds an operation of each round."""
    return sampled([CLIENTS[name](endpoint) for name in installed(*_NAMES)], rounds, operations)


def sampled(clients: list[Client], rounds: int, operations: int) -> list[Any]:
    """Return client, operation, mode and milliseconds an operation of each round."""
    ways = [(client, "sync") for client in clients if client.synchronous]
    ways += [(client, "async") for client in clients if client.asynchronous]
    samples = []
    with opened(clients) as loop:
        for client, mode in ways:
            for operation in "put", "get":
                _take(loop, client, mode, operation, 3)
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            for client, mode in rotated(ways, number):
                for operation in "put", "get":
                    took = _take(loop, client, mode, operation, operations)
                    samples.append((client.name, operation, mode, took / operations * 1000))
    return samples


def _take(loop: asyncio.AbstractEventLoop, client: Client, mode: str, operation: str, operations: int) -> float:
    keys = (KEYS[:3] * operations)[:operations]
    if mode == "async":
        return loop.run_until_complete(_atake(client, operation, keys))
    call = client.put if operation == "put" else client.get
    begun = time.process_time()
    for key in keys:
        call(key)
    return time.process_time() - begun


async def _atake(client: Client, operation: str, keys: list[str]) -> float:
    call = client.aput if operation == "put" else client.aget
    begun = time.process_time()
    for key in keys:
        await call(key)
    return time.process_time() - begun
