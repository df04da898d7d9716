"""What a subclass overrides counts through the SDK's patched accessors and through `AsyncStateStore`.

Each test is a process of its own, as the accessors' patches last. The supervisor is a double that keeps the rows.
"""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.processes import in_process

SECRET = "plain text of the value"
ENVIRONMENT = {"AIRFLOW__WORKERS__STATE_STORE_BACKEND": "tests.airflow.dags.async_subclass.Encrypting"}


def used(of: str, way: str) -> dict[str, Any]:
    """Set, get, delete and clear through an accessor, and return what came of it."""
    from airflow.sdk.execution_time import comms
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor, TaskStateStoreAccessor
    from airflow.sdk.execution_time.supervisor import set_supervisor_comms
    from airflow.sdk.state import TaskScope

    from async_state import AsyncStateStore, patches
    from tests.airflow.dags.async_subclass import DELETED

    rows: dict[str, Any] = {}

    class Supervisor:
        """Keeps the rows of one accessor, as the API server does."""

        def send(self, message: Any) -> Any:
            verb = type(message).__name__[:3]
            if verb == "Set":
                rows[message.key] = message.value
            elif verb == "Get" and message.key in rows:
                result = comms.TaskStateStoreResult if of == "task" else comms.AssetStateStoreResult
                return result(value=rows[message.key])
            return None

        async def asend(self, message: Any) -> Any:
            return self.send(message)

    patches.install()
    accessor: Any = AssetStateStoreAccessor(name="orders")
    if of == "task":
        accessor = TaskStateStoreAccessor(uuid.UUID(int=1), TaskScope(dag_id="d", run_id="r", task_id="t"))
    state: Any = AsyncStateStore(accessor) if way == "store" else accessor

    async def everything() -> Any:
        await state.aset("k", SECRET)
        found = await state.aget("k")
        await state.adelete("other")
        await state.aclear()
        return found

    with set_supervisor_comms(Supervisor()):
        if way == "sync":
            state.set("k", SECRET)
            found = state.get("k")
        else:
            found = asyncio.run(everything())
            # What the one way has written, the other reads.
            accessor.set("k", SECRET)
        other = asyncio.run(AsyncStateStore(accessor).aget("k"))
    return {"found": found, "the other way": other, "deleted": DELETED}


@pytest.mark.parametrize("of", ["task", "asset"])
@pytest.mark.parametrize("way", ["sync", "accessor", "store"])
def test_contract_32_a_subclass_that_overrides_the_hooks_is_not_bypassed(tmp_path: Path, of: str, way: str) -> None:
    url = {"AIRFLOW__ASYNC_STATE__URL": f"file://{tmp_path}/state"}
    found = in_process(used, of, way, **ENVIRONMENT, **url)
    assert found["found"] == found["the other way"] == SECRET
    assert found["deleted"] == ([] if way == "sync" else ["other", "all"])
    (stored,) = [path.read_text() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert SECRET not in stored
