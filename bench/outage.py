"""How many operations outlive an outage of the store: ``python -m bench outage``.

Twelve sets and twelve gets start at once; from the first one's request on, `bench.server` answers 503 for ten seconds.
Ours has its default ``timeout`` of 20 seconds; common-io has no such option, and tries as often as s3fs and botocore.
A sample is one process, which has used the store before.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.request import Request, urlopen

from bench.clients import CLIENTS, VALUE, Client, installed
from bench.samples import Found, Sizes, rotated
from bench.servers import Servers

_NAMES = ("async_state", "common-io")
#: A round takes as long as the outage, and more.
_MOST_ROUNDS = 2
_OPERATIONS = 12


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure a process of each client in each round."""
    for number in range(min(sizes.rounds, _MOST_ROUNDS)):
        for name in rotated(installed(*_NAMES), number):
            arguments: dict[str, Any] = {"name": name, "seconds": sizes.outage_seconds}
            for operation, succeeded in servers.child("outage.child", servers.memory[0], **arguments).items():
                found.add("outage", name, f"of {_OPERATIONS}", succeeded, operation=operation)


def child(endpoint: str, name: str, seconds: float) -> dict[str, int]:
    """Return how many of the operations succeeded, of each kind."""
    return asyncio.run(_outlived(CLIENTS[name](endpoint), endpoint, seconds))


async def _outlived(client: Client, endpoint: str, seconds: float) -> dict[str, int]:
    keys = [f"outage-{number}" for number in range(_OPERATIONS)]
    # In a thread of its own: common-io fails at its first use on a loop.
    await asyncio.to_thread(client.put, keys[0])
    for key in keys:
        await client.aput(key)
    await asyncio.to_thread(_announce_outage, endpoint, seconds)
    sets = [client.aput(f"{key}-new") for key in keys]
    gets = [client.aget(key) for key in keys]
    outcomes = await asyncio.gather(*sets, *gets, return_exceptions=True)
    client.close()
    return {
        "set": sum(outcome is None for outcome in outcomes[:_OPERATIONS]),
        "get": sum(outcome == VALUE for outcome in outcomes[_OPERATIONS:]),
    }


def _announce_outage(endpoint: str, seconds: float) -> None:
    urlopen(Request(f"{endpoint}/_outage?seconds={seconds}", method="POST")).close()
