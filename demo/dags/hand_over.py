"""State that outlives its process: an asset's watermark, and the job of a task whose worker is killed."""

from __future__ import annotations

import os
import signal
from typing import Any

from airflow.sdk import DAG, Asset, task
from demo.watch import asset_state, tagged, task_state

ORDERS = Asset(name="orders", uri="s3://demo/orders")

with DAG("hand_over", schedule=None):

    @task(outlets=[ORDERS])
    def load(**context: Any) -> None:
        asset_state(context, ORDERS).set("watermark", tagged("2026-05-02"))

    @task
    def run_job(**context: Any) -> None:
        state = task_state(context)
        if state.get("job_id") is None:
            state.set("job_id", tagged("spark_app_002"))
            os.kill(os.getpid(), signal.SIGKILL)

    load() >> run_job()

with DAG("take_over", schedule=None):

    @task(inlets=[ORDERS])
    def load_rest(**context: Any) -> None:
        assert asset_state(context, ORDERS).get("watermark")

    load_rest()
