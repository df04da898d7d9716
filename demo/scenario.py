"""The demo's steps, in order: see `run_all`."""

from __future__ import annotations

import os
import signal
import tempfile
import traceback
from importlib.metadata import version
from pathlib import Path

from async_state.testing import FakeS3, fake_s3
from demo.checks import Checks
from demo.processes import airflow, dag_test
from demo.stored import ref_in, words_in_database
from demo.watch import Step

BUCKET = "state"
URL = f"s3://{BUCKET}/demo"


def main() -> int:
    forget_environment()
    with tempfile.TemporaryDirectory(prefix="async-state-demo-") as home, fake_s3([BUCKET]) as s3:
        log, database = Path(home, "demo.log"), Path(home, "airflow.db")
        set_environment(home, log, s3)
        checks = Checks(database, BUCKET)
        try:
            run_all(checks, database)
        except Exception:
            traceback.print_exc()
            checks.check(False, "the demo came to its end")
        if checks.failed and log.exists():
            print("\nThe end of Airflow's log:", *log.read_text().splitlines()[-40:], sep="\n  ")
    print(f"\ndemo: {checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


def forget_environment() -> None:
    """Keep the Airflow, the AWS account and the proxies of whoever runs the demo out of it."""
    for name in list(os.environ):
        if name.startswith(("AIRFLOW_", "AWS_")) or name.lower().endswith("_proxy"):
            del os.environ[name]


def set_environment(home: str, log: Path, s3: FakeS3) -> None:
    """Configure all processes to come: Airflow reads its environment when it is imported, botocore when first used."""
    os.environ |= {
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).with_name("dags")),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
        "AIRFLOW__ASYNC_STATE__URL": URL,
        **s3.environment,
        "AWS_CONFIG_FILE": f"{home}/no-aws-config",
        "AWS_SHARED_CREDENTIALS_FILE": f"{home}/no-aws-credentials",
        "DEMO_LOG": str(log),
    }


def run_all(checks: Checks, database: Path) -> None:
    print(f"Airflow {version('apache-airflow-core')}. Values go to {URL}, references to them to {database}.")
    checks.run(airflow, "db", "migrate")

    checks.heading("1. The proposal's first DAG: state of a task instance")
    checks.run(dag_test, "task_state")

    checks.heading("2. The proposal's second DAG: state of an asset")
    checks.run(dag_test, "asset_state")

    checks.heading("3. The first DAG with [state_store] clear_on_success = True")
    checks.run(dag_test, "task_state", clear_on_success=True)

    checks.heading("4. A process is killed; others read what it had set, for an asset and for the same task instance")
    killed = checks.run(dag_test, "hand_over", exit_code=-signal.SIGKILL)
    check_handed_over(checks, "watermark", killed, checks.run(dag_test, "take_over"))
    run_id = killed[-1].owner.split("/")[1]
    again = checks.run(airflow, "tasks", "test", "hand_over", "run_job", run_id)
    check_handed_over(checks, "job_id", killed, again)

    print("\n5. What is in the database in the end")
    check_database(checks, database)


def check_handed_over(checks: Checks, key: str, writer: list[Step], reader: list[Step]) -> None:
    written = [step for step in writer if (step.operation, step.key) == ("set", key)]
    read = [step for step in reader if (step.operation, step.key) == ("get", key)]
    checks.check(
        [step.value for step in read] == [step.value for step in written] != []
        and {step.pid for step in read}.isdisjoint(step.pid for step in written),
        f"{key}: set by {_pids(written)}, read by {_pids(read)}",
    )


def check_database(checks: Checks, database: Path) -> None:
    rows = checks.read().rows.values()
    refs = [ref for row in rows if (ref := ref_in(row)) and ref.startswith(f"s3://{BUCKET}/")]
    checks.check(0 < len(refs) == len(rows), f"of {len(rows)} rows, {len(refs)} are a reference to S3 and nothing else")
    # Proof that the search finds what is there, before it is believed about what is not.
    found = len(words_in_database(database, refs))
    checks.check(0 < found == len(refs), f"a search of all tables finds {found} of these {len(refs)} references")
    found, tags = len(words_in_database(database, checks.tags)), len(checks.tags)
    checks.check(0 == found < tags, f"and {found} of the {tags} random words in the values, deleted ones included")


def _pids(steps: list[Step]) -> str:
    return ", ".join(f"process {step.pid}" for step in steps) or "none"
