"""Tasks whose spans and metrics tests/airflow/test_telemetry.py receives."""

from __future__ import annotations

import asyncio

from airflow.sdk import DAG, get_current_context, task

from async_state import AsyncStateStore

with DAG("telemetry", schedule=None):

    @task
    def plain() -> None:
        """Use the SDK's accessor."""
        state = get_current_context()["task_state_store"]
        state.set("secret-key", "secret-value")
        state.get("secret-key")

    @task
    async def coroutines() -> None:
        """Have several operations in flight."""
        state = AsyncStateStore(get_current_context()["task_state_store"])
        await asyncio.gather(*(state.aset(f"secret-{i}", "secret-value") for i in range(5)))

    plain()
    coroutines()
