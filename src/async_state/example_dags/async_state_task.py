"""A task that submits a job and keeps its id, so that a retry goes on with the same job.

Without state, a task that is tried again submits its job again. Here the first try keeps the job's id as soon as there
is one, and a later try finds it. The second task keeps a checkpoint, and goes on after the last part that was done.

Set ``fail_once`` to see it: the first try of ``run_job`` then fails after it has submitted.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

with DAG(
    "async_state_task",
    schedule=None,
    catchup=False,
    params={"fail_once": Param(False, type="boolean", description="Fail after the job's submission")},
    tags=["async_state"],
    doc_md=__doc__,
) as dag:

    @task(retries=1, retry_delay=timedelta(seconds=5))
    def run_job() -> str:
        """Submit a job, unless an earlier try has, and return its id."""
        context = get_current_context()
        state = context["task_state_store"]
        job_id: Any = state.get("job_id")
        if job_id is None:
            job_id = f"job of {context['run_id']}"  # stands for the job's submission
            state.set("job_id", job_id)
            if context["params"]["fail_once"]:
                raise RuntimeError("failed once, as the parameter fail_once says")
        return str(job_id)

    @task
    def load(job_id: str) -> list[str]:
        """Load the job's parts, and keep how many are done."""
        state = get_current_context()["task_state_store"]
        parts = [f"{job_id}, part {number}" for number in range(3)]
        done: Any = state.get("done", 0)
        for number in range(done, len(parts)):
            # The work on parts[number] would be here.
            state.set("done", number + 1)
        return parts

    load(run_job())  # type: ignore[arg-type]
