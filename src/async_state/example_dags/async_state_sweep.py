"""``async_state_sweep``: sweeps from a worker, which has access to the store and reaches Airflow's REST API.

It is off until somebody wants it: it has no schedule and is paused. Copy it to the folder of DAGs, and give it a
schedule. The worker needs a token of the REST API in its environment variable ``AIRFLOW_API_TOKEN``, of a user who may
read all DAGs, their runs and assets. A run only shows the orphans unless it is triggered with ``delete``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from airflow.sdk import Param, dag, task
from airflow.sdk.configuration import conf


@dag(
    dag_id="async_state_sweep",
    schedule=None,
    catchup=False,
    is_paused_upon_creation=True,
    max_active_runs=1,
    params={
        "delete": Param(False, type="boolean", description="Delete the orphans; otherwise they are only counted"),
        "grace": Param("24h", type="string", description="Keep all that is younger than this"),
        "max_orphans": Param("50%", type="string", description="Refuse to delete a larger share"),
        "api_url": Param("", type="string", description="The URL of the API server; empty: [api] base_url"),
    },
    tags=["async_state"],
    doc_md=__doc__,
)
def async_state_sweep() -> None:
    """Make the DAG."""

    @task
    def sweep(params: dict[str, Any] | None = None) -> dict[str, int]:
        """Run ``sweep --api-url``, and return how many objects are what."""
        given: dict[str, Any] = params or {}
        command = [sys.executable, "-m", "async_state", "sweep", "--output", "json"]
        command += ["--api-url", given["api_url"] or conf.get("api", "base_url")]
        command += ["--grace", given["grace"], "--max-orphans", given["max_orphans"]]
        if given["delete"]:
            command.append("--delete")
        # A process of its own: the command prints its result, and has its own logging. Its errors go to the task's log.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        print(done.stdout)  # noqa: T201 - into the task's log
        # Where orphans are only shown, the command ends with 1 if there are any.
        if not done.stdout or (done.returncode and given["delete"]):
            raise RuntimeError(f"async_state sweep ended with {done.returncode}; the log above says why")
        counts: dict[str, int] = json.loads(done.stdout)
        return counts

    sweep()


async_state_sweep()
