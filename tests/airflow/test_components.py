"""What happens where a component of Airflow starts: whose prefix it uses, what it warns of, and what it prepares.

Each component is a process of its own, in which the callback of Airflow's command line is called. Components that
really start are in test_airflow_services.py, test_triggerer.py and test_celery.py.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.airflow.processes import in_process
from tests.servers import free_port

if TYPE_CHECKING:
    from async_state.testing import Answer, FakeS3, Request

OURS = {"AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend"}
URL = "AIRFLOW__ASYNC_STATE__URL"
DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
BROKER = "AIRFLOW__CELERY__BROKER_URL"
EXECUTOR = "AIRFLOW__CORE__EXECUTOR"
CLEARS = "AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS"
PROD = {DATABASE: "postgresql+psycopg2://user:secret@db.prod:5432/airflow", BROKER: "redis://:secret@redis.prod/0"}
COPY = {DATABASE: "postgresql+psycopg2://user:secret@db.copy:5432/airflow", BROKER: "redis://:secret@redis.copy/0"}


def started(*words: str) -> dict[str, Any]:
    """Return what the component with this command line does in this process, and logs in any."""
    from airflow.utils import cli_action_loggers

    from async_state import components

    # The only one by default writes to the database.
    callbacks = cli_action_loggers.__dict__["__pre_exec_callbacks"]
    callbacks.clear()
    assert [command.name for command in components.commands()] == ["async-state"]
    sys.argv = ["airflow", *words, "--verbose"]
    log = Path(os.environ["AIRFLOW_HOME"], f"log-{os.getpid()}")
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger("async_state").addHandler(handler)
    logging.getLogger("async_state").setLevel(logging.INFO)
    connected: list[str] = []
    sys.addaudithook(lambda event, _: connected.append(event) if event == "socket.connect" else None)
    files = set(Path("/proc/self/fd").iterdir())
    ends, held = os.pipe()
    cli_action_loggers.on_pre_execution(sub_command="wrapper", full_command=str(sys.argv))  # type: ignore[no-untyped-call]
    os.close(held)
    # Whoever still checks in the background holds the other end.
    os.read(ends, 1)
    os.close(ends)
    iothread = sys.modules.get("async_state.iothread")
    return {
        "told": [line.split(" ", 1) for line in log.read_text().splitlines()],
        "threads": [thread.name for thread in threading.enumerate()],
        "I/O thread": getattr(iothread, "_current", None),
        "connected": connected,
        "left open": [str(f.readlink()) for f in set(Path("/proc/self/fd").iterdir()) - files if f.exists()],
        "prepared": "aiobotocore" in sys.modules,
    }


def start(*words: str, **environment: str) -> list[list[str]]:
    """Return what a component logs, with the levels."""
    told: list[list[str]] = in_process(started, *words, **{**OURS, **environment})["told"]
    return told


class Place:
    """A URL for the backend, and what is at its owner's object."""

    def __init__(self, environment: dict[str, str], path: Path | None = None, moto: FakeS3 | None = None) -> None:
        self.environment = environment
        self.url = environment[URL]
        self._path = path
        self._moto = moto

    def owner(self) -> dict[str, Any]:
        from tests.servers import s3_client

        if self._moto is None:
            assert self._path
            text = (self._path / "v1" / "owner").read_bytes()
        else:
            with closing(s3_client(self._moto.url)) as s3:
                bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
                text = s3.get_object(Bucket=bucket, Key=f"{prefix}/v1/owner")["Body"].read()
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.fixture(params=["file", "moto"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place({URL: f"file://{tmp_path}/state"}, tmp_path / "state")
    moto: FakeS3 = request.getfixturevalue("moto")
    return Place({**moto.environment, URL: f"s3://state/{tmp_path.name}", **endpoint(moto.url)}, moto=moto)


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return Place({URL: f"file://{tmp_path}/state"}, tmp_path / "state")


def endpoint(url: str) -> dict[str, str]:
    return {"AIRFLOW__ASYNC_STATE__ENDPOINT_URL": url}


def test_the_first_scheduler_names_the_deployment_and_its_components_agree(place: Place) -> None:
    assert start("scheduler", **place.environment, **PROD) == []
    first = place.owner()
    assert (first["owner"], first["database"]) == ("", "postgresql://db.prod:5432/airflow")
    other_user = {**PROD, DATABASE: "postgresql+asyncpg://other:password@db.prod:5432/airflow?sslmode=require"}
    distributed = {EXECUTOR: "CeleryExecutor"} if place.url.startswith("s3") else {}
    for component in ["triggerer"], ["celery", "worker"], ["api-server"]:
        assert start(*component, **place.environment, **other_user, **distributed) == []
    # The worker has added what it knows.
    added = {"broker": "redis://redis.prod/0", "clear_on_success": {"workers": False, "api-server": False}}
    components = ("scheduler", "triggerer", "celery worker", "api-server")
    options = dict.fromkeys(components, first["options"]["scheduler"])
    assert place.owner() == {**first, **added, "options": options}


def test_another_deployments_components_are_told_of_both(place: Place) -> None:
    for component in "scheduler", "celery worker":
        assert start(*component.split(), **place.environment, **PROD) == []
    before = place.owner()
    for component, kind in ("scheduler", "database"), ("triggerer", "database"), ("celery worker", "broker"):
        ((level, message),) = start(*component.split(), **place.environment, **COPY)
        assert level == "ERROR"
        assert f"{kind} {before[kind]}" in message
        assert f"{kind} {before[kind].replace('prod', 'copy')}" in message
        assert f"{place.url} belongs to another deployment" in message
        assert "[async_state] owner" in message
        assert "secret" not in message
    assert place.owner() == before
    assert "secret" not in json.dumps(before)


def test_a_worker_without_a_broker_of_celerys_is_not_told(local: Place) -> None:
    start("celery", "worker", **local.environment, **PROD)
    assert start("edge", "worker", **local.environment, **COPY) == []


def test_a_component_that_checks_holds_nothing_of_it(place: Place) -> None:
    found = in_process(started, "scheduler", **OURS, **place.environment, **PROD)
    expected = {"threads": ["MainThread"], "I/O thread": None, "connected": [], "left open": [], "prepared": False}
    assert {key: found[key] for key in expected} == expected
    assert place.owner()


def test_a_component_starts_where_the_store_can_not_be_reached(tmp_path: Path) -> None:
    environment = {URL: "s3://state/nowhere", **endpoint(f"http://127.0.0.1:{free_port()}")}
    ((level, message),) = start("scheduler", **environment, AIRFLOW__ASYNC_STATE__TIMEOUT="1")
    assert level == "WARNING"
    assert message.startswith("The owner of s3://state/nowhere was not checked")


@pytest.fixture
def denying(moto: FakeS3) -> Iterator[FakeS3]:
    def deny(_: Request) -> Answer:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        return "403 Forbidden", [("Content-Type", "application/xml")], body

    moto.intercept = deny
    yield moto
    moto.intercept = None


def test_a_component_without_access_does_not_complain(denying: FakeS3) -> None:
    environment = {**denying.environment, URL: "s3://state/denied", **endpoint(denying.url)}
    ((level, message),) = start("scheduler", **environment)
    assert level == "INFO"
    assert "no access" in message


def test_an_object_that_is_damaged_is_told_of_and_left_alone(local: Place, tmp_path: Path) -> None:
    file = tmp_path / "state" / "v1" / "owner"
    file.parent.mkdir(parents=True)
    file.write_text("[]")
    ((level, message),) = start("scheduler", **local.environment)
    assert level == "WARNING"
    assert local.url in message
    assert file.read_text() == "[]"


def test_no_clear_deletes_the_owner(local: Place) -> None:
    from airflow.sdk.state import AssetScope, TaskScope

    from async_state import AsyncStateBackend, Settings, UntrustedRefError

    start("scheduler", **local.environment)
    before = local.owner()
    with AsyncStateBackend(Settings(url=local.url)) as backend:
        for scope in TaskScope(dag_id="owner", run_id="r", task_id="t"), AssetScope(name="owner"):
            backend.set(scope, "owner", "1")
            backend.clear(scope, all_map_indices=True)
        with pytest.raises(UntrustedRefError):
            backend.purge_task_state(f"{local.url}/v1/owner")
    assert local.owner() == before


def named(owner: str, **locations: str) -> Any:
    from async_state.ownership import Claim

    return Claim(component="scheduler", owner=owner, locations=locations, clear_on_success={}, options={})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("first", "second", "same", "then"),
    [
        (("prod", "a"), ("prod", "b"), True, ("prod", "a")),
        (("prod", "a"), ("staging", "a"), False, ("prod", "a")),
        (("", "a"), ("prod", "a"), True, ("prod", "a")),
        (("", "a"), ("prod", "b"), False, ("", "a")),
        (("prod", "a"), ("", "a"), True, ("prod", "a")),
        (("prod", "a"), ("", "b"), False, ("prod", "a")),
    ],
    ids=["one name", "two names", "gets a name", "unnamed and another", "name left out", "another without a name"],
)
async def test_names_and_locations(
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    first: tuple[str, str],
    second: tuple[str, str],
    same: bool,
    then: tuple[str, str],
) -> None:
    from async_state import Settings, ownership

    settings = Settings(url=f"file://{tmp_path}/state")
    for owner, database in first, second:
        await ownership.check(settings, named(owner, database=database))
    assert [record.levelname for record in caplog.records] == ([] if same else ["ERROR"])
    for name in (first[0], second[0]) if not same else ():
        assert name in caplog.text
    found = json.loads((tmp_path / "state" / "v1" / "owner").read_text())
    assert (found["owner"], found["database"]) == then


@pytest.mark.parametrize(
    ("variable", "url", "expected"),
    [
        (DATABASE, "sqlite:////srv/airflow.db", "sqlite:////srv/airflow.db"),
        (DATABASE, "postgresql:///airflow?host=/run/postgresql", "postgresql:///run/postgresql/airflow"),
        (DATABASE, "mysql+mysqldb://u:p@db/airflow", "mysql://db/airflow"),
        (DATABASE, "postgresql:///airflow", None),
        (BROKER, "amqp://u:p@a:5672/v;amqp://u:p@b:5672/v", "amqp://a:5672/v;amqp://b:5672/v"),
        (BROKER, "sqs://", None),
    ],
    ids=["sqlite", "a socket", "mysql", "nothing of its own", "two brokers", "a hosted queue"],
)
def test_what_names_a_deployment(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, expected: str | None
) -> None:
    from async_state import Settings, ownership

    monkeypatch.setenv(variable, url)
    component, kind = ("scheduler", "database") if variable == DATABASE else ("celery worker", "broker")
    claim = ownership.claim_of(Settings(url="memory://claims"), component)
    assert claim.locations == ({kind: expected} if expected else {})


def test_clear_on_success_on_one_component_only_is_told(local: Place) -> None:
    assert start("celery", "worker", **local.environment, **{CLEARS: "True"}) == []
    ((level, message),) = start("api-server", **local.environment)
    assert level == "WARNING"
    assert "clear_on_success is False in the api-server and was True in the workers" in message
    for component in ["api-server"], ["celery", "worker"]:
        assert start(*component, **local.environment, **{CLEARS: "True"}) == []


EXECUTORS = [
    ("CeleryExecutor", "CeleryExecutor"),
    ("LocalExecutor,KubernetesExecutor", "KubernetesExecutor"),
    ("company.executors.EdgeExecutor:edge", "company.executors.EdgeExecutor"),
    ("LocalExecutor", None),
]


@pytest.mark.parametrize(("executor", "told"), EXECUTORS)
def test_files_with_an_executor_on_other_machines_are_warned_of(local: Place, executor: str, told: str | None) -> None:
    found = start("scheduler", **local.environment, **{EXECUTOR: executor})
    if told is None:
        assert found == []
        return
    ((level, message),) = found
    assert level == "WARNING"
    assert told in message
    assert local.url in message


def test_a_worker_that_would_read_references_is_warned_of() -> None:
    environment = {URL: "s3://state/refs", "AIRFLOW__WORKERS__STATE_STORE_BACKEND": ""}
    ((level, message),) = start("celery", "worker", **environment)
    assert level == "WARNING"
    assert "[workers] state_store_backend" in message
    assert start("api-server", **environment) == []
    server = {"AIRFLOW__STATE_STORE__BACKEND": "async_state.AsyncStateBackend"}
    assert start("celery", "worker", **environment, **server) == []


@pytest.mark.parametrize(
    ("words", "prepared"),
    [(["celery", "worker"], True), (["edge", "worker"], True), (["api-server"], False), (["dags", "list"], False)],
    ids=["celery worker", "edge worker", "api-server", "dags list"],
)
def test_workers_prepare_what_their_tasks_inherit(moto: FakeS3, words: list[str], prepared: bool) -> None:
    environment = {**OURS, **moto.environment, URL: "s3://state/prepared-by-command", **endpoint(moto.url)}
    found = in_process(started, *words, **environment)
    assert (found["prepared"], found["told"]) == (prepared, [])
    expected = {"threads": ["MainThread"], "I/O thread": None, "connected": [], "left open": []}
    assert {key: found[key] for key in expected} == expected


def command_functions() -> list[str]:
    from airflow.providers_manager import ProvidersManager

    return [f"{f.__module__}.{f.__name__}" for f in ProvidersManager().cli_command_functions]  # type: ignore[no-untyped-call]


def test_airflows_command_line_finds_the_callback() -> None:
    assert "async_state.components.commands" in in_process(partial(command_functions))
