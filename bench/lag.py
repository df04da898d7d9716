"""How long the caller's event loop stands still: ``python -m bench lag``.

The longest time between two turns of a ticker that sleeps 1 ms, on the loop whose coroutines use the state: 1 ms and a
little is a loop that nothing holds up. On rclone's server behind the proxy that holds back answers by 20 ms, at the
first use (imports included) and then during puts that are started at once. Ours is measured as our plugin prepares a
triggerer, and unprepared; common-io's synchronous hooks are called on the loop, as Airflow 3.3's accessors call them,
but for the first use: there it fails on a loop, and is given a thread.
A sample is one process, which has imported Airflow's SDK and frozen it (``gc.freeze``).
"""

from __future__ import annotations

import asyncio
import gc
import importlib

from bench.first import UNPREPARED
from bench.gaps import worst_gap
from bench.rivals import KEYS, RIVALS, Ours, Rival, installed
from bench.samples import Found, Sizes, rotated
from bench.servers import DELAY, Servers

_NAMES = ("async_state", "common-io", "aiobotocore")


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure a process of each rival in each round."""
    names = [*installed(*_NAMES), UNPREPARED]
    for number in range(sizes.rounds):
        for name in rotated(names, number):
            first, puts = servers.child("lag.child", servers.rclone[DELAY], name=name, puts=sizes.lag_puts)
            found.add("lag", name, "ms", first * 1000, phase="first use")
            if name != UNPREPARED:
                found.add("lag", name, "ms", puts * 1000, phase="puts at once")


def child(endpoint: str, name: str, puts: int) -> tuple[float, float]:
    """Return the longest gap of the first use and of the puts, in seconds."""
    importlib.import_module("airflow.sdk.execution_time.task_runner")
    if name == "async_state":
        from async_state.stores import prepare

        prepare(Ours.settings(endpoint))
    gc.collect()
    gc.freeze()
    return asyncio.run(_gaps(endpoint, name.partition(",")[0], puts))


async def _gaps(endpoint: str, name: str, puts: int) -> tuple[float, float]:
    rivals: list[Rival] = []

    async def first() -> None:
        if name == "common-io":
            await asyncio.to_thread(_use_common_io, endpoint, rivals)
            return
        rivals.append(RIVALS[name](endpoint))
        await rivals[0].aopen()
        await _put(rivals[0], KEYS[0])

    async def at_once() -> None:
        await asyncio.gather(*(_put(rivals[0], key) for key in KEYS[:puts]))

    gaps = await worst_gap(first()), await worst_gap(at_once())
    await rivals[0].aclose()
    rivals[0].close()
    return gaps


def _use_common_io(endpoint: str, rivals: list[Rival]) -> None:
    rivals.append(RIVALS["common-io"](endpoint))
    rivals[0].put(KEYS[0])


async def _put(rival: Rival, key: str) -> None:
    if rival.name == "common-io":
        rival.put(key)
    else:
        await rival.aput(key)
