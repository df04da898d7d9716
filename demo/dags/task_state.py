"""The proposal's first DAG: the state of a task instance."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task
from demo.watch import tagged, task_state

with DAG("task_state", schedule=None):

    @task
    def set_and_get(**context: Any) -> None:
        state = task_state(context)
        state.set("job_id", tagged("spark_app_001"))
        state.set("checkpoint", tagged("step_3"))
        assert state.get("job_id") == tagged("spark_app_001")
        assert state.get("checkpoint") == tagged("step_3")

    @task
    def delete(**context: Any) -> None:
        state = task_state(context)
        state.set("to_delete", tagged("temporary_value"))
        assert state.get("to_delete") == tagged("temporary_value")
        state.delete("to_delete")
        assert state.get("to_delete") is None

    @task
    def clear(**context: Any) -> None:
        state = task_state(context)
        state.set("key_a", tagged("value_a"))
        state.set("key_b", tagged("value_b"))
        state.clear()
        assert state.get("key_a") is None
        assert state.get("key_b") is None

    set_and_get() >> delete() >> clear()
