"""The backend under Airflow's own services: API server, scheduler and DAG processor, with real task processes.

Here it is on both sides, and they log at DEBUG. In test_triggerer.py it is on the workers' side alone, and they log at
INFO. See tests/airflow/dags/state_services.py for what the tasks do.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from async_state.testing import FakeS3
from tests.airflow.airflow_services import migrated
from tests.airflow.deployment import (
    ASSET_VALUES,
    TASK,
    TASK_VALUES,
    Deployment,
    kinds,
    stored,
    value_objects,
)


@pytest.fixture(scope="module")
def ran(moto_server: FakeS3, shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Services in which the DAG has run."""
    home = tmp_path_factory.mktemp("services") / "both-sides"
    made = Deployment(home, moto_server, migrated(shared_directory), both_sides=True)
    moto_server.intercept = made.refuse_once
    with made.services.running():
        made.run_dag()
    moto_server.intercept = None
    return made


@pytest.fixture
def deployment(ran: Deployment) -> Deployment:
    # pytest shows what was printed if the test fails, and only then.
    print(ran.services.tails())
    return ran


def test_all_tasks_succeed_and_the_refused_one_is_retried(deployment: Deployment) -> None:
    instances = deployment.answers["instances"]["task_instances"]
    ended = {(i["task_id"], i["map_index"]): (i["state"], i["try_number"]) for i in instances}
    assert ended == {
        ("basics", -1): ("success", 1),
        ("mapped", 0): ("success", 1),
        ("mapped", 1): ("success", 1),
        ("retried", -1): ("success", 2),
        ("write_assets", -1): ("success", 1),
        ("read_assets", -1): ("success", 1),
    }


def test_a_refused_write_is_explained_in_the_tasks_log(deployment: Deployment) -> None:
    (log,) = deployment.services.logs.rglob("task_id=retried/attempt=1.log")
    assert f"could not put {deployment.url}/{TASK}/retried/-1/worker/denied" in log.read_text()


def test_backend_on_both_sides_keeps_values_and_rows_apart(deployment: Deployment) -> None:
    rows = {}
    for scope, key in TASK_VALUES:
        task = deployment.named(scope)
        rows[f"{task}/server/{key}"] = f"{task}/worker/{key}"
    for scope, key in ASSET_VALUES:
        # The worker knows an asset by name or URI, the server by id.
        asset = deployment.asset_id("orders" if "orders" in scope else "returns")
        rows[f"v1/asset/id/{asset}/server/{key}"] = f"{scope}/worker/{key}"
    refs = {row: {"__airflow_state_ref__": f"{deployment.url}/{value}"} for row, value in rows.items()}
    assert stored(deployment) == {**value_objects(deployment), **refs}


def test_backend_on_both_sides_leaves_no_row_in_the_database(deployment: Deployment) -> None:
    tables = {place.partition(".")[0] for place, _ in deployment.services.cells()}
    assert "task_instance" in tables
    assert not {"task_state_store", "asset_state_store"} & tables


def test_the_search_finds_what_is_there(deployment: Deployment) -> None:
    places = deployment.found(deployment.marker)
    assert kinds(places) == {"row", "database", "log", "message"}
    assert {"row dag_run.conf", "log airflow/printed/scheduler"} <= places
    # Airflow 3.4's table is xcom_v2.
    assert places & {"row xcom.value", "row xcom_v2.value"}
    assert any("task_id=write_assets" in place for place in places)


def test_every_tasks_messages_are_searched(deployment: Deployment) -> None:
    # One process for each task instance, and one more for the retry.
    assert len(deployment.messages) == 7
    ref = f"{deployment.url}/{TASK}/basics/-1/worker/watermark"
    assert "message" in kinds(deployment.found(ref))


def test_values_are_in_the_bucket_and_nowhere_else(deployment: Deployment) -> None:
    assert deployment.value in json.dumps(stored(deployment))
    assert deployment.found(deployment.value) == set()


def test_credentials_are_used_and_found_nowhere(deployment: Deployment) -> None:
    assert deployment.signatures
    assert all(deployment.access_key in signature for signature in deployment.signatures)
    assert deployment.found(deployment.secret_key) == set()
    assert deployment.found(deployment.access_key) == set()
