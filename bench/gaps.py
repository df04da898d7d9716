"""How long an event loop stands still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any


async def worst_gap(work: Coroutine[Any, Any, None]) -> float:
    """Return the longest time in seconds between two turns of a ticker that sleeps 1 ms, while ``work`` is awaited."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now

    ticker = asyncio.create_task(tick())
    # It ticks before the work begins, and once after.
    await asyncio.sleep(0.01)
    worst = 0.0
    await work
    await asyncio.sleep(0.01)
    ticker.cancel()
    return worst
