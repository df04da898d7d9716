"""State in a trigger: the state of the task that has deferred to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_state import compat
from async_state.accessors import AsyncStateStore

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger


def task_state(trigger: BaseTrigger) -> AsyncStateStore:
    """Return the state of the task that has deferred to a trigger, for the trigger's ``run``.

    In a trigger:

        async def run(self):
            state = task_state(self)
            job_id = await state.aget("job_id")
            await state.aset("progress", 0)  # a key that the task has set before it deferred

    Args:
        trigger: A trigger that runs in a triggerer. Airflow sets its ``task_instance`` before it calls ``run``.

    Returns:
        The state through Airflow's own accessor where a release gives one to triggers (``task_state_store``), and else
        by scope.

    Raises:
        LookupError: The trigger has no task, such as one that watches an asset, or does not run yet.
    """
    accessor = getattr(trigger, "task_state_store", None)
    if accessor is not None:
        return AsyncStateStore(accessor)
    ti: Any = getattr(trigger, "task_instance", None)
    if ti is None:
        raise LookupError(
            f"{type(trigger).__name__} has no task instance: Airflow gives it one before run() where a task has "
            "deferred to it, and none to a trigger that watches an asset, which has self.asset_state_store"
        )
    region = getattr(ti, "region_id", None)
    return AsyncStateStore(
        compat.task_scope(
            dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index, region_id=region
        )
    )
