"""Minutes and memory of ``export-refs``, ``list`` and ``sweep`` with a million objects.

    python -m bench.sweep [objects, default 1,000,000]

The objects are in the memory of `bench.server`, and their rows in an SQLite file with the columns of Airflow's tables.
Every hundredth object has no row. Each command is a process of its own, as a person starts it, whose time, CPU time and
largest resident memory are told as Markdown. Its CPU time is what it takes where nothing else runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

_RUN = 1000
_ORPHAN = 100
_URL = "s3://state/bench"
_TABLES = """
CREATE TABLE task_state_store (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dag_run_id INTEGER, task_id TEXT, map_index INTEGER, "key" TEXT, dag_id TEXT,
    run_id TEXT, value TEXT, updated_at TIMESTAMP, expires_at TIMESTAMP
);
CREATE TABLE asset_state_store (asset_id INTEGER, "key" TEXT, value TEXT, PRIMARY KEY (asset_id, "key"));
"""


def main(count: int) -> None:
    """Fill the store and the database, run the commands, and print their figures."""
    with tempfile.TemporaryDirectory(prefix="async-state-bench-") as home, serving() as endpoint:
        database = Path(home) / "airflow.db"
        fill(endpoint, database, count)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": home,
            "AIRFLOW_HOME": home,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}",
            "AIRFLOW__ASYNC_STATE__URL": _URL,
            "AIRFLOW__ASYNC_STATE__ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        refs = Path(home) / "refs"
        print(f"| {count:,} objects | minutes | of them CPU | peak MB |\n|---|---|---|---|")
        for title, command, output in (
            ("`export-refs > refs`", ["export-refs"], refs),
            (
                "`list --no-encoding --output plain`",
                ["list", "--no-encoding", "--output", "plain"],
                Path(os.devnull),
            ),
            ("`sweep --refs refs`", ["sweep", "--refs", str(refs), "--output", "json"], Path(home) / "shown"),
            ("`sweep --database`", ["sweep", "--database", "--output", "json"], Path(home) / "shown"),
            (
                f"`sweep --refs refs --delete`, which deletes {count // _ORPHAN:,}",
                ["sweep", "--refs", str(refs), "--delete", "--output", "json"],
                Path(home) / "deleted",
            ),
        ):
            seconds, cpu, megabytes, code = run(command, output, environment)
            failed = "" if code in (0, 1) else f" (exit {code})"
            print(f"| {title}{failed} | {seconds / 60:.1f} | {cpu / 60:.1f} | {megabytes:,.0f} |", flush=True)
        print(f"\n{(Path(home) / 'deleted').read_text()}")
        assert json.loads((Path(home) / "deleted").read_text())["deleted"] == count // _ORPHAN


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the server, and yield its endpoint."""
    command = [sys.executable, "-m", "bench.server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def fill(endpoint: str, database: Path, count: int) -> None:
    """Make the objects, and a row for each but every hundredth."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript(_TABLES)
        for run in range(count // _RUN):
            prefix = f"v1/task/dag/run{run:05}/task/-1/worker/k"
            urlopen(Request(f"{endpoint}/_fill?prefix=state/bench/{prefix}&count={_RUN}", method="POST")).close()
            connection.executemany(
                'INSERT INTO task_state_store (dag_run_id, task_id, map_index, "key", dag_id, run_id, value) '
                "VALUES (?, 'task', -1, ?, 'dag', ?, ?)",
                [
                    (run, f"k{n:07}", f"run{run:05}", json.dumps({"__airflow_state_ref__": f"{_URL}/{prefix}{n:07}"}))
                    for n in range(_RUN)
                    if n % _ORPHAN
                ],
            )
        connection.commit()


def run(command: list[str], output: Path, environment: dict[str, str]) -> tuple[float, float, float, int]:
    """Run a command, and return its seconds, those of CPU, its largest resident memory in MB, and its exit code."""
    begun = time.perf_counter()
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "async_state", *command], env=environment, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - begun, cpu, usage.ru_maxrss / 1024, process.returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("objects", type=int, nargs="?", default=1_000_000)
    main(parser.parse_args().objects)
