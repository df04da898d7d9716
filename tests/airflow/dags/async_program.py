"""A DAG that runs itself by ``dag.test()``, as a program: see tests/airflow/test_accessors.py."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, get_current_context, task

from async_state import AsyncStateStore

FOUND = Path(os.environ["HOME"], "found.json")
ORDERS = Asset(name="of-dag-test", uri="s3://of-dag-test/daily")


@task(outlets=[ORDERS])
async def of_the_sdk() -> None:
    context: Any = get_current_context()
    found = {}
    for name, state in ("task", context["task_state_store"]), ("asset", context["asset_state_store"][ORDERS]):
        await asyncio.gather(*(state.aset(f"k{i}", i) for i in range(4)))
        await state.adelete("k0")
        found[name] = await asyncio.gather(*(state.aget(f"k{i}", "default") for i in range(3)))
    store = AsyncStateStore(context["task_state_store"])
    found["many"] = [await store.aget_many(["k1", "k2"])]
    await store.aclear()
    found["cleared"] = [await store.aget("k1", "default")]
    # A sync call between them, which in `dag.test()` uses the same channel.
    context["task_state_store"].set("sync", "value")
    found["sync"] = [await store.aget("sync")]
    FOUND.write_text(json.dumps(found))


with DAG("async_program", schedule=None) as dag:
    of_the_sdk()

if __name__ == "__main__":
    ended = dag.test().state
    FOUND.write_text(json.dumps({**json.loads(FOUND.read_text()), "ended": ended}))
