"""The backend under Airflow's own services: API server, scheduler and DAG processor, with real task processes.

Twice at the same time: with the backend on both sides, logging at DEBUG, and with the backend on the worker's side
alone, logging at INFO. See tests/airflow/dags/state_services.py for what the tasks do.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from async_state.testing import Answer, FakeS3, Request
from tests.airflow.airflow_services import Services, migrated
from tests.servers import s3_client

BOTH_SIDES = "both sides"
WORKERS_ONLY = "the workers only"
BACKEND = "async_state.AsyncStateBackend"
BUCKET = "state"
DAG = "state_services"
DAG_FILE = Path(__file__).parent / "dags" / f"{DAG}.py"
RUN = "manual__2026-01-01T00:00:00+00:00"
TASK = f"v1/task/{DAG}/manual__2026-01-01T00:00:00%2B00:00"
STAMP = re.compile(rb"\A\xffexpires [0-9T:.+-]+\n")
RETURNS = "s3:%2F%2Freturns%2Fdaily"

#: Where each key's value lies, below a plane's directory, and which value it is.
TASK_VALUES = {
    (f"{TASK}/basics/-1", "report%2Feu%20west"): "report",
    (f"{TASK}/basics/-1", "watermark"): "watermark",
    (f"{TASK}/mapped/0", "index"): "index 0",
    (f"{TASK}/mapped/0", "other"): "other 0",
    (f"{TASK}/mapped/1", "after"): "after",
    (f"{TASK}/retried/-1", "denied"): "denied",
    (f"{TASK}/retried/-1", "progress"): "progress",
}
ASSET_VALUES = {
    ("v1/asset/name/orders", "cursor"): "cursor",
    (f"v1/asset/uri/{RETURNS}", "by%20uri"): "by uri",
}


class Deployment:
    """A set of services, what they are given, and what they answered before they were stopped.

    What must not be found (``value``, ``access_key``, ``secret_key``) and what must be (``marker``) look alike, so that
    a search that finds the one would find the other.
    """

    def __init__(self, home: Path, moto: FakeS3, *, both_sides: bool) -> None:
        self.home = home
        self.moto = moto
        self.value, self.marker, self.secret_key = (secrets.token_hex(20) for _ in range(3))
        self.access_key = f"AKIA{secrets.token_hex(16).upper()}"
        self.url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        self.answers: dict[str, Any] = {}
        self.signatures: set[str] = set()
        store = {
            **moto.environment,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AIRFLOW__ASYNC_STATE__URL": self.url,
        }
        (home / "messages").mkdir(parents=True)
        self.services = Services(
            home / "airflow",
            DAG_FILE,
            common={"AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG" if both_sides else "INFO"},
            # With the backend on the worker's side alone, the API server knows neither the store nor its credentials.
            server={**store, "AIRFLOW__STATE_STORE__BACKEND": BACKEND} if both_sides else {},
            worker={
                **store,
                "AIRFLOW__WORKERS__STATE_STORE_BACKEND": BACKEND,
                "SERVICES_VALUE": self.value,
                "SERVICES_MESSAGES": str(home / "messages"),
            },
        )

    def run(self, database: Path) -> None:
        """Start the services on a copy of the database, run the DAG, and stop them."""
        shutil.copy(database, self.services.database)
        instances = f"dags/{DAG}/dagRuns/{RUN}/taskInstances"
        with self.services.running():
            self.services.run_dag(DAG, RUN, {"marker": self.marker})
            self.answers["instances"] = self.services.get(instances)
            self.answers["assets"] = self.services.get("assets")
            for task, index in ("basics", -1), ("mapped", 0), ("mapped", 1), ("retried", -1):
                answer = self.services.get(f"{instances}/{task}/state-store", map_index=index)
                self.answers[f"{TASK}/{task}/{index}"] = answer
            for asset in self.answers["assets"]["assets"]:
                self.answers[asset["name"]] = self.services.get(f"assets/{asset['id']}/state-store")
        self.signatures = {r.headers["authorization"] for r in self.moto.requests if self.prefix in r.path}

    @property
    def prefix(self) -> str:
        return self.url.removeprefix(f"s3://{BUCKET}/")

    @property
    def messages(self) -> list[Path]:
        """What the tasks sent to their supervisors, a file for each process."""
        return sorted((self.home / "messages").iterdir())

    def named(self, scope: str) -> str:
        """Return a scope's name below the URL. A mapped task's has its region, since Airflow 3.4 gives it one."""
        instances = self.answers["instances"]["task_instances"]
        (region,) = {i.get("region_id") for i in instances if i["task_id"] == "mapped"}
        return scope.replace(f"{TASK}/mapped/", f"{TASK}/mapped@{region}/") if region else scope

    def asset_id(self, name: str) -> int:
        ids: list[int] = [asset["id"] for asset in self.answers["assets"]["assets"] if asset["name"] == name]
        (found,) = ids
        return found

    def expected(self, name: str) -> object:
        return {"name": name, "sentinel": self.value}

    def found(self, text: str) -> set[str]:
        """Return all places where ``text`` is: of the database, the logs, and the messages to the supervisor."""
        places = {f"row {place}" for place, cell in self.services.cells() if text in cell}
        # Rows that were deleted since, too.
        databases = self.services.home.glob(f"{self.services.database.name}*")
        for kind, paths in ("database", databases), ("log", self.services.log_files()), ("message", self.messages):
            for path in paths:
                if text.encode() in path.read_bytes():
                    places.add(f"{kind} {path.relative_to(self.home)}")
        return places


def kinds(places: set[str]) -> set[str]:
    return {place.partition(" ")[0] for place in places}


class Deployments:
    """Deployments by name, once their runs have ended."""

    def __init__(self, deployments: Mapping[str, Deployment], runs: Mapping[str, Future[None]]) -> None:
        self._deployments = deployments
        self._runs = runs
        self._told: set[str] = set()

    def __getitem__(self, name: str) -> Deployment:
        run = self._runs[name]
        if run.exception() and name in self._told:
            pytest.fail(
                f"the services with the backend on {name} failed: see the first test that says why", pytrace=False
            )
        self._told.add(name)
        run.result()
        # pytest shows what was printed if the test fails, and only then.
        print(self._deployments[name].services.tails())
        return self._deployments[name]


@pytest.fixture(scope="module")
def deployments(
    moto_server: FakeS3, shared_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployments]:
    """Both deployments, running at the same time: either keeps one core busy for most of it."""
    home = tmp_path_factory.mktemp("services")
    database = migrated(shared_directory)
    made = {
        BOTH_SIDES: Deployment(home / "both-sides", moto_server, both_sides=True),
        WORKERS_ONLY: Deployment(home / "workers-only", moto_server, both_sides=False),
    }
    refused: set[str] = set()

    def refuse_once(request: Request) -> Answer | None:
        if not request.path.endswith("/worker/denied") or request.path in refused:
            return None
        refused.add(request.path)
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        return "403 Forbidden", [("Content-Type", "application/xml")], body

    moto_server.intercept = refuse_once
    with ThreadPoolExecutor() as pool:
        runs = {name: pool.submit(deployment.run, database) for name, deployment in made.items()}
        yield Deployments(made, runs)
        # Where pytest was interrupted.
        for deployment in made.values():
            deployment.services.abandon()
    moto_server.intercept = None


@pytest.fixture
def both_sides(deployments: Deployments) -> Deployment:
    return deployments[BOTH_SIDES]


@pytest.fixture
def workers_only(deployments: Deployments) -> Deployment:
    return deployments[WORKERS_ONLY]


@pytest.fixture(params=[BOTH_SIDES, WORKERS_ONLY])
def deployment(request: pytest.FixtureRequest, deployments: Deployments) -> Deployment:
    return deployments[request.param]


def stored(deployment: Deployment) -> dict[str, Any]:
    """Return every object of state below the deployment's URL, by name, read with another client than the backend's."""
    found = everything(deployment)
    assert found.pop("v1/owner")["database"] == f"sqlite:///{deployment.services.database}"
    return found


def everything(deployment: Deployment) -> dict[str, Any]:
    client = s3_client(deployment.moto.url, deployment.access_key, deployment.secret_key)
    prefix = f"{deployment.prefix}/"
    with contextlib.closing(client):
        names = [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())]
        bodies = [client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names]
    # A task's rows expire after [state_store] default_retention_days, and so have a stamp in front.
    stamped = {name: STAMP.subn(b"", body) for name, body in zip(names, bodies, strict=True)}
    rows = {name for name in names if "/task/" in name and "/server/" in name}
    assert {name for name, (_, stamps) in stamped.items() if stamps} == rows
    return {name.removeprefix(prefix): json.loads(body) for name, (body, _) in stamped.items()}


def value_objects(deployment: Deployment) -> dict[str, Any]:
    values = {**TASK_VALUES, **ASSET_VALUES}
    return {
        f"{deployment.named(scope)}/worker/{key}": deployment.expected(name) for (scope, key), name in values.items()
    }


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


def test_backend_on_both_sides_keeps_values_and_rows_apart(both_sides: Deployment) -> None:
    rows = {}
    for scope, key in TASK_VALUES:
        task = both_sides.named(scope)
        rows[f"{task}/server/{key}"] = f"{task}/worker/{key}"
    for scope, key in ASSET_VALUES:
        # The worker knows an asset by name or URI, the server by id.
        asset = both_sides.asset_id("orders" if "orders" in scope else "returns")
        rows[f"v1/asset/id/{asset}/server/{key}"] = f"{scope}/worker/{key}"
    refs = {row: {"__airflow_state_ref__": f"{both_sides.url}/{value}"} for row, value in rows.items()}
    assert stored(both_sides) == {**value_objects(both_sides), **refs}


def test_backend_on_both_sides_leaves_no_row_in_the_database(both_sides: Deployment) -> None:
    tables = {place.partition(".")[0] for place, _ in both_sides.services.cells()}
    assert "task_instance" in tables
    assert not {"task_state_store", "asset_state_store"} & tables


def test_backend_on_the_workers_side_stores_values_alone(workers_only: Deployment) -> None:
    assert stored(workers_only) == value_objects(workers_only)


def test_airflows_rest_api_lists_readable_references(workers_only: Deployment) -> None:
    listed = {scope: workers_only.answers[scope]["task_state_store"] for scope, _ in TASK_VALUES}
    values = {(scope, entry["key"]): entry["value"] for scope, entries in listed.items() for entry in entries}
    task = f"{workers_only.url}/v1/task/state_services/manual__2026-01-01T00:00:00%2B00:00"
    refs = {
        (f"{TASK}/basics/-1", "report/eu west"): f"{task}/basics/-1/worker/report%2Feu%20west",
        (f"{TASK}/basics/-1", "watermark"): f"{task}/basics/-1/worker/watermark",
        (f"{TASK}/mapped/0", "index"): f"{task}/mapped/0/worker/index",
        (f"{TASK}/mapped/0", "other"): f"{task}/mapped/0/worker/other",
        (f"{TASK}/mapped/1", "after"): f"{task}/mapped/1/worker/after",
        (f"{TASK}/retried/-1", "denied"): f"{task}/retried/-1/worker/denied",
        (f"{TASK}/retried/-1", "progress"): f"{task}/retried/-1/worker/progress",
    }
    assert values == {key: {"__airflow_state_ref__": workers_only.named(ref)} for key, ref in refs.items()}


def test_airflows_rest_api_lists_readable_references_of_assets(workers_only: Deployment) -> None:
    values = {
        (asset, entry["key"]): entry["value"]
        for asset in ("orders", "returns")
        for entry in workers_only.answers[asset]["asset_state_store"]
    }
    refs = {
        ("orders", "cursor"): f"{workers_only.url}/v1/asset/name/orders/worker/cursor",
        ("returns", "by uri"): f"{workers_only.url}/v1/asset/uri/s3:%2F%2Freturns%2Fdaily/worker/by%20uri",
    }
    assert values == {key: {"__airflow_state_ref__": ref} for key, ref in refs.items()}


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


def test_references_are_in_the_database_where_values_are_not(workers_only: Deployment) -> None:
    assert "row task_state_store.value" in workers_only.found(f"{workers_only.url}/{TASK}/basics/-1/worker/watermark")
    assert "row asset_state_store.value" in workers_only.found(f"{workers_only.url}/v1/asset/name/orders/worker/cursor")


def test_values_are_in_the_bucket_and_nowhere_else(deployment: Deployment) -> None:
    assert deployment.value in json.dumps(stored(deployment))
    assert deployment.found(deployment.value) == set()


def test_credentials_are_used_and_found_nowhere(deployment: Deployment) -> None:
    assert deployment.signatures
    assert all(deployment.access_key in signature for signature in deployment.signatures)
    assert deployment.found(deployment.secret_key) == set()
    assert deployment.found(deployment.access_key) == set()
