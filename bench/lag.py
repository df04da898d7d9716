"""How long the caller's event loop stands still: ``python -m bench lag``.

The longest time between two turns of a ticker that sleeps 1 ms, on the loop whose coroutines use the state: 1 ms and a
little is a loop that nothing holds up. On rclone's server behind the proxy that holds back answers by 20 ms, at the
first use (imports included), during puts that are started at once, and while a backend sets and reads one large value
(8 MB of JSON in 20,000 rows), which it turns into text and back. Ours is measured as our plugin prepares a
triggerer, and unprepared; common-io's synchronous hooks are called on the loop, as Airflow 3.3's accessors call them,
but for the first use: there it fails on a loop, and is given a thread.
A sample is one process, which has imported Airflow's SDK and frozen it (``gc.freeze``).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
from typing import Any

from bench.clients import CLIENTS, KEYS, Backend, Client, Ours, installed
from bench.first import UNPREPARED
from bench.gaps import worst_gap
from bench.samples import Found, Sizes, rotated
from bench.servers import DELAY, Servers

_NAMES = ("async_state", "common-io", "aiobotocore")


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure a process of each client in each round."""
    names = [*installed(*_NAMES), UNPREPARED]
    for number in range(sizes.rounds):
        for name in rotated(names, number):
            arguments = {"name": name, "puts": sizes.lag_puts, "rows": sizes.lag_rows}
            gaps = servers.child("lag.child", servers.rclone[DELAY], **arguments)
            for phase, gap in gaps.items():
                if phase == "first use" or name != UNPREPARED:
                    found.add("lag", name, "ms", gap * 1000, phase=phase)


def child(endpoint: str, name: str, puts: int, rows: int) -> dict[str, float]:
    """Return the longest gap in each phase, in seconds."""
    importlib.import_module("airflow.sdk.execution_time.task_runner")
    if name == "async_state":
        from async_state.stores import prepare

        prepare(Ours.settings(endpoint))
    gc.collect()
    gc.freeze()
    return asyncio.run(_gaps(endpoint, name.partition(",")[0], puts, rows))


async def _gaps(endpoint: str, name: str, puts: int, rows: int) -> dict[str, float]:
    clients: list[Client] = []

    async def first() -> None:
        if name == "common-io":
            await asyncio.to_thread(_use_common_io, endpoint, clients)
            return
        clients.append(CLIENTS[name](endpoint))
        await clients[0].aopen()
        await _put(clients[0], KEYS[0])

    async def at_once() -> None:
        await asyncio.gather(*(_put(clients[0], key) for key in KEYS[:puts]))

    gaps = {"first use": await worst_gap(first()), "puts at once": await worst_gap(at_once())}
    if isinstance(clients[0], Backend):
        gaps |= await _gaps_of_large_value(clients[0], rows)
    await clients[0].aclose()
    clients[0].close()
    return gaps


async def _gaps_of_large_value(client: Backend, rows: int) -> dict[str, float]:
    value = [{"id": number, "name": f"row {number}", "text": "x" * 350} for number in range(rows)]
    ref = ""
    found: Any = None

    async def store() -> None:
        nonlocal ref
        ref = await client.aserialize(value)

    async def read() -> None:
        nonlocal found
        found = await client.adeserialize(ref)

    gaps = {"large set": await worst_gap(store()), "large read": await worst_gap(read())}
    assert found == value
    return gaps


def _use_common_io(endpoint: str, clients: list[Client]) -> None:
    clients.append(CLIENTS["common-io"](endpoint))
    clients[0].put(KEYS[0])


async def _put(client: Client, key: str) -> None:
    if client.name == "common-io":
        client.put(key)
    else:
        await client.aput(key)
