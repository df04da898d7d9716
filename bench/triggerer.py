"""How long a triggerer's loop stands still when a watcher uses state in S3: ours, and common-io's on s3fs.

    python -m bench.triggerer [delay of each request in ms, default 500] [rounds, default 20]

In Airflow's own ``airflow triggerer``, with nothing beside it but the S3 server (see tests.airflow.triggers.watching).
"idle" and "supervisor" are what the loop does before the first use, the latter while it waits for the supervisor's
first answer; "gc" is the longest garbage collection, "blocked" how often Airflow logged that a trigger blocks, "stop"
the seconds from SIGTERM to the end: ten more where the supervisor just misses the end of the process that runs the
triggers. A machine that has more to do than this shows in every column, and in the rows of "none" too.

Besides the test dependencies, the client needs ``pip install 'apache-airflow-providers-amazon[s3fs]'``, which pins
aiobotocore: take a virtualenv of its own for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.airflow.airflow_services import Services

from async_state.testing import FakeS3, fake_s3

ROOT = Path(__file__).parent.parent
BLOCKED = "async thread was blocked"
SECONDS = 300.0

OURS = {
    "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
    "AIRFLOW__ASYNC_STATE__URL": "s3://state/ours",
}
COMMON_IO = {
    "AIRFLOW__WORKERS__STATE_STORE_BACKEND": (
        "airflow.providers.common.io.state_store.backend.StateStoreObjectStorageBackend"
    ),
    "AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH": "s3://state/common-io",
    "AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_THRESHOLD": "0",
}


def started_triggers(services: Services) -> bool:
    """Tell whether the DAG processor has made the watcher's trigger."""
    with contextlib.closing(sqlite3.connect(services.database)) as connection:
        return bool(connection.execute("SELECT count(*) FROM asset_watcher").fetchone()[0])


def measure(name: str, backend: dict[str, str], s3: FakeS3, rounds: int, home: Path) -> None:
    """Run two triggerers, one after the other, and print what each one's watcher tells."""
    services = Services(
        home,
        ROOT / "tests" / "airflow" / "triggers" / "dags.py",
        common={"PYTHONPATH": str(ROOT), "TRIGGERER_ROUNDS": str(rounds)},
        worker={**s3.environment, **backend},
    )
    services.migrate()
    with services.running(dag_processor_only=True):
        services.wait_for("the trigger", SECONDS, lambda: started_triggers(services))
        services.stop("dag-processor")
        for triggerer in "first", "second":
            # A watcher that ends is started again, so there may be more of them.
            before = len(services.asset_events())
            services.start_triggerer(triggerer)
            # The first event tells what it resumed with, the second how it went.
            _wait_for_events(services, before + 2)
            requests = len(s3.requests)
            # Where the watcher goes on, it is stopped in the middle of a request.
            deadline = time.monotonic() + 3
            while len(s3.requests) == requests and time.monotonic() < deadline:
                time.sleep(0.01)
            begun = time.monotonic()
            ended = services.stop(triggerer)
            stopped = time.monotonic() - begun
            printed = (services.printed / triggerer).read_text(errors="replace")
            show(f"{name}, {triggerer}", services.asset_events()[before + 1], printed, ended, stopped)


def _wait_for_events(services: Services, count: int) -> None:
    services.wait_for("the watcher's events", SECONDS, lambda: len(services.asset_events()) >= count)


def show(name: str, told: dict[str, Any], printed: str, ended: int, stopped: float) -> None:
    """Print a row of the table."""
    phases = ("idle", "supervisor", "first use", "afterwards", "gathered", "updates", "by scope")
    gaps = "".join(f" {told[phase]['gap']:10.1f}" if phase in told else f"{'-':>11}" for phase in phases)
    walls = "".join(f" {told[phase]['wall'] / 1000:10.2f}" if phase in told else f"{'-':>11}" for phase in phases[3:5])
    gc = max(told[phase]["gc"] for phase in phases if phase in told)
    print(f"{name:18}{gaps}{walls} {gc:6.1f} {printed.count(BLOCKED):8} {ended:5} {stopped:7.2f}", flush=True)
    for key in "failed at first", "failed":
        if key in told:
            print(f"{'':18} {key}: {told[key]}", flush=True)


def main(delay_ms: float, rounds: int) -> None:
    """Measure ours, and the client if it is installed."""
    # Without a backend, values go through the supervisor to the database: what the rest is to be compared with.
    backends = {"none": {}, "async_state": OURS}
    if importlib.util.find_spec("s3fs"):
        backends["common-io"] = COMMON_IO
    print(f"{delay_ms:g} ms a request, {rounds} rounds of aset, aget, adelete; gaps of the loop in ms, walls in s")
    columns = (
        "gap: idle",
        "supervisor",
        "first use",
        "afterwards",
        "8 gathered",
        "updates",
        "by scope",
        "wall: all",
        "8 gathered",
    )
    titles = "".join(f" {column:>10}" for column in columns)
    print(f"{'backend, triggerer':18}{titles} {'gc':>6} {'blocked':>8} {'exit':>5} {'stop':>7}")
    with fake_s3(["state"]) as s3, tempfile.TemporaryDirectory() as home:
        s3.intercept = lambda _: time.sleep(delay_ms / 1000)
        for name, backend in backends.items():
            measure(name, backend, s3, rounds, Path(home) / name)


if __name__ == "__main__":
    arguments = [float(argument) for argument in sys.argv[1:]]
    main(arguments[0] if arguments else 500, int(arguments[1]) if len(arguments) > 1 else 20)
