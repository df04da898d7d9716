"""Whole deployments of Airflow, each started once for all tests.

One is Airflow as it is without any configuration: LocalExecutor on SQLite, with moto's S3 server. The other one is
what people run: CeleryExecutor with Redis, PostgreSQL, and SeaweedFS.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from async_state import keys
from async_state.testing import fake_s3
from tests.airflow.airflow_services import Services
from tests.deployment import stack
from tests.servers import ACCESS_KEY, SECRET_KEY, s3_client

ROOT = Path(__file__).parents[2]
DAGS = Path(__file__).parent / "dags" / "deployment.py"
URL = "s3://state/deployment"
SECONDS = 300
#: How long a busy sweep keeps what was just written. A task writes an object and its row in far less.
GRACE_SECONDS = 60


@dataclass
class Deployment:
    """A running Airflow, its store, and what must be found in it.

    Attributes:
        services: Airflow's processes.
        endpoint: The store's URL.
        orphans: The names of all objects that have no row by now.
    """

    services: Services
    endpoint: str
    orphans: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def store(self) -> Iterator[Any]:
        with contextlib.closing(s3_client(self.endpoint)) as s3:
            yield s3

    def value(self, name: str) -> Any:
        """Return the value of an object, or ``None`` if there is none."""
        with self.store() as s3, contextlib.suppress(s3.exceptions.NoSuchKey):
            return json.loads(s3.get_object(Bucket="state", Key=f"deployment/{name}")["Body"].read())
        return None

    def names(self) -> set[str]:
        """Return the names of all of state's objects."""
        found = set()
        with self.store() as s3:
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket="state", Prefix="deployment/"):
                found |= {item["Key"].removeprefix("deployment/") for item in page.get("Contents", ())}
        return {name for name in found if keys.parse_name(name) is not None}

    def async_state(self, *arguments: str, codes: tuple[int, ...] = (0,), **options: Any) -> str:
        """Run the command, and return what it prints."""
        done = self.services.command("-m", "async_state", *arguments, timeout=SECONDS, **options)
        assert done.returncode in codes, f"{arguments}: {done.returncode}\n{done.stderr}"
        assert done.stdout, f"{arguments}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def airflow(self, *arguments: str) -> None:
        done = self.services.command("-m", "airflow", *arguments, timeout=SECONDS)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"

    def sources(self, directory: Path) -> dict[str, tuple[str, ...]]:
        """Return the arguments of `sweep` for each source of the truth."""
        refs = directory / "refs.jsonl"
        refs.write_text(self.async_state("export-refs"))
        return {
            "refs": ("--refs", str(refs)),
            "database": ("--database",),
            "rest": ("--api-url", str(self.services.api.base_url)),
        }

    def sweep(self, *arguments: str, codes: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
        """Run `sweep`, and return what it counts and the names that it takes for orphans."""
        report = self.services.home / "report.jsonl"
        report.unlink(missing_ok=True)
        token = str(self.services.api.headers["Authorization"]).removeprefix("Bearer ")
        printed = self.async_state(
            "sweep", *arguments, "--output", "json", "--max-orphans", "100%", "--report", str(report),
            extra={"AIRFLOW_API_TOKEN": token}, codes=codes,
        )  # fmt: skip
        counted: dict[str, Any] = json.loads(printed)
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        return counted | {"names": {line["ref"].removeprefix(f"{URL}/") for line in lines}}


@contextlib.contextmanager
def local(directory: Path) -> Iterator[tuple[dict[str, str], str]]:
    with fake_s3(["state"]) as server:
        yield {}, server.url


@contextlib.contextmanager
def distributed(directory: Path) -> Iterator[tuple[dict[str, str], str]]:
    with (
        stack.redis(directory) as redis,
        stack.postgresql(directory) as database,
        stack.seaweedfs(directory) as endpoint,
    ):
        yield (
            {
                "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
                "AIRFLOW__CELERY__BROKER_URL": f"{redis}/0",
                "AIRFLOW__CELERY__RESULT_BACKEND": f"{redis}/1",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            },
            endpoint,
        )


def missing() -> str:
    """Say what of the distributed deployment can't be had here, if anything."""
    programs = [name for name in ("redis-server", "postgres", "initdb", "weed") if stack.program(name) is None]
    modules = [name for name in ("celery", "redis", "asyncpg", "psycopg2") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(programs + modules)}" if programs or modules else ""


@pytest.fixture(
    scope="module",
    params=[local, pytest.param(distributed, marks=pytest.mark.skipif(bool(missing()), reason=missing()))],
    ids=["LocalExecutor-SQLite-moto", "CeleryExecutor-PostgreSQL-SeaweedFS"],
)
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    # Short, since PostgreSQL's socket has a path of at most 107 bytes.
    directory = tmp_path_factory.mktemp("d")
    kind: Callable[[Path], contextlib.AbstractContextManager[tuple[dict[str, str], str]]] = request.param
    with kind(directory) as (environment, endpoint):
        common = {
            **environment,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
            "AIRFLOW__ASYNC_STATE__URL": URL,
            "AIRFLOW__ASYNC_STATE__ENDPOINT_URL": endpoint,
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
            "AIRFLOW__SCHEDULER__PARSING_CLEANUP_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
        }
        services = Services(directory / "airflow", DAGS, common)
        made = Deployment(services, endpoint)
        with made.store() as s3, contextlib.suppress(s3.exceptions.BucketAlreadyExists):
            s3.create_bucket(Bucket="state")
        services.migrate()
        with services.running(triggerer="triggerer"):
            if "AIRFLOW__CELERY__BROKER_URL" in environment:
                services.start("worker", "celery", "worker", "--skip-serve-logs", "--concurrency", "4")
            yield made
