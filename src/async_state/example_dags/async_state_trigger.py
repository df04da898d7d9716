"""A deferrable operator whose trigger keeps its progress, so that another triggerer goes on where the last one ended.

The operator submits a job, keeps its id, and defers. The trigger works through the job's pages and keeps how far it has
come in the state of the operator's task. When the triggerer is killed, the next one starts the trigger anew, which
begins at the page that the state tells. In the end the task resumes and reads the progress.

A trigger can replace the value of a key that the task has set, and can't make new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from async_state import task_state


class PagesTrigger(BaseTrigger):
    """Works through a job's pages.

    Args:
        pages: How many pages there are.
        seconds: How long the work on one takes.
    """

    def __init__(self, pages: int, seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pages = pages
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow makes the trigger of, in each triggerer that runs it."""
        # A module that the triggerer can import, which a file in the folder of DAGs is not.
        return "async_state.example_dags.async_state_trigger.PagesTrigger", {
            "pages": self.pages,
            "seconds": self.seconds,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Do what is left."""
        state = task_state(self)
        progress: Any = await state.aupdate("progress", lambda p: {**p, "starts": p["starts"] + 1})
        for page in range(progress["page"], self.pages):
            await asyncio.sleep(self.seconds)  # stands for the work on a page
            progress["page"] = page + 1
            await state.aset("progress", progress)
        yield TriggerEvent(await state.aget("job_id"))  # type: ignore[no-untyped-call]


class PagesOperator(BaseOperator):
    """Submits a job and waits for its pages without a worker.

    Args:
        pages: As for `PagesTrigger`.
        seconds: As for `PagesTrigger`.
    """

    def __init__(self, *, pages: int = 100, seconds: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pages = pages
        self.seconds = seconds

    def execute(self, context: Any) -> None:
        """Submit the job, unless an earlier try has."""
        state = context["task_state_store"]
        if state.get("job_id") is None:
            state.set("progress", {"page": 0, "starts": 0})
            state.set("job_id", f"job of {context['run_id']}")  # stands for the job's submission
        self.defer(trigger=PagesTrigger(self.pages, self.seconds), method_name="resume")

    def resume(self, context: Any, event: str) -> Any:
        """Return how far the trigger has come."""
        progress = context["task_state_store"].get("progress")
        self.log.info("%s is through: %s", event, progress)
        return progress


with DAG("async_state_trigger", schedule=None, catchup=False, tags=["async_state"], doc_md=__doc__) as dag:
    PagesOperator(task_id="pages", pages=10, seconds=0.1)
