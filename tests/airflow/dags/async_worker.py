"""Runs DAGs without a scheduler: each task in a process of its own, under Airflow's own supervisor.

Airflow takes seconds to start, so it starts once, here, for any number of runs; each run is a process forked from this
one, with an environment and a copy of the database of its own. A task's channel to its supervisor is the real one, a
socket, which ``dag.test()`` has not.

As a program: reads a JSON list of `Run`s, as dicts, from standard input, and ends when all have. Its argument is how
many run at once, if not three.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[3]
_AT_ONCE = 3
_RUN_SECONDS = 600.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Run:
    """One run of a DAG.

    Attributes:
        name: of the run, and of its directory below ``AIRFLOW_HOME``. There are ``airflow.db``, ``logs``, and what each
            task returned.
        dag_id: of the DAG. If that is the path of a DAG file, it is run as a program, with ``HOME`` set to the
            run's directory, in place of a scheduler's work.
        environment: what its processes have in addition.
        connections: of the database, as JSON, by id.
    """

    name: str
    dag_id: str
    environment: dict[str, str] = field(default_factory=dict)
    connections: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The run's own directory."""
        return Path(os.environ["AIRFLOW_HOME"], self.name)


def environment_of(home: Path) -> dict[str, str]:
    """Return the environment that this program needs: of this machine's nothing but ``PATH``."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(_ROOT),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # A supervisor that just misses the end of its task waits so many seconds before it looks again.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def main(runs: Iterable[Run], at_once: int = _AT_ONCE) -> None:
    database = Path(os.environ["AIRFLOW_HOME"], "airflow.db")
    # A collection goes through all that Airflow has imported: a second here, and more in each run, which copies it.
    gc.disable()
    _prepare()
    gc.freeze()
    gc.enable()
    context = multiprocessing.get_context("fork")
    waiting, running = list(runs), list[ForkProcess]()
    while waiting or running:
        while waiting and len(running) < at_once:
            run = waiting.pop(0)
            run.home.mkdir()
            shutil.copy(database, run.home)
            process = context.Process(target=_run, args=(run,))
            process.start()
            running.append(process)
        wait(process.sentinel for process in running)
        running = [process for process in running if process.is_alive()]


def _prepare() -> None:
    """Do once what takes long, and nothing that a run should do itself: see that no plugin is loaded."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
    from airflow.sdk import plugins_manager
    from airflow.sdk.execution_time.supervisor import in_process_api_server
    from airflow.utils.db import initdb
    from tests.airflow import newest_version

    from airflow import settings
    from async_state import Settings
    from async_state.stores import prepare

    newest_version.build_it_alone()
    initdb()
    manager = DagBundlesManager()  # type: ignore[no-untyped-call]
    manager.sync_bundles_to_db()
    for bundle in manager.get_all_dag_bundles():
        bundle.initialize()
        bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        assert not bag.import_errors, bag.import_errors
        sync_bag_to_db(bag, bundle.name, None)

    async def warm_up() -> None:
        # The API server makes its routes at its first answer.
        transport = in_process_api_server().atransport
        # httpx, or httpx2 since task-sdk 1.4.
        httpx = importlib.import_module(type(transport).__module__.partition(".")[0])
        async with httpx.AsyncClient(transport=transport, base_url="http://in-process") as client:
            await client.get("/health")

    asyncio.run(warm_up())
    # As the plugin does in the scheduler.
    prepare(Settings(url="s3://state/prepared"))
    settings.dispose_orm()
    assert plugins_manager._get_plugins.cache_info().currsize == 0


def _run(run: Run) -> None:
    os.environ.update(run.environment)
    os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{run.home / 'airflow.db'}"
    from airflow import settings

    settings.configure_vars()  # type: ignore[no-untyped-call]
    settings.configure_orm()  # type: ignore[no-untyped-call]
    if run.dag_id.endswith(".py"):
        os.environ["HOME"] = str(run.home)
        runpy.run_path(run.dag_id, run_name="__main__")
        return
    from airflow.models import Connection
    from airflow.models.dagbag import DBDagBag
    from airflow.sdk import timezone
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    now = timezone.utcnow()
    with create_session() as session:
        session.add_all(Connection.from_json(text, conn_id=name) for name, text in run.connections.items())
        dag = DBDagBag().get_latest_version_of_dag(run.dag_id, session=session)
        assert dag
        dag_run = dag.create_dagrun(
            run_id=run.name,
            logical_date=None,
            run_after=now,
            start_date=now,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            session=session,
        )
        dag_run.dag = dag
        session.commit()
        deadline = time.monotonic() + _RUN_SECONDS
        while dag_run.state == DagRunState.RUNNING:
            assert time.monotonic() < deadline, f"{run} has not ended"
            session.expire_all()
            schedulable, _ = dag_run.update_state(session=session)
            # As the scheduler does it, which also counts the tries.
            dag_run.schedule_tis(schedulable, session=session)
            session.commit()
            for instance in schedulable:
                _supervise(run, instance, session)
            if not schedulable and dag_run.state == DagRunState.RUNNING:
                # A retry's delay.
                time.sleep(_POLL_SECONDS)


def _supervise(run: Run, instance: Any, session: Any) -> None:
    from airflow.executors.workloads import ExecuteTask
    from airflow.sdk.api.datamodels._generated import TaskInstance
    from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor, supervise_task
    from airflow.utils.state import TaskInstanceState

    session.refresh(instance)
    instance.state = TaskInstanceState.QUEUED
    session.commit()
    work = ExecuteTask.make(instance)
    session.commit()
    client = InProcessTestSupervisor._api_client()  # type: ignore[no-untyped-call]
    ended = supervise_task(
        ti=TaskInstance.model_validate(work.ti.model_dump(), extra="ignore"),
        bundle_info=work.bundle_info,
        dag_rel_path=work.dag_rel_path,
        token="",
        log_path=str(run.home / "logs" / f"{instance.task_id}.{instance.try_number}.log"),
        client=client,
    )
    if ended < 0:
        # Its process was killed. The supervisor tells only its executor, from which the scheduler hears, who does this.
        instance.handle_failure("the task's process was killed", session=session)
        session.commit()
    returned = client.xcoms.get(instance.dag_id, instance.run_id, instance.task_id, "return_value")
    (run.home / f"{instance.task_id}.json").write_text(json.dumps(returned.value))


if __name__ == "__main__":
    main((Run(**run) for run in json.load(sys.stdin)), *map(int, sys.argv[1:]))
