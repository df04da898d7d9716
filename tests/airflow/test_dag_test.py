"""``dag.test()`` with an ``async def`` task, which runs below the SDK's in-process supervisor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

DAG_FILE = Path(__file__).parent / "dags" / "async_dag_test.py"
SECONDS = 120


def test_contract_33_an_async_task_in_dag_test_uses_its_state(tmp_path: Path) -> None:
    home, found = tmp_path / "airflow", tmp_path / "found.json"
    (home / "dags").mkdir(parents=True)
    file = shutil.copy(DAG_FILE, home / "dags")
    (home / "airflow.cfg").touch()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(home),
        "FOUND": str(found),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
        "AIRFLOW__ASYNC_STATE__URL": f"file://{home}/state",
    }
    code = f"""
import runpy
from airflow.utils.db import initdb
initdb()
runpy.run_path({str(file)!r}, run_name="__main__")
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert "the run ended in success" in run.stdout, run.stdout
    assert json.loads(found.read_text()) == {
        "task": ["default", 1, 2],
        "asset": ["default", 1, 2],
        "many": [{"k1": 1, "k2": 2}],
        "cleared": ["default"],
        "sync": ["value"],
    }
    objects = sorted(path.name for path in (home / "state").rglob("*") if path.is_file())
    assert objects == ["k1", "k2", "k3", "sync"]
