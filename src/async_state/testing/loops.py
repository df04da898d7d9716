"""How long an event loop stands still, as a test can ask on any machine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

#: A thread takes a turn in each such time.
_TURN_SECONDS: Final = 0.005


@dataclass
class Standstill:
    """What `standstill` found.

    Attributes:
        seconds: the longest that the loop stood still.
    """

    seconds: float = 0.0


@contextlib.asynccontextmanager
async def standstill() -> AsyncIterator[Standstill]:
    """Measure for how long the running loop stands still at the worst, while the block runs.

    A thread counts the turns that it can take between two turns of the loop. Time in which the thread gets no turn
    either does not count: a machine that is busy with something else then slows both down, and a garbage collection
    stops both. A blocking call on the loop stops the loop alone.
    """
    found = Standstill()
    turns = 0
    over = threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not over.wait(_TURN_SECONDS):
            turns += 1
            found.seconds = max(found.seconds, turns * _TURN_SECONDS)

    async def tick() -> None:
        nonlocal turns
        while True:
            turns = 0
            await asyncio.sleep(0.001)

    thread = threading.Thread(target=take_turns, name="standstill", daemon=True)
    ticker = asyncio.create_task(tick())
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        ticker.cancel()
