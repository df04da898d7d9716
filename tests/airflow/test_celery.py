"""A real ``airflow celery worker`` on Redis prepares before it forks its pool, and says whose prefix it uses."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from async_state.testing import FakeS3
from tests.airflow.airflow_services import processes_of_session
from tests.servers import free_port, s3_client, wait_for_port

celery = pytest.importorskip("celery", reason="apache-airflow-providers-celery is not installed")
pytest.importorskip("redis", reason="apache-airflow-providers-celery is not installed")
pytest.importorskip("airflow.providers.celery", reason="apache-airflow-providers-celery is not installed")
REDIS = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(REDIS is None, reason="redis-server is not installed")

ROOT = Path(__file__).parents[2]
SECONDS = 120


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [str(REDIS), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            anyio.run(wait_for_port, port)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def worker(redis: str, moto: FakeS3, tmp_path: Path) -> Iterator[Path]:
    """Run a worker, and yield the file that it prints to."""
    home, printed = tmp_path / "airflow", tmp_path / "printed"
    home.mkdir()
    (home / "airflow.cfg").touch()
    environment = {
        **moto.environment,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CELERY__BROKER_URL": f"{redis}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"{redis}/1",
        "AIRFLOW__CELERY__EXTRA_CELERY_CONFIG": json.dumps({"imports": ["tests.airflow.dags.celery_probe"]}),
        "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
        "AIRFLOW__ASYNC_STATE__URL": "s3://state/celery",
        "AIRFLOW__ASYNC_STATE__ENDPOINT_URL": moto.url,
    }
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "celery", "worker", "--skip-serve-logs", "--concurrency", "1"],
            env=environment,
            cwd=home,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield printed
    finally:
        for pid in processes_of_session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def test_contract_36_a_celery_worker_prepares_before_it_forks(worker: Path, redis: str, moto: FakeS3) -> None:
    with celery.Celery("airflow", broker=f"{redis}/0", backend=f"{redis}/1") as app:
        sent = app.send_task("probe", args=[moto.url], queue="default")
        try:
            found: dict[str, Any] = sent.get(timeout=SECONDS)
        finally:
            # pytest shows it if the test fails, and only then.
            print(worker.read_text(errors="replace"))
    assert found == {"inherited": True, "first operation": {"imported": [], "bundles": [], "error": None}}
    with contextlib.closing(s3_client(moto.url)) as s3:
        owner = json.loads(s3.get_object(Bucket="state", Key="celery/v1/owner")["Body"].read())
    assert owner["broker"] == f"{redis}/0"
