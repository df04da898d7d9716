"""What the state of mapped tasks costs in real Airflow: the metadata database, ours on S3, and common-io's on s3fs.

    python -m bench.mapped [tasks, default 200] [rounds, default 3] [--json FILE]

One deployment (API server, DAG processor, SQLite) and, for each round and backend, a scheduler of its own with the
LocalExecutor: first a run of ten tasks one after the other, then the run of all tasks, 16 at once as Airflow's default
is for a DAG. Each round begins with another backend, as later runs find a fuller database. Each task sets three values
and gets one, see bench/dags/mapped.py. The S3 server is rclone's.

"dag run" is from the start of the DAG run to its end, "tasks" from the start of its first task to the end of its last,
both as the metadata database has them. "Airflow's CPU" is what all its processes computed meanwhile: on a machine that
has more to do than this, the times by the clock say little. Operations are timed inside the tasks, by the clock where
one task runs at a time, and in CPU time (of all threads of the task's process) where all do. Private memory is what
the task's process shares with no other, before its first operation, and how much more that is after the last.

Besides the test dependencies, common-io needs ``pip install 'apache-airflow-providers-amazon[s3fs]'``, which pins
aiobotocore: take a virtualenv of its own for it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sqlite3
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.airflow.airflow_services import Services, processes_of_session
from tests.servers import ACCESS_KEY, SECRET_KEY, rclone_s3

from bench.samples import rotated
from bench.triggerer import COMMON_IO, OURS

METASTORE = "metastore"
ALONE = 10
PARALLELISM = 16
OPERATIONS_WITH_REFERENCE = 3
SECONDS = 900.0
SETTLE_SECONDS = 120.0
MIB = 1024 * 1024


@dataclass
class Run:
    """A run of all tasks, and the one before it of ten tasks one after the other.

    Attributes:
        backend: whose.
        load: the machine's load average over a minute, before the first of the two.
        dag_run: seconds from the start of the DAG run to its end.
        tasks: seconds from the start of its first task to the end of its last.
        cpu: seconds that all processes of Airflow computed meanwhile.
        mapped: what each task wrote down.
        alone: the same of the tasks that ran one after the other.
    """

    backend: str
    load: float
    dag_run: float
    tasks: float
    cpu: float
    mapped: list[dict[str, Any]]
    alone: list[dict[str, Any]]


class Deployment(Services):
    """Services of which the scheduler is started anew for each backend."""

    def restart_scheduler(self, backend: dict[str, str]) -> None:
        """Let the tasks that come next run with another backend."""
        self.stop("scheduler")
        self._start("scheduler", "scheduler", extra={**self.worker, **backend})

    def run(self, dag_id: str, run_id: str) -> tuple[float, float, float]:
        """Run a DAG, and return the seconds that it took, those of its tasks, and those of CPU.

        Raises:
            AssertionError: it has failed.
        """

        def known() -> bool:
            return self._api.get(f"/api/v2/dags/{dag_id}").is_success

        def ended() -> str | None:
            # Not from the API server, which the tasks need.
            ((state,),) = self.rows("SELECT state FROM dag_run WHERE run_id = ?", run_id)
            return state if state in ("success", "failed") else None

        self.wait_for(f"the DAG {dag_id}", SETTLE_SECONDS, known)
        cpu = self.cpu()
        body = {"dag_run_id": run_id, "logical_date": None}
        self._api.post(f"/api/v2/dags/{dag_id}/dagRuns", json=body).raise_for_status()
        state = self.wait_for(f"the end of {run_id}", SECONDS, ended)
        assert state == "success", f"{run_id} ended in {state}\n{self.tails()}"
        (run,) = self.rows("SELECT start_date, end_date FROM dag_run WHERE run_id = ?", run_id)
        (tasks,) = self.rows("SELECT min(start_date), max(end_date) FROM task_instance WHERE run_id = ?", run_id)
        return _seconds(*run), _seconds(*tasks), self.cpu() - cpu

    def cpu(self) -> float:
        """Return the seconds that all services have computed, with the tasks that have ended."""
        ticks = 0
        for process in self._processes.values():
            for pid in processes_of_session(process.pid):
                # One that has ended meanwhile counts among its parent's children.
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    # utime, stime, cutime and cstime
                    ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def references(self, run_id: str) -> int:
        """Return how many rows of a run's state hold a reference in place of a value."""
        ((count,),) = self.rows(
            "SELECT count(*) FROM task_state_store WHERE run_id = ? AND value LIKE '%__airflow_state_ref__%'", run_id
        )
        return int(count)

    def rows(self, query: str, *parameters: str) -> list[tuple[Any, ...]]:
        """Ask the metadata database."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=60)) as connection:
            return connection.execute(query, parameters).fetchall()


def backends() -> dict[str, dict[str, str]]:
    """Return what the scheduler's environment has for each backend: common-io only if it is installed."""
    found: dict[str, dict[str, str]] = {METASTORE: {}, "async_state": OURS}
    if importlib.util.find_spec("s3fs"):
        found["common-io"] = COMMON_IO
    return found


def measure(services: Deployment, backend: str, samples: Path, count: int, number: int) -> Run:
    """Run both DAGs once, with the scheduler that is running."""
    load = os.getloadavg()[0]
    found: dict[str, list[dict[str, Any]]] = {}
    seconds = (0.0, 0.0, 0.0)
    for dag_id, size in ("alone", ALONE), ("mapped", count):
        run_id = f"{dag_id}-{backend}-{number}"
        seconds = services.run(dag_id, run_id)
        # Otherwise something else was measured than what is claimed.
        references = 0 if backend == METASTORE else size * OPERATIONS_WITH_REFERENCE
        assert services.references(run_id) == references, f"{run_id}: {services.references(run_id)} references"
        found[dag_id] = [json.loads(path.read_text()) for path in (samples / run_id).iterdir()]
        assert len(found[dag_id]) == size
    return Run(backend, load, *seconds, found["mapped"], found["alone"])


def show(runs: list[Run]) -> None:
    """Print a table of all runs so far."""
    # Ratios are of runs that were neighbours, so that what slows the machine for a while does not show in them.
    metastore = [run for run in runs if run.backend == METASTORE]
    for backend in dict.fromkeys(run.backend for run in runs):
        own = [run for run in runs if run.backend == backend]
        mapped = [sample for run in own for sample in run.mapped]
        alone = [sample for run in own for sample in run.alone]
        pairs = list(zip(own, metastore, strict=False))
        rows = [
            ("dag run, s", [run.dag_run for run in own]),
            ("  of the metastore's", [run.dag_run / other.dag_run for run, other in pairs]),
            ("tasks, s", [run.tasks for run in own]),
            ("Airflow's CPU, s", [run.cpu for run in own]),
            ("  of the metastore's", [run.cpu / other.cpu for run, other in pairs]),
            ("first operation, ms, one task at a time", [sample["first"]["wall"] for sample in alone]),
            ("later ones, ms, one task at a time", [later["wall"] for sample in alone for later in sample["later"]]),
            ("first operation, CPU ms", [sample["first"]["cpu"] for sample in mapped]),
            ("later ones, CPU ms", [later["cpu"] for sample in mapped for later in sample["later"]]),
            ("private memory before, MiB", [sample["private"][0] / MIB for sample in mapped]),
            ("private memory added, MiB", [(sample["private"][1] - sample["private"][0]) / MIB for sample in mapped]),
        ]
        print(backend)
        for title, values in rows:
            print(f"  {title:42}{_spread(values)}", flush=True)


def main(count: int, rounds: int, path: Path | None) -> None:
    """Run everything in turn, print the table, and write all samples if ``path`` is given."""
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        samples, buckets = home / "samples", home / "buckets"
        samples.mkdir()
        (buckets / "state").mkdir(parents=True)
        with rclone_s3(buckets) as endpoint:
            services = Deployment(
                home / "airflow",
                Path(__file__).parent / "dags" / "mapped.py",
                common={
                    "MAPPED_TASKS": str(count),
                    "MAPPED_ALONE": str(ALONE),
                    "AIRFLOW__CORE__PARALLELISM": str(PARALLELISM),
                },
                worker={
                    "MAPPED_SAMPLES": str(samples),
                    "AWS_ENDPOINT_URL_S3": endpoint,
                    "AWS_DEFAULT_REGION": "us-east-1",
                    "AWS_EC2_METADATA_DISABLED": "true",
                    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                },
            )
            services.migrate()
            with services.running():
                for number in range(rounds):
                    for backend, environment in rotated(list(backends().items()), number):
                        services.restart_scheduler(environment)
                        run = measure(services, backend, samples, count, number)
                        print(
                            f"round {number + 1}, {backend}: {run.dag_run:.1f} s, tasks {run.tasks:.1f} s, "
                            f"load before {run.load:.2f}",
                            flush=True,
                        )
                        runs.append(run)
                        if path is not None:
                            path.write_text(json.dumps([asdict(run) for run in runs]))
    print(f"{count} mapped tasks, {PARALLELISM} at once on {os.cpu_count()} cores: median (least to most)")
    show(runs)


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _spread(given: Iterable[float]) -> str:
    values = list(given)
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=int, nargs="?", default=200)
    parser.add_argument("rounds", type=int, nargs="?", default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all samples")
    arguments = parser.parse_args()
    main(arguments.tasks, arguments.rounds, arguments.json)
