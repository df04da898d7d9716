"""An asset that a trigger watches, and a task that defers: see tests/airflow/test_triggerer.py."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, BaseOperator

from tests.airflow.triggers.watching import VALUE, Measuring, Waiting

# Airflow starts a watcher only if a DAG is scheduled by its asset.
MEASURED = Asset(
    "measured", watchers=[AssetWatcher(name="watcher", trigger=Measuring(rounds=int(os.environ["TRIGGERER_ROUNDS"])))]
)


class Deferring(BaseOperator):
    def execute(self, context: Any) -> None:
        state = context["task_state_store"]
        assert state.get("job") is None
        state.set("job", VALUE)
        self.defer(trigger=Waiting(), method_name="resume")  # type: ignore[no-untyped-call]

    def resume(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        state = context["task_state_store"]
        job = state.get("job")
        state.set("done", True)
        return {"job": job, **event}


with DAG("watching", schedule=[MEASURED]):
    pass

with DAG("deferring", schedule=None):
    Deferring(task_id="deferring")
