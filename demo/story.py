"""What the demo shows, in order."""

from __future__ import annotations

import os
import signal
import tempfile
import traceback
from importlib.metadata import version
from pathlib import Path

from async_state.testing import FakeS3, fake_s3
from demo.processes import run_command, run_dag
from demo.stage import Stage
from demo.watch import Step
from demo.world import ref_in, words_in_database

BUCKET = "state"
URL = f"s3://{BUCKET}/demo"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="async-state-demo-") as home, fake_s3([BUCKET]) as s3:
        log, database = Path(home, "demo.log"), Path(home, "airflow.db")
        set_environment(home, log, s3)
        stage = Stage(database, BUCKET)
        try:
            tell(stage, database)
        except Exception:
            traceback.print_exc()
            stage.check(False, "the demo came to its end")
        if stage.failed and log.exists():
            print("\nThe end of Airflow's log:", *log.read_text().splitlines()[-40:], sep="\n  ")
    print(f"\ndemo: {stage.passed} passed, {stage.failed} failed")
    return 1 if stage.failed else 0


def set_environment(home: str, log: Path, s3: FakeS3) -> None:
    """Configure all processes to come: Airflow reads its environment when it is imported, botocore when first used."""
    for name in [name for name in os.environ if name.startswith(("AIRFLOW_", "AWS_"))]:
        del os.environ[name]
    os.environ |= {
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).with_name("dags")),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
        "AIRFLOW__ASYNC_STATE__URL": URL,
        **s3.environment,
        "AWS_CONFIG_FILE": f"{home}/no-aws-config",
        "AWS_SHARED_CREDENTIALS_FILE": f"{home}/no-aws-credentials",
        "NO_PROXY": "127.0.0.1",
        "DEMO_LOG": str(log),
    }


def tell(stage: Stage, database: Path) -> None:
    print(f"Airflow {version('apache-airflow-core')}. Values go to {URL}, references to them to {database}.")
    stage.play(run_command, "db", "migrate")

    stage.chapter("1. The proposal's first DAG: state of a task instance")
    stage.play(run_dag, "task_state")

    stage.chapter("2. The proposal's second DAG: state of an asset")
    stage.play(run_dag, "asset_state")

    stage.chapter("3. The first DAG with [state_store] clear_on_success = True")
    stage.play(run_dag, "task_state", clear_on_success=True)

    stage.chapter("4. A process is killed; others read what it had set, an asset's state and a task instance's")
    killed = stage.play(run_dag, "hand_over", exit_code=-signal.SIGKILL)
    check_handed_over(stage, "watermark", killed, stage.play(run_dag, "take_over"))
    run_id = killed[-1].owner.split("/")[1]
    again = stage.play(run_command, "tasks", "test", "hand_over", "run_job", run_id)
    check_handed_over(stage, "job_id", killed, again)

    print("\n5. What is in the database in the end")
    refs = [ref_in(row) for row in stage.look().rows.values()]
    stage.check(bool(refs) and None not in refs, f"each of {len(refs)} rows is a reference and nothing else")
    references = words_in_database(database, filter(None, refs))
    stage.check(references == refs, f"a search of the whole database finds {len(references)} of these references")
    values = words_in_database(database, stage.tags)
    stage.check(
        bool(stage.tags) and not values,
        f"it finds {len(values)} of the {len(stage.tags)} random words that are in the values, those deleted included",
    )


def check_handed_over(stage: Stage, key: str, writer: list[Step], reader: list[Step]) -> None:
    written = [step for step in writer if (step.operation, step.key) == ("set", key)]
    read = [step for step in reader if (step.operation, step.key) == ("get", key)]
    stage.check(
        [step.value for step in read] == [step.value for step in written] != []
        and {step.pid for step in read}.isdisjoint(step.pid for step in written),
        f"{key}: set by {_pids(written)}, read by {_pids(read)}",
    )


def _pids(steps: list[Step]) -> str:
    return ", ".join(f"process {step.pid}" for step in steps) or "none"
