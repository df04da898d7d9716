"""Everything by which state stays behind, in whole deployments: what `sweep` finds, by each source of the truth.

One deployment is Airflow as it is without any configuration: LocalExecutor on SQLite, with rclone's S3 server. The
other one is what people run: CeleryExecutor with Redis, PostgreSQL, and SeaweedFS.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest

from async_state import keys
from async_state.keys import Side
from tests.airflow.airflow_services import Services
from tests.deployment import stack
from tests.servers import ACCESS_KEY, SECRET_KEY, rclone_s3

ROOT = Path(__file__).parents[2]
DAGS = Path(__file__).parent / "dags" / "orphans.py"
URL = "s3://state/deployment"
SECONDS = 300
#: How long a busy sweep keeps what was just written. A task writes an object and its row in far less.
GRACE_SECONDS = 60


@dataclass
class Deployment:
    """A running Airflow, its store, and what must be found in it.

    Attributes:
        services: Airflow's processes.
        endpoint: The store's URL.
        orphans: The names of all objects that have no row by now.
    """

    services: Services
    endpoint: str
    orphans: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def store(self) -> Iterator[Any]:
        with contextlib.closing(
            boto3.client(
                "s3",
                endpoint_url=self.endpoint,
                region_name="us-east-1",
                aws_access_key_id=ACCESS_KEY,
                aws_secret_access_key=SECRET_KEY,
            )
        ) as s3:
            yield s3

    def names(self) -> set[str]:
        """Return the names of all of state's objects."""
        found = set()
        with self.store() as s3:
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket="state", Prefix="deployment/"):
                found |= {item["Key"].removeprefix("deployment/") for item in page.get("Contents", ())}
        return {name for name in found if keys.parse_name(name) is not None}

    def async_state(self, *arguments: str, code: int | None = 0, **options: Any) -> str:
        """Run the command, and return what it prints."""
        done = self.services.command("-m", "async_state", *arguments, timeout=SECONDS, **options)
        assert code is None or done.returncode == code, f"{arguments}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def airflow(self, *arguments: str) -> None:
        done = self.services.command("-m", "airflow", *arguments, timeout=SECONDS)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"

    def sources(self, directory: Path) -> dict[str, tuple[str, ...]]:
        """Return the arguments of `sweep` for each source of the truth."""
        refs = directory / "refs.jsonl"
        refs.write_text(self.async_state("export-refs"))
        return {
            "refs": ("--refs", str(refs)),
            "database": ("--database",),
            "rest": ("--api-url", str(self.services.api.base_url)),
        }

    def sweep(self, *arguments: str, code: int | None = None) -> dict[str, Any]:
        """Run `sweep`, and return what it counts and the names that it takes for orphans."""
        report = self.services.home / "report.jsonl"
        report.unlink(missing_ok=True)
        token = str(self.services.api.headers["Authorization"]).removeprefix("Bearer ")
        printed = self.async_state(
            "sweep", *arguments, "--output", "json", "--max-orphans", "100%", "--report", str(report),
            extra={"AIRFLOW_API_TOKEN": token}, code=code,
        )  # fmt: skip
        counted: dict[str, Any] = json.loads(printed)
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        return counted | {"names": {line["name"] for line in lines if "name" in line}}


def rclone(directory: Path) -> contextlib.AbstractContextManager[str]:
    (directory / "rclone" / "state").mkdir(parents=True)
    return rclone_s3(directory / "rclone")


@contextlib.contextmanager
def local(directory: Path) -> Iterator[tuple[dict[str, str], str]]:
    with rclone(directory) as endpoint:
        yield {}, endpoint


@contextlib.contextmanager
def distributed(directory: Path) -> Iterator[tuple[dict[str, str], str]]:
    with (
        stack.redis(directory) as redis,
        stack.postgresql(directory) as database,
        stack.seaweedfs(directory) as endpoint,
    ):
        yield (
            {
                "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
                "AIRFLOW__CELERY__BROKER_URL": f"{redis}/0",
                "AIRFLOW__CELERY__RESULT_BACKEND": f"{redis}/1",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            },
            endpoint,
        )


def missing() -> str:
    """Say what of the distributed deployment can't be had here, if anything."""
    programs = [name for name in ("redis-server", "postgres", "initdb", "weed") if stack.program(name) is None]
    modules = [name for name in ("celery", "redis", "psycopg2") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(programs + modules)}" if programs or modules else ""


@pytest.fixture(
    scope="module",
    params=[local, pytest.param(distributed, marks=pytest.mark.skipif(bool(missing()), reason=missing()))],
    ids=["LocalExecutor-SQLite-rclone", "CeleryExecutor-PostgreSQL-SeaweedFS"],
)
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    # Short, since PostgreSQL's socket has a path of at most 107 bytes.
    directory = tmp_path_factory.mktemp("d")
    kind: Callable[[Path], contextlib.AbstractContextManager[tuple[dict[str, str], str]]] = request.param
    with kind(directory) as (environment, endpoint):
        common = {
            **environment,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
            "AIRFLOW__ASYNC_STATE__URL": URL,
            "AIRFLOW__ASYNC_STATE__ENDPOINT_URL": endpoint,
            "AIRFLOW__SCHEDULER__PARSING_CLEANUP_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
        }
        services = Services(directory / "airflow", DAGS, common)
        made = Deployment(services, endpoint)
        with made.store() as s3, contextlib.suppress(s3.exceptions.BucketAlreadyExists):
            s3.create_bucket(Bucket="state")
        services.migrate()
        with services.running(triggerer="triggerer"):
            if "AIRFLOW__CELERY__BROKER_URL" in environment:
                services.start("worker", "celery", "worker", "--skip-serve-logs", "--concurrency", "4")
            yield made


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
            deployment.sweep(*delete, code=0)
        if ended.is_set():
            # What was written last is still too young.
            time.sleep(1)
    writing.join()
    assert not failed, failed
