"""Puts of 64 bytes a second, 1 to 256 started at once: ``python -m bench throughput``.

On rclone's server without delay. As many as are started at once are waited for before the next ones start. Ours sends
24 at once by default, and is measured with 64 as well, since all others may have 64 connections; boto3 puts from as
many threads, and common-io's coroutines from those of asyncio's own pool. Rounds alternate between the clients, in one
process, under ``gc.freeze`` as in Airflow's executors.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

from bench.clients import CLIENTS, KEYS, Client, installed, opened
from bench.samples import Found, Sizes, rotated
from bench.servers import Servers


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure in a process of its own."""
    arguments: dict[str, Any] = {"rounds": sizes.rounds, "levels": sizes.levels, "puts": sizes.puts}
    for name, level, value in servers.child("throughput.child", servers.rclone[0], **arguments):
        found.add("throughput", name, "puts/s", value, at_once=level)


def child(endpoint: str, rounds: int, levels: list[int], puts: int) -> list[Any]:
    """Return client, number started at once, and puts a second of each round."""
    return sampled([CLIENTS[name](endpoint) for name in installed()], rounds, levels, puts)


def sampled(clients: list[Client], rounds: int, levels: list[int], puts: int) -> list[Any]:
    """Return client, number started at once, and puts a second of each round."""
    samples = []
    with opened(clients) as loop:
        for client in clients:
            loop.run_until_complete(_puts_a_second(client, max(levels), 1))
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            for level in levels:
                for client in rotated(clients, number):
                    rate = loop.run_until_complete(_puts_a_second(client, level, puts))
                    samples.append((client.name, level, rate))
    return samples


async def _puts_a_second(client: Client, level: int, puts: int) -> float:
    batches = max(1, puts // level)
    begun = time.perf_counter()
    for _ in range(batches):
        await client.gather(KEYS[:level])
    # What a client has left to its loop belongs to it.
    await asyncio.sleep(0)
    return batches * level / (time.perf_counter() - begun)
