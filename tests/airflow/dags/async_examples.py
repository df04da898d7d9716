"""Runs packaged examples by ``dag.test()``, as a program: see tests/airflow/test_accessors.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from async_state.example_dags import async_state_mapped, async_state_task


def returned(dag: DAG, task: str) -> Any:
    run: Any = dag.test()
    assert run.state == "success"
    return run.get_task_instance(task).xcom_pull(task_ids=task)


if __name__ == "__main__":
    found = {
        "task": returned(async_state_task.dag, "load"),
        "mapped": [returned(async_state_mapped.dag, "total") for _ in range(2)],
    }
    Path(os.environ["HOME"], "found.json").write_text(json.dumps(found))
