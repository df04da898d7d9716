"""Triggers that use state on the triggerer's loop, and measure how long that loop stands still meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from airflow.sdk.execution_time.context import _get_worker_state_store_backend
from airflow.sdk.state import AssetScope
from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TriggerEvent

from async_state import AsyncStateBackend, AsyncStateStore
from async_state.testing.loops import standstill

if TYPE_CHECKING:
    from pydantic import JsonValue

VALUE: dict[str, JsonValue] = {"watermark": "2026-01-01T00:00:00+00:00", "offsets": [1, 2, 3]}


class Ticker:
    """A task that wakes every millisecond, as any other trigger would like to."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.worst = 0.0
        self.collecting = 0.0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            self._note()

    @contextlib.contextmanager
    def measured(self, figures: dict[str, Any], name: str) -> Iterator[None]:
        """Note the worst gap between two wakings in the block, and the block's wall time, in milliseconds."""
        self._note()
        self.worst = self.collecting = 0.0
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._note()
            figures[name] = {
                "gap": round(self.worst * 1000, 1),
                "wall": round((time.perf_counter() - begun) * 1000, 1),
                # Full collections walk everything that Airflow has imported: gaps that are nobody's.
                "gc": round(self.collecting * 1000, 1),
            }

    @contextlib.asynccontextmanager
    async def observed(self, figures: dict[str, Any], name: str) -> AsyncIterator[None]:
        """Note also for how many milliseconds the loop stood still, beside what stops the whole process."""
        async with standstill() as found:
            with self.measured(figures, name):
                yield
        figures[name]["standstill"] = round(found.seconds * 1000, 1)

    def collected(self, phase: str, _: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        else:
            self.collecting = max(self.collecting, now - self._began)

    def _note(self) -> None:
        # A gap lasts until now, even if the ticker itself has not woken yet.
        now = time.perf_counter()
        self.worst, self.last = max(self.worst, now - self.last), now


@contextlib.asynccontextmanager
async def ticking() -> AsyncIterator[Ticker]:
    ticker = Ticker()
    task = asyncio.create_task(ticker.run())
    gc.callbacks.append(ticker.collected)
    try:
        yield ticker
    finally:
        gc.callbacks.remove(ticker.collected)
        task.cancel()


def event(payload: Any) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]


class Measuring(BaseEventTrigger):
    """Uses its asset's state as watchers are written today, tells how that went, and then writes for ever."""

    def __init__(self, rounds: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounds = rounds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {"rounds": self.rounds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        store = self.asset_state_store
        assert store is not None
        told: dict[str, Any] = {"pid": os.getpid()}
        try:
            async with ticking() as ticker:
                # What the loop does without us.
                with ticker.measured(told, "idle"):
                    await asyncio.sleep(0.5)
                # The supervisor's first answer takes seconds, while it builds its API. No key, so no backend either.
                with ticker.measured(told, "supervisor"):
                    await store.aget("no such key")
                async with ticker.observed(told, "first use"):
                    # Of a state that an earlier triggerer wrote, so the store is used; at the very first, of nothing.
                    try:
                        told["resumed with"] = await store.aget("watermark", "nothing")
                        await store.aset("watermark", VALUE)
                    except Exception as e:
                        # For bench/triggerer.py: other backends fail on a loop unless a thread has used them before.
                        told["failed at first"] = f"{type(e).__name__}: {e}"
                yield event({"resumed with": told.get("resumed with")})
                if "failed at first" in told and (backend := _get_worker_state_store_backend()) is not None:
                    await backend.aget(AssetScope(name="primed"), "primed")
                async with ticker.observed(told, "afterwards"):
                    for i in range(self.rounds):
                        await store.aset("cursor", {**VALUE, "round": i})
                        got = await store.aget("cursor")
                        assert got == {**VALUE, "round": i}, got
                        await store.adelete("cursor")
                told["deleted"] = await store.aget("cursor", "nothing")
                told["watermark"] = await store.aget("watermark")
                async with ticker.observed(told, "gathered"):
                    # These are tasks of its own, to which the triggerer gives no greenback portal.
                    await asyncio.gather(*(store.aset(f"gathered {i}", i) for i in range(8)))
                told["gathered values"] = await asyncio.gather(*(store.aget(f"gathered {i}") for i in range(8)))
                if isinstance(_get_worker_state_store_backend(), AsyncStateBackend):
                    await self.use_what_is_ours(store, ticker, told)
        except Exception as e:
            told["failed"] = f"{type(e).__name__}: {e}"
        yield event(told)
        for i in range(1_000_000):
            await store.aset("endless", i)

    async def use_what_is_ours(self, accessor: Any, ticker: Ticker, told: dict[str, Any]) -> None:
        state = AsyncStateStore(accessor)
        async with ticker.observed(told, "updates"):
            await asyncio.gather(*(state.aupdate("count", lambda n: n + 1, 0) for _ in range(3)))
        told["count"] = await state.aget("count")
        other = AsyncStateStore.of_task(dag_id="none", run_id="none", task_id="none")
        async with ticker.observed(told, "by scope"):
            told["of another task"] = await other.aget("watermark", "nothing")
            told["its keys"] = await other.akeys()


class Waiting(BaseTrigger):
    """What a deferred task waits for: fires at once, and tells what it was given."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        ti = self.task_instance
        yield event({"task instance": type(ti).__name__, "context": hasattr(ti, "get_template_context")})
