"""State in ``async def`` tasks, through `AsyncStateStore` and through the SDK's own accessors.

Real tasks in processes of their own, below Airflow's own supervisor (dags/async_worker.py), all started once;
see tests/airflow/dags/async_tasks.py for what they do. S3 is moto's server.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import airflow.example_dags
import pytest

import async_state.example_dags
from async_state.testing import REGION, Answer, FakeS3, Request
from tests.airflow.airflow_services import processes_of_session
from tests.airflow.dags.async_worker import Run, environment_of
from tests.servers import s3_client

DAGS = Path(__file__).parent / "dags"
EXAMPLE = "example_task_state_store_async"
BACKEND = "async_state.AsyncStateBackend"
OTHER = {"conn_type": "http", "login": "other"}
WORKER_SECONDS = 600

DELAY = 0.5
OVERLAPPING = 8

#: What the four operations give on any accessor: see `operations` in the DAG file.
OPERATIONS = {
    "missing": None,
    "default": {"a": "default"},
    "value": [1, {"nested": None}],
    "deleted": "default",
    "cleared": [None, "default"],
    "None": ["ValueError"],
    "refused": "default",
    "kept": {"value": "kept"},
}
FALSY: dict[str, Any] = {"zero": 0, "false": False, "text": "", "list": [], "dict": {}}
#: What those on many keys give: see `many` there.
MANY = {
    "read": {**FALSY, "missing": None},
    "all deleted": dict.fromkeys(FALSY),
    "some": ["ValueError"],
    "the others": {"k1": 1, "k2": None, "k3": 3},
}


class Tasks:
    """What the tasks of each run returned and left."""

    def __init__(self, home: Path, moto: FakeS3) -> None:
        self.home = home
        self.moto = moto
        #: When each request arrived, its method, its path and its signature.
        self.requests: list[tuple[float, str, str, str]] = []
        #: How many slow requests of a bucket and method were under way at once, at most.
        self.most_at_once: Counter[tuple[str, str]] = Counter()
        self._under_way: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def of(self, run: str, task: str) -> dict[str, Any]:
        """Return what the task returned."""
        states = dict(self.rows(run, "SELECT task_id, state FROM task_instance"))
        # pytest shows what was printed if the test fails, and only then.
        for log in sorted((self.home / run / "logs").glob(f"{task}.*.log")):
            print(f"--- {log.name}", *log.read_text().splitlines(), sep="\n")
        assert states[task] == "success"
        found: dict[str, Any] = json.loads((self.home / run / f"{task}.json").read_text())
        return found

    def rows(self, run: str, query: str, *parameters: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.home / run / "airflow.db")) as connection:
            return connection.execute(query, parameters).fetchall()

    def requests_of(self, run: str) -> list[tuple[float, str, str, str]]:
        """Return the run's requests, which has a bucket of its own."""
        return [request for request in self.requests if f"{request[2]}/".startswith(f"/{bucket(run)}/")]

    def objects(self, run: str) -> dict[str, Any]:
        """Return the run's objects by name, read with another client than the backend's."""
        with contextlib.closing(client(self.moto)) as s3:
            names = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket(run)).get("Contents", ())]
            return {name: json.loads(s3.get_object(Bucket=bucket(run), Key=name)["Body"].read()) for name in names}

    def intercept(self, request: Request) -> Answer | None:
        self.requests.append((time.monotonic(), request.method, request.path, request.headers.get("authorization", "")))
        if "/slow" in request.path:
            what = request.path.split("/")[1], request.method
            with self._lock:
                self._under_way[what] += 1
                self.most_at_once[what] = max(self.most_at_once[what], self._under_way[what])
            time.sleep(DELAY)
            with self._lock:
                self._under_way[what] -= 1
        undeletable = request.path.startswith(f"/{bucket('undeletable')}")
        if request.path.endswith("/denied") or (undeletable and request.method == "POST"):
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            return "403 Forbidden", [("Content-Type", "application/xml")], body
        return None


def bucket(run: str) -> str:
    return f"async-{run}"


def client(moto: FakeS3) -> Any:
    return s3_client(moto.url)


def in_s3(moto: FakeS3, name: str, dag_id: str, *, patch: bool = True, **options: str) -> Run:
    """Return a run with its state in a bucket of its own, which is made here."""
    with contextlib.closing(client(moto)) as s3:
        s3.create_bucket(Bucket=bucket(name))
    given = {"url": f"s3://{bucket(name)}/state", "endpoint_url": moto.url, "region_name": REGION, **options}
    given["patch_accessors"] = str(patch)
    environment = {f"AIRFLOW__ASYNC_STATE__{option.upper()}": value for option, value in given.items()}
    environment["AIRFLOW__WORKERS__STATE_STORE_BACKEND"] = BACKEND
    if "aws_conn_id" not in options:
        environment |= moto.environment
    return Run(name, dag_id, environment)


def connected(moto: FakeS3, place: str, *, patch: bool) -> Run:
    """Return a run with credentials from a connection, which is in the environment or in Airflow's database."""
    name = f"{place}-{'on' if patch else 'off'}"
    run = in_s3(moto, name, "async_connection", patch=patch, aws_conn_id="aws_state")
    # With an extra, which is masked when it is read.
    credentials = {"conn_type": "aws", "login": f"AKIA-{name}", "password": "secret", "extra": {"region_name": REGION}}
    connections = {"aws_state": json.dumps(credentials), "other": json.dumps(OTHER)}
    if place == "database":
        run.connections.update(connections)
    else:
        run.environment.update({f"AIRFLOW_CONN_{name.upper()}": value for name, value in connections.items()})
        # Always asked for, so that a question is in flight.
        run.connections["other"] = run.environment.pop("AIRFLOW_CONN_OTHER")
    return run


@pytest.fixture(scope="module")
def tasks(moto_server: FakeS3, tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    home = tmp_path_factory.mktemp("async-tasks")
    (home / "dags").mkdir()
    (home / "airflow.cfg").touch()
    for name in "async_tasks.py", "async_sync_backend.py", "async_program.py":
        shutil.copy(DAGS / name, home / "dags")
    # All of them are parsed as files of their own there; what they do is in test_triggerer.py, too.
    for packaged in Path(next(iter(async_state.example_dags.__path__))).glob("async_state_*.py"):
        shutil.copy(packaged, home / "dags")
    shutil.copy(Path(next(iter(airflow.example_dags.__path__)), f"{EXAMPLE}.py"), home / "dags")
    moto = moto_server
    runs = [
        # First, since its retry waits for five seconds.
        in_s3(moto, "example", EXAMPLE),
        Run(
            "dag-test",
            str(home / "dags" / "async_program.py"),
            {
                "AIRFLOW__WORKERS__STATE_STORE_BACKEND": BACKEND,
                "AIRFLOW__ASYNC_STATE__URL": f"file://{home}/dag-test/state",
            },
        ),
        Run(
            "packaged",
            str(DAGS / "async_examples.py"),
            {
                "AIRFLOW__WORKERS__STATE_STORE_BACKEND": BACKEND,
                "AIRFLOW__ASYNC_STATE__URL": f"file://{home}/packaged/state",
            },
        ),
        # Without the patches, on which `AsyncStateStore` must not depend.
        in_s3(moto, "store", "async_store", patch=False),
        Run("inline", "async_store"),
        Run("sync-only", "async_store", {"AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_sync_backend.SyncBackend"}),
        in_s3(moto, "ordered", "async_ordered"),
        in_s3(moto, "undeletable", "async_undeletable"),
        in_s3(moto, "accessors-on", "async_accessors"),
        in_s3(moto, "accessors-off", "async_asset_accessors", patch=False),
        connected(moto, "environment", patch=True),
        connected(moto, "environment", patch=False),
        connected(moto, "database", patch=True),
        connected(moto, "database", patch=False),
    ]
    made = Tasks(home, moto)
    moto.intercept = made.intercept
    worker = subprocess.Popen(
        [sys.executable, DAGS / "async_worker.py"],
        env=environment_of(home),
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    printed = ""
    try:
        printed, _ = worker.communicate(json.dumps([asdict(run) for run in runs]), WORKER_SECONDS)
    except subprocess.TimeoutExpired:
        # Which is told below, with what was printed; it and the processes of its tasks, if any still run, end here.
        for pid in processes_of_session(worker.pid):
            os.kill(pid, signal.SIGKILL)
        printed, _ = worker.communicate()
    finally:
        moto.intercept = None
    assert worker.returncode == 0, printed
    return made


def rows(tasks: Tasks, run: str, task: str) -> dict[str, Any]:
    """Return the rows of a task's state."""
    query = "SELECT key, value FROM task_state_store WHERE task_id = ?"
    return {key: json.loads(value) for key, value in tasks.rows(run, query, task)}


@pytest.mark.parametrize("run", ["store", "inline", "sync-only"])
def test_operations_on_a_tasks_state(tasks: Tasks, run: str) -> None:
    found = tasks.of(run, "task_state")
    expected = {**OPERATIONS, **MANY}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("run", ["store", "inline", "sync-only"])
def test_operations_on_one_of_several_assets_leave_the_others_alone(tasks: Tasks, run: str) -> None:
    found = tasks.of(run, "asset_state")
    expected = {**OPERATIONS, **MANY}
    assert {key: found[key] for key in expected} == expected
    assert found["returns"] == {"kept": "returns", "one": None}


@pytest.mark.parametrize("run", ["store", "inline", "sync-only"])
def test_the_only_asset_of_a_task_needs_not_be_named(tasks: Tasks, run: str) -> None:
    assert tasks.of(run, "single_asset") == {**OPERATIONS, "without sugar": {"value": "kept"}}


def test_accessors_that_can_not_be_used(tasks: Tasks) -> None:
    found = tasks.of("store", "asset_state")
    assert found["several"].startswith("ValueError: Task has 2 concrete inlets and outlets")
    assert found["no accessor"] == (
        "TypeError: expected context['task_state_store'] or context['asset_state_store'][ASSET], not object"
    )


def test_values_are_in_the_store_and_references_in_the_database(tasks: Tasks) -> None:
    tasks.of("store", "task_state")
    values = {"kept": {"value": "kept"}, "k1": 1, "k3": 3, "hours": 1, "never": 1}
    base = "state/v1/task/async_store/store/task_state/-1/worker"
    objects = {name: value for name, value in tasks.objects("store").items() if name.startswith(base)}
    assert objects == {f"{base}/{key}": value for key, value in values.items()}
    # What was deleted behind Airflow's back has left its row.
    refs = {key: {"__airflow_state_ref__": f"s3://{bucket('store')}/{base}/{key}"} for key in [*values, "gone"]}
    assert rows(tasks, "store", "task_state") == refs


def test_the_same_for_assets(tasks: Tasks) -> None:
    tasks.of("store", "asset_state")
    query = "SELECT value FROM asset_state_store JOIN asset ON asset.id = asset_id WHERE name = 'returns'"
    name = "state/v1/asset/name/returns/worker/kept"
    refs = [json.loads(value) for (value,) in tasks.rows("store", query)]
    assert refs == [{"__airflow_state_ref__": f"s3://{bucket('store')}/{name}"}]
    assert tasks.objects("store")[name] == "returns"


def test_without_a_backend_values_are_in_the_database(tasks: Tasks) -> None:
    tasks.of("inline", "task_state")
    values = {"kept": {"value": "kept"}, "k1": 1, "k3": 3, "hours": 1, "never": 1, "k" * 513: 1}
    assert rows(tasks, "inline", "task_state") == values


def test_hooks_of_a_backend_without_coroutines_leave_the_loop_alone(tasks: Tasks) -> None:
    assert tasks.of("sync-only", "asset_state")["threads"] == ["AnyIO worker thread"]


@pytest.mark.parametrize(("run", "task"), [("store", "task_state"), ("accessors-on", "sdk_task_state")])
def test_retention(tasks: Tasks, run: str, task: str) -> None:
    tasks.of(run, task)
    query = "SELECT key, expires_at, updated_at FROM task_state_store WHERE task_id = ?"
    found = {key: (expires, updated) for key, expires, updated in tasks.rows(run, query, task)}
    assert found["never"][0] is None
    for key, expected in ("hours", timedelta(hours=6)), ("kept", timedelta(days=30)):
        expires, updated = (datetime.fromisoformat(text) for text in found[key])
        assert abs(expires - updated - expected) < timedelta(minutes=1)


def test_retention_of_an_assets_state_is_refused(tasks: Tasks) -> None:
    assert tasks.of("store", "asset_state")["retention"] == ["TypeError"]


@pytest.mark.parametrize("task", ["task_state", "asset_state"])
def test_a_value_that_is_gone_gives_the_callers_default(tasks: Tasks, task: str) -> None:
    assert tasks.of("store", task)["gone"] == [None, "default"]


@pytest.mark.parametrize("task", ["task_state", "asset_state"])
def test_errors_of_the_backend(tasks: Tasks, task: str) -> None:
    found = tasks.of("store", task)
    assert found["denied"][0] == "StoreAccessError"
    assert found["too long"][0] == "InvalidKeyError"


@pytest.mark.parametrize("run", ["store", "inline", "sync-only"])
def test_errors_of_the_server(tasks: Tasks, run: str) -> None:
    found = tasks.of(run, "task_state")
    # As the SDK's own: an asset that nobody knows has no state.
    assert found["nobody's aget"] == []
    assert found["nobody's aset"] == found["nobody's adelete"] == ["AirflowRuntimeError"]


def test_set_ends_with_the_database_and_delete_and_clear_begin_with_it(tasks: Tasks) -> None:
    asked = [(at, what) for at, what, *_ in tasks.of("ordered", "ordered")["asked"] if "StateStore" in what]
    sent = [(at, method) for at, method, *_ in tasks.requests_of("ordered")]
    of_task, of_asset = "TaskStateStore", "AssetStateStoreByName"
    assert [what for _, what in sorted(asked + sent)] == [
        what
        for of in (of_task, of_asset)
        for what in ("PUT", f"Set{of}", f"Delete{of}", "POST", "PUT", f"Set{of}", f"Clear{of}", "GET", "DELETE")
    ]


def test_what_the_store_refuses_never_comes_to_the_database(tasks: Tasks) -> None:
    asked = tasks.of("store", "task_state")["asked"]
    assert "denied" not in {key for _, _, key, _ in asked}
    assert "/denied" in {path[path.rindex("/") :] for _, _, path, _ in tasks.requests_of("store")}


def test_a_delete_or_clear_that_the_store_refuses_is_one_in_the_database(tasks: Tasks) -> None:
    found = tasks.of("undeletable", "undeletable")
    # The store refuses, and has been asked all the same; the rows are gone.
    assert found["delete"][0] == found["clear"][0] == "PurgeError"
    assert found["after delete"] == {"one": None, "two": 2, "three": 3}
    assert found["after clear"] == {"two": None, "three": None}
    assert rows(tasks, "undeletable", "undeletable") == {}
    assert len(tasks.objects("undeletable")) == 3


@pytest.mark.parametrize(
    ("run", "task"),
    [("accessors-on", "sdk_task_state"), ("accessors-on", "sdk_asset_state"), ("accessors-off", "sdk_asset_state")],
)
def test_the_sdks_accessors_in_async_tasks(tasks: Tasks, run: str, task: str) -> None:
    assert tasks.of(run, task) == OPERATIONS


def test_the_sdks_accessors_wait_for_the_store_at_the_same_time(tasks: Tasks) -> None:
    for run in "accessors-on", "accessors-off":
        for operation, figures in tasks.of(run, "overlap").items():
            seconds, gap = figures["seconds"], figures["gap"] * 1000
            print(f"{run}: {OVERLAPPING} x {operation} of {DELAY:g} s took {seconds:.2f} s; worst gap {gap:.0f} ms")
    found = tasks.of("accessors-on", "overlap")
    for operation, method in ("aset", "PUT"), ("aget", "GET"):
        assert tasks.most_at_once[bucket("accessors-on"), method] > 1
        assert found[operation]["gap"] < DELAY / 2


def test_with_portals_they_do_so_without_the_patches(tasks: Tasks) -> None:
    found = tasks.of("accessors-off", "overlap")
    # What the stand-in is for: without a portal, one after the other, and nothing else meanwhile.
    assert tasks.most_at_once[bucket("accessors-off"), "PUT"] == 1
    assert tasks.most_at_once[bucket("accessors-off"), "GET"] > 1
    assert found["aget"]["gap"] < DELAY / 2


def test_airflows_example_resumes_from_its_checkpoint(tasks: Tasks) -> None:
    assert tasks.of("example", "ingest_pages") == {"pages": 12, "rows": 7800}
    said = []
    for attempt in 1, 2:
        lines = (tasks.home / "example" / "logs" / f"ingest_pages.{attempt}.log").read_text().splitlines()
        logged = [json.loads(line)["event"] for line in lines]
        said.append([event for event in logged if "pages" in event and "Done." not in event])
    assert said == [
        [
            "Starting from the top: 12 pages to fetch",
            "Checkpointed 4/12 pages after batch [1, 2, 3, 4]",
            "Checkpointed 8/12 pages after batch [5, 6, 7, 8]",
        ],
        [
            "Resuming: 8 of 12 pages already fetched",
            "Checkpointed 12/12 pages after batch [9, 10, 11, 12]",
            "All 12 pages fetched, 7800 rows total",
        ],
    ]
    (progress,) = tasks.objects("example").values()
    assert progress == {"done": list(range(1, 13)), "rows": 7800}


CONNECTED = ["environment-on", "environment-off", "database-on", "database-off"]


@pytest.mark.parametrize("run", CONNECTED)
@pytest.mark.parametrize(("task", "values"), [("connected_async", [1, 1, 2]), ("connected_sync", [1, 2])])
def test_contract_23_a_connection_is_looked_up_in_any_task(
    tasks: Tasks, run: str, task: str, values: list[int]
) -> None:
    found = tasks.of(run, task)
    assert found["values"] == values
    # Never on the I/O thread: neither the lookup, nor the masking of what it found, nor anything else.
    assert found["threads"] == ["MainThread"]
    # Nor by a call that blocks a running loop.
    assert found["blocked"] == []
    assert "MaskSecret" in found["questions"]
    assert ("GetConnection" in found["questions"]) == (run.startswith("database") or task == "connected_async")
    assert all(f"Credential=AKIA-{run}/" in signature for *_, signature in tasks.requests_of(run))


@pytest.mark.parametrize("run", CONNECTED)
def test_a_connection_that_can_not_be_looked_up_on_the_loop(tasks: Tasks, run: str) -> None:
    found = tasks.of(run, "connected_without_portal")
    if run.endswith("on"):
        assert (found["message"], found["values"], found["blocked"]) == ("", [1, 2], [])
        return
    assert found["message"].startswith(
        "ConfigurationError: [async_state] aws_conn_id: the connection 'aws_state' can't"
    )
    assert "patch_accessors = True" in found["message"]
    # What the message says to do instead works, and what failed has left nothing.
    assert found["values"] == [None, 2]
    assert found["threads"] == ["MainThread"]


def test_the_packaged_examples(tasks: Tasks) -> None:
    found = json.loads((tasks.home / "packaged" / "found.json").read_text())
    assert [part.rpartition(", ")[2] for part in found["task"]] == ["part 0", "part 1", "part 2"]
    assert found["mapped"] == [10, 20]
    with contextlib.closing(sqlite3.connect(tasks.home / "airflow.db")) as connection:
        dags = {dag for (dag,) in connection.execute("SELECT dag_id FROM dag WHERE dag_id LIKE 'async_state_%'")}
    assert dags == {f"async_state_{name}" for name in ("mapped", "sweep", "task", "trigger", "watcher")}


def test_contract_33_an_async_task_in_dag_test_uses_its_state(tasks: Tasks) -> None:
    """Below the SDK's in-process supervisor."""
    found = json.loads((tasks.home / "dag-test" / "found.json").read_text())
    assert found == {
        "task": ["default", 1, 2],
        "asset": ["default", 1, 2],
        "many": [{"k1": 1, "k2": 2}],
        "cleared": ["default"],
        "sync": ["value"],
        "ended": "success",
    }
    objects = sorted(path.name for path in (tasks.home / "dag-test" / "state").rglob("*") if path.is_file())
    assert objects == ["k1", "k2", "k3", "sync"]
