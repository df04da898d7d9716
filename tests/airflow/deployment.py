"""Airflow's services with the DAG of dags/state_services.py, what it left with them, and what it left in S3."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from async_state.testing import Answer, FakeS3, Request
from tests.airflow.airflow_services import Services
from tests.servers import s3_client

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

    def __init__(
        self,
        home: Path,
        moto: FakeS3,
        database: Path,
        *,
        both_sides: bool,
        common: Mapping[str, str] | None = None,
        other_objects: Collection[str] = (),
    ) -> None:
        """Prepare the services, which the caller starts.

        Parameters:
            home: a directory that is made here.
            database: a migrated database, to be copied.
            both_sides: whether the API server has the backend as well. Then all of them log at DEBUG.
            common: what all of them have in their environment in addition.
            other_objects: what is in the names of objects of DAGs that are not this one.
        """
        self.home = home
        self.moto = moto
        self.value, self.marker, self.secret_key = (secrets.token_hex(20) for _ in range(3))
        self.access_key = f"AKIA{secrets.token_hex(16).upper()}"
        self.url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        self.other_objects = other_objects
        self.answers: dict[str, Any] = {}
        self.refused = False
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
            common={"AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG" if both_sides else "INFO", **(common or {})},
            # With the backend on the worker's side alone, the API server knows neither the store nor its credentials.
            server={**store, "AIRFLOW__STATE_STORE__BACKEND": BACKEND} if both_sides else {},
            worker={
                **store,
                "AIRFLOW__WORKERS__STATE_STORE_BACKEND": BACKEND,
                "SERVICES_VALUE": self.value,
                "SERVICES_MESSAGES": str(home / "messages"),
            },
        )
        shutil.copy(database, self.services.database)

    def run_dag(self) -> None:
        """Run the DAG in the services, and keep what they answer."""
        instances = f"dags/{DAG}/dagRuns/{RUN}/taskInstances"
        self.services.run_dag(DAG, RUN, {"marker": self.marker})
        self.answers["instances"] = self.services.get(instances)
        self.answers["assets"] = self.services.get("assets")
        for task, index in ("basics", -1), ("mapped", 0), ("mapped", 1), ("retried", -1):
            answer = self.services.get(f"{instances}/{task}/state-store", map_index=index)
            self.answers[f"{TASK}/{task}/{index}"] = answer
        for asset in self.answers["assets"]["assets"]:
            self.answers[asset["name"]] = self.services.get(f"assets/{asset['id']}/state-store")
        self.signatures = {r.headers["authorization"] for r in self.moto.requests if self.prefix in r.path}

    def refuse_once(self, request: Request) -> Answer | None:
        """Refuse the first write of what the DAG's task ``retried`` writes last."""
        if self.refused or not request.path.endswith("/worker/denied"):
            return None
        self.refused = True
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        return "403 Forbidden", [("Content-Type", "application/xml")], body

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


def stored(deployment: Deployment) -> dict[str, Any]:
    """Return every object of the DAG's state below the deployment's URL, by name."""
    found = everything(deployment)
    assert found.pop("v1/owner")["database"] == f"sqlite:///{deployment.services.database}"
    return {name: value for name, value in found.items() if not any(part in name for part in deployment.other_objects)}


def everything(deployment: Deployment, below: str = "") -> dict[str, Any]:
    """Return every object below the deployment's URL, by name, read with another client than the backend's."""
    client = s3_client(deployment.moto.url, deployment.access_key, deployment.secret_key)
    prefix = f"{deployment.prefix}/"
    with contextlib.closing(client):
        names = [
            item["Key"] for item in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}{below}").get("Contents", ())
        ]
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
