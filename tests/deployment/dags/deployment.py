"""State that stays behind, that many write, and that a trigger keeps: see tests.deployment."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Asset, get_current_context, task
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, StateStore
from async_state.example_dags.async_state_trigger import PagesOperator

KEPT = Asset(name="kept", uri="s3://assets/kept")
DROPPED = Asset(name="dropped", uri="s3://assets/dropped")


@task
def single() -> None:
    state = get_current_context()["task_state_store"]
    for key in "stays", "edited", "deleted":
        state.set(key, {"key": key})
    # It has expired by the time that anyone looks.
    state.set("expired", "soon", retention=timedelta(microseconds=1))


@task
def mapped(index: int) -> None:
    get_current_context()["task_state_store"].set("index", index)


@task(outlets=[KEPT])
def write_kept() -> None:
    get_current_context()["asset_state_store"][KEPT].set("cursor", "kept")


with DAG("orphans", schedule=None):
    single()
    mapped.expand(index=[0, 1, 2])
    write_kept()

# An asset is deactivated once no DAG names it any more. A DAG that disappears still counts.
is_dropped = (Path(os.environ["AIRFLOW_HOME"]) / "dropped").exists()


@task(outlets=[] if is_dropped else [DROPPED])
def write_dropped() -> None:
    get_current_context()["asset_state_store"][DROPPED].set("cursor", "dropped")


with DAG("orphans_asset", schedule=None):
    write_dropped()


@task(retries=0)
def killed_between_the_writes() -> None:
    context = get_current_context()
    ti = context["ti"]
    scope = TaskScope(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=-1)
    # What `set` does first. The row would come next.
    AsyncStateBackend().serialize_task_state_store_to_ref(value="job", key="job", scope=scope)
    os.kill(os.getpid(), signal.SIGKILL)


with DAG("orphans_killed", schedule=None):
    killed_between_the_writes()


@task
def rewrite(index: int) -> None:
    state = get_current_context()["task_state_store"]
    for round_ in range(5):
        for key in range(4):
            # The same value in every second round, and another one between.
            state.set(f"key-{key}", f"{index} {key} {round_ % 2}")


with DAG("orphans_busy", schedule=None):
    rewrite.expand(index=list(range(50)))


COUNTED = Asset(name="counted", uri="s3://assets/counted")


@task(outlets=[COUNTED])
def count(index: int) -> None:
    state = StateStore(get_current_context()["asset_state_store"][COUNTED])
    state.update("count", lambda n: n + 1, default=0)


with DAG("counting", schedule=None):
    count.expand(index=list(range(50)))

with DAG("deferring", schedule=None):
    PagesOperator(task_id="pages", pages=20, seconds=0.5)
