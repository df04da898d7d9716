"""Everything by which state stays behind, in whole deployments: what `sweep` finds, by each source of the truth."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from async_state import keys
from async_state.keys import Side
from tests.airflow.airflow_services import Services
from tests.deployment.conftest import GRACE_SECONDS, SECONDS, URL, Deployment


def task_names(dag_id: str, run_id: str, task_id: str, *found: str, map_index: int = -1) -> set[str]:
    scope = _Task(dag_id, run_id, task_id, map_index)
    return {keys.object_name(scope, key, Side.WORKER) for key in found}


@dataclass(frozen=True)
class _Task:
    dag_id: str
    run_id: str
    task_id: str
    map_index: int


def of_run(run_id: str) -> set[str]:
    """Return the names of what a run of the DAG ``orphans`` writes, but for the asset's."""
    names = task_names("orphans", run_id, "single", "stays", "edited", "deleted", "expired")
    for index in range(3):
        names |= task_names("orphans", run_id, "mapped", "index", map_index=index)
    return names


def test_a_sweep_finds_what_is_left_behind_and_nothing_else(deployment: Deployment, tmp_path: Path) -> None:
    """One story, as each step needs the Airflow that the one before has left."""
    services = deployment.services

    def agree(what: str) -> None:
        for source, arguments in deployment.sources(tmp_path).items():
            found = deployment.sweep(*arguments, "--grace", "0s")
            assert found["names"] == deployment.orphans, f"after {what}, by {source}: {found}"
            assert found["orphans"] == len(deployment.orphans)
            assert found["deleted"] == 0

    services.run_dag("orphans", "cleaned", {})
    cleaned_at = datetime.now(tz=timezone.utc).isoformat()
    for run_id in "deleted", "kept":
        services.run_dag("orphans", run_id, {})
    services.run_dag("orphans_asset", "asset", {})
    agree("runs that succeeded")

    services.send("POST", "dags/orphans_killed/dagRuns", json={"dag_run_id": "killed", "logical_date": None})
    state = services.wait_for(
        "the end of the killed task",
        SECONDS,
        lambda: services.get("dags/orphans_killed/dagRuns/killed")["state"] == "failed",
    )
    assert state
    deployment.orphans |= task_names("orphans_killed", "killed", "killed_between_the_writes", "job")
    agree("a task killed between the two writes")

    deployment.airflow("state-store", "clean")
    for run_id in "cleaned", "deleted", "kept":
        deployment.orphans |= task_names("orphans", run_id, "single", "expired")
    agree("state-store clean")

    state_of = "dags/orphans/dagRuns/kept/taskInstances/single/state-store"
    services.send("DELETE", f"{state_of}/deleted")
    services.send("PUT", f"{state_of}/edited", json={"value": "by hand"})
    deployment.orphans |= task_names("orphans", "kept", "single", "deleted", "edited")
    agree("a key deleted and another one edited by REST")

    services.send("DELETE", "dags/orphans/dagRuns/deleted")
    deployment.orphans |= of_run("deleted")
    agree("the deletion of a run by REST")

    deployment.airflow("db", "clean", "--clean-before-timestamp", cleaned_at, "--tables", "dag_run", "--yes")
    deployment.orphans |= of_run("cleaned")
    agree("db clean")

    (services.home / "dropped").touch()
    services.wait_for("the asset's end", SECONDS, lambda: not asset_rows(services, "dropped"))
    deployment.orphans |= {"v1/asset/name/dropped/worker/cursor"}
    agree("an asset's deactivation")

    kept = deployment.names() - deployment.orphans
    delete_while_tasks_write(deployment)
    assert kept <= deployment.names()
    assert not deployment.orphans & deployment.names()
    deployment.orphans.clear()
    agree("a sweep that was killed, and another one")
    for index in range(50):
        for key in range(4):
            path = f"dags/orphans_busy/dagRuns/busy/taskInstances/rewrite/state-store/key-{key}"
            row = services.get(path, map_index=index)["value"]
            name = row["__airflow_state_ref__"].removeprefix(f"{URL}/")
            assert name in deployment.names(), row


def asset_rows(services: Services, name: str) -> list[Any]:
    found = services.get("assets", name_pattern=name, only_active="false")["assets"]
    assert len(found) == 1
    rows: list[Any] = services.get(f"assets/{found[0]['id']}/state-store")["asset_state_store"]
    return rows


def delete_while_tasks_write(deployment: Deployment) -> None:
    """Sweep again and again while 50 tasks write, and kill sweeps in the middle."""
    services = deployment.services
    ended = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            services.run_dag("orphans_busy", "busy", {})
        except BaseException as e:
            failed.append(e)
        finally:
            ended.set()

    writing = threading.Thread(target=run)
    writing.start()
    delete = ("--database", "--delete", "--yes", "--grace", f"{GRACE_SECONDS}s")
    kill_after = 0.5
    while not ended.is_set() or deployment.orphans & deployment.names():
        command = [sys.executable, "-m", "async_state", "sweep", *delete, "--max-orphans", "100%"]
        with subprocess.Popen(
            command, env=services._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as killed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                killed.wait(kill_after)
            killed.send_signal(signal.SIGKILL)
        # A little later each time, so that it comes at every step of a sweep.
        kill_after += 0.5
        if not failed:
            deployment.sweep(*delete, codes=(0,))
        if ended.is_set():
            # What was written last is still too young.
            time.sleep(1)
    writing.join()
    assert not failed, failed
