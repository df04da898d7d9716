"""Milliseconds that one put or get of 64 bytes takes, one after the other: ``python -m bench latency``.

On rclone's server, without delay and behind the proxy that holds back answers by 20 ms. A sample is the median
operation of a round; rounds alternate between the clients, synchronous calls and coroutines. "async" is awaited on a
loop of the caller's, "sync" is called from a thread without one. All clients share one process, whose garbage collector
does not look at what Airflow's modules hold (``gc.freeze``), as in Airflow's own executors.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

from bench.clients import CLIENTS, KEYS, Client, installed, opened
from bench.samples import Found, Sizes, rotated
from bench.servers import Servers

_NAMES = ("async_state", "common-io", "boto3", "aiobotocore", "obstore", "aiohttp")


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure every delay in a process of its own."""
    for delay, endpoint in servers.rclone.items():
        operations = sizes.delayed_operations if delay else sizes.operations
        samples = servers.child("latency.child", endpoint, rounds=sizes.rounds, operations=operations)
        for name, operation, mode, value in samples:
            found.add("latency", name, "ms", value, operation=operation, mode=mode, delay=delay)


def child(endpoint: str, rounds: int, operations: int) -> list[Any]:
    """Return client, operation, mode and milliseconds of each round."""
    return sampled([CLIENTS[name](endpoint) for name in installed(*_NAMES)], rounds, operations)


def sampled(clients: list[Client], rounds: int, operations: int) -> list[Any]:
    """Return client, operation, mode and milliseconds of each round."""
    ways = [(client, False) for client in clients if client.synchronous]
    ways += [(client, True) for client in clients if client.asynchronous]
    samples = []
    with opened(clients) as loop:
        for client, on_loop in ways:
            for operation in "put", "get":
                _take(loop, client, on_loop, operation, 3)
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            for client, on_loop in rotated(ways, number):
                for operation in "put", "get":
                    took = sorted(_take(loop, client, on_loop, operation, operations))
                    samples.append((client.name, operation, _mode(on_loop), took[len(took) // 2] * 1000))
    return samples


def _mode(on_loop: bool) -> str:
    return "async" if on_loop else "sync"


def _take(
    loop: asyncio.AbstractEventLoop, client: Client, on_loop: bool, operation: str, operations: int
) -> list[float]:
    keys = (KEYS[:3] * operations)[:operations]
    if on_loop:
        return loop.run_until_complete(_atake(client, operation, keys))
    call = client.put if operation == "put" else client.get
    took = []
    for key in keys:
        begun = time.perf_counter()
        call(key)
        took.append(time.perf_counter() - begun)
    return took


async def _atake(client: Client, operation: str, keys: list[str]) -> list[float]:
    call = client.aput if operation == "put" else client.aget
    took = []
    for key in keys:
        begun = time.perf_counter()
        await call(key)
        took.append(time.perf_counter() - begun)
    return took
