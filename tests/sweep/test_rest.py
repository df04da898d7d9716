"""``sweep --api-url`` asks a real API server, and whatever that does not tell is kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, create_engine

from tests.airflow.airflow_services import Services, migrated
from tests.servers import free_port
from tests.sweep import auth
from tests.sweep.conftest import DAY, Base, Run

ROOT = Path(__file__).parents[2]
PASSWORDS = {"admin": "admin-password", "blind": "blind-password", "nobody": "nobody-password"}
USERS = "admin:admin,blind:viewer,nobody:viewer"
RUN = "manual__2026-01-01T00:00:00+00:00"
RUN_SEGMENT = "manual__2026-01-01T00:00:00%2B00:00"


class Airflow:
    """An API server, and rows in its database that are made by hand."""

    def __init__(self, url: str, engine: Engine, home: Path) -> None:
        self.url = url
        self.home = home
        self.engine = engine
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def token(self, user: str) -> str:
        answer = self.client.post("/auth/token", json={"username": user, "password": PASSWORDS[user]})
        token: str = answer.raise_for_status().json()["access_token"]
        return token

    def insert(self, name: str, /, **values: Any) -> Any:
        from airflow.models.base import Base as Model

        table = Model.metadata.tables[name]
        if "region_index" in table.columns:
            # As Airflow 3.4 calls it.
            values = {("region_index" if key == "map_index" else key): value for key, value in values.items()}
        with self.engine.begin() as connection:
            return connection.execute(table.insert().values(**values)).inserted_primary_key

    def dag(self, dag: str) -> str:
        self.insert(
            "dag",
            dag_id=dag,
            is_paused=False,
            is_stale=False,
            bundle_name="dags-folder",
            timetable_type="none",
            partition_mapper_info={},
            max_active_tasks=1,
            max_consecutive_failed_dag_runs=0,
            has_task_concurrency_limits=False,
        )
        return dag

    def run(self, dag: str, run: str = RUN) -> int:
        now = datetime.now(timezone.utc)
        made = self.insert("dag_run", dag_id=dag, run_id=run, run_type="manual", run_after=now, state="success")
        run_id: int = made[0]
        return run_id

    def instance(self, dag: str, task: str = "task", index: int = -1, run: str = RUN, **more: Any) -> None:
        self.insert(
            "task_instance",
            id=uuid.uuid4(),
            dag_id=dag,
            task_id=task,
            run_id=run,
            map_index=index,
            try_number=1,
            pool="default_pool",
            pool_slots=1,
            state="success",
            **more,
        )

    def row(
        self,
        number: int,
        dag: str,
        key: str,
        value: str,
        task: str = "task",
        index: int = -1,
        run: str = RUN,
        **more: Any,
    ) -> None:
        self.insert(
            "task_state_store",
            dag_run_id=number,
            dag_id=dag,
            run_id=run,
            task_id=task,
            map_index=index,
            key=key,
            value=value,
            **more,
        )

    def asset(self, name: str, uri: str, *, is_active: bool = True) -> int:
        now = datetime.now(timezone.utc)
        made = self.insert("asset", name=name, uri=uri, group="asset", extra={}, created_at=now, updated_at=now)
        if is_active:
            self.insert("asset_active", name=name, uri=uri)
        asset: int = made[0]
        return asset

    def asset_row(self, asset: int, key: str, value: str) -> None:
        self.insert("asset_state_store", asset_id=asset, key=key, value=value)


class ApiServer(Services):
    """The API server alone."""

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        url = str(self._api.base_url)
        try:
            address = ("--host", "127.0.0.1", "--port", str(self._port), "--workers", "1")
            self._start("api-server", "api-server", "--apps", "core", *address)
            self.wait_for("the API server", 600, self._answers)
            yield url
        finally:
            self._stop()
            self._api.close()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self._api.get("/api/v2/version").is_success
        return False


@pytest.fixture(scope="module")
def airflow(shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    import airflow.models

    airflow.models.import_all_models()
    home = tmp_path_factory.mktemp("sweep") / "airflow"
    passwords = tmp_path_factory.mktemp("passwords") / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    services = ApiServer(
        home,
        ROOT / "tests/airflow/dags/state_services.py",
        common={
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "AIRFLOW__CORE__AUTH_MANAGER": "tests.sweep.auth.Hiding",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": USERS,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        },
    )
    shutil.copy(migrated(shared_directory), services.database)
    with services.serving() as url:
        engine = create_engine(f"sqlite:///{services.database}")
        made = Airflow(url, engine, services.home)
        made.insert("dag_bundle", name="dags-folder", active=True) if not _has_bundle(engine) else None
        yield made
        made.client.close()
        engine.dispose()


def _has_bundle(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql("SELECT 1 FROM dag_bundle WHERE name = 'dags-folder'").first())


@pytest.fixture
def as_admin(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> Airflow:
    monkeypatch.setenv("AIRFLOW_API_TOKEN", airflow.token("admin"))
    return airflow


def marked(ref: str) -> str:
    return json.dumps({"__airflow_state_ref__": ref})


@pytest.fixture
def dag(airflow: Airflow) -> str:
    """A DAG of the test's own."""
    return airflow.dag(f"dag_{uuid.uuid4().hex}")


@pytest.fixture
def live(airflow: Airflow, base: Base, dag: str) -> str:
    """A task with two live values, whose rows show that rows are in the database. Return its prefix."""
    number = airflow.run(dag)
    airflow.instance(dag)
    prefix = f"v1/task/{dag}/{RUN_SEGMENT}/task/-1/worker"
    for key in "live", "a key/with %":
        ref = base.put(f"{prefix}/{key.replace('%', '%25').replace(' ', '%20').replace('/', '%2F')}")
        airflow.row(number, dag, key, marked(ref))
    return prefix


def sweep(command: Run, airflow: Airflow, *argv: str) -> Any:
    done = command("sweep", "--api-url", airflow.url, "--delete", "--max-orphans", "100%", "--output", "json", *argv)
    assert done.code == 0, done.err
    return done.counts


def test_rows_that_were_deleted_leave_orphans(as_admin: Airflow, base: Base, dag: str, live: str, command: Run) -> None:
    as_admin.row(9, dag, "inline", "42")
    for key in ("orphan", "inline", "a%2Fb"):
        base.put(f"{live}/{key}")
    base.put(f"{live}/young", age=DAY / 2)
    found = sweep(command, as_admin)
    assert (found["referenced"], found["too_young"], found["in_doubt"], found["deleted"]) == (2, 1, 0, 3)
    assert base.names() == [f"{live}/a%20key%2Fwith%20%25", f"{live}/live", f"{live}/young"]


def test_a_young_value_that_is_live_counts_as_referenced(
    as_admin: Airflow, base: Base, live: str, command: Run
) -> None:
    base.put(f"{live}/live", age=5)
    assert sweep(command, as_admin)["referenced"] == 2


def test_a_run_that_is_gone_leaves_orphans(as_admin: Airflow, base: Base, dag: str, live: str, command: Run) -> None:
    gone = [f"v1/task/{dag}/gone/task/-1/worker/k", f"v1/task/{dag}_gone/{RUN_SEGMENT}/task/-1/worker/k"]
    for name in gone:
        base.put(name)
    assert sweep(command, as_admin)["deleted"] == 2
    assert not set(gone) & set(base.names())


def test_a_dag_that_may_not_be_read_is_in_doubt(
    airflow: Airflow, base: Base, live: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.suppress(Exception):
        airflow.run(airflow.dag(auth.HIDDEN))
        airflow.instance(auth.HIDDEN)
    for run in RUN_SEGMENT, "gone":
        base.put(f"v1/task/{auth.HIDDEN}/{run}/task/-1/worker/k")
    base.put(f"{live}/orphan")
    monkeypatch.setenv("AIRFLOW_API_TOKEN", airflow.token("blind"))
    found = sweep(command, airflow)
    assert (found["in_doubt"], found["deleted"]) == (2, 1)
    monkeypatch.setenv("AIRFLOW_API_TOKEN", airflow.token("admin"))
    assert sweep(command, airflow)["deleted"] == 2


def test_a_user_who_may_read_nothing_is_refused(
    airflow: Airflow, base: Base, live: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.put(f"{live}/orphan")
    monkeypatch.setenv("AIRFLOW_API_TOKEN", airflow.token("nobody"))
    done = command("sweep", "--api-url", airflow.url, "--delete")
    assert done.code == 1
    assert "403" in done.err
    assert len(base.names()) == 3


def test_a_task_instance_that_does_not_exist_is_in_doubt(
    as_admin: Airflow, base: Base, dag: str, live: str, command: Run
) -> None:
    missing = [f"v1/task/{dag}/{RUN_SEGMENT}/{task}/worker/k" for task in ("task/0", "task/12", "other/-1", "%7E/-1")]
    for name in missing:
        base.put(name)
    # Airflow answers as if there were one without state, as it does for the wildcard of other routes.
    for task in "task", "~":
        path = f"/api/v2/dags/{dag}/dagRuns/{RUN}/taskInstances/{task}/state-store"
        headers = {"Authorization": f"Bearer {as_admin.token('admin')}"}
        answer = as_admin.client.get(path, params={"map_index": 12}, headers=headers)
        assert (answer.status_code, answer.json()["total_entries"]) == (HTTPStatus.OK, 0)
    found = sweep(command, as_admin)
    assert (found["in_doubt"], found["deleted"]) == (4, 0)
    assert set(missing) <= set(base.names())


def test_each_map_index_is_asked_for(as_admin: Airflow, base: Base, dag: str, live: str, command: Run) -> None:
    for index in 0, 1, 10:
        as_admin.instance(dag, "mapped", index)
    names = {index: f"v1/task/{dag}/{RUN_SEGMENT}/mapped/{index}/worker/k" for index in (0, 1, 10)}
    refs = {index: base.put(name) for index, name in names.items()}
    as_admin.row(7, dag, "k", marked(refs[10]), "mapped", 10)
    assert sweep(command, as_admin)["deleted"] == 2
    assert names[10] in base.names()


def test_a_region_that_is_not_the_instances_is_in_doubt(
    as_admin: Airflow, base: Base, dag: str, live: str, command: Run
) -> None:
    base.put(f"v1/task/{dag}/{RUN_SEGMENT}/task@{uuid.uuid4()}/-1/worker/k")
    found = sweep(command, as_admin)
    assert (found["foreign"], found["in_doubt"], found["deleted"]) == (0, 1, 0)


def test_a_region_change(
    as_admin: Airflow, base: Base, dag: str, live: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a task has stored in a region that is over, and what it has stored again in its present one."""
    from airflow.models.base import Base as Model

    if "region_id" not in Model.metadata.tables["task_state_store"].columns:
        pytest.skip("Airflow has regions from 3.4 on")
    number, regions = as_admin.run(dag, "regions"), [uuid.uuid4() for _ in range(3)]
    names = [f"v1/task/{dag}/regions/looped@{region}/{index}/worker/k" for region in regions for index in (0, 1)]
    for region in regions[:2]:
        for index in (0, 1):
            as_admin.instance(dag, "looped", index, "regions", region_id=region)
    for index, name in enumerate(names):
        base.put(name)
        # The rows of the first region are discarded, and the third one was never seen.
        if index in (2, 3):
            as_admin.row(
                number, dag, "k", marked(f"{base.url}/{name}"), "looped", index - 2, "regions", region_id=regions[1]
            )
    monkeypatch.setattr("airflow.settings.engine", as_admin.engine)
    rest, database = (
        command("sweep", *source, "--output", "json").counts
        for source in (("--api-url", as_admin.url), ("--database",))
    )
    assert (database["referenced"], database["in_doubt"], database["orphans"]) == (4, 0, 4)
    # Whether the task was ever in the third one, the API does not tell.
    assert (rest["referenced"], rest["in_doubt"], rest["orphans"]) == (4, 2, 2)
    assert sweep(command, as_admin)["deleted"] == 2
    assert [name for name in names if name in base.names()] == names[2:]


def test_a_row_of_another_scope_counts(as_admin: Airflow, base: Base, dag: str, live: str, command: Run) -> None:
    as_admin.instance(dag, "other")
    ref = base.put(f"{live}/moved by hand".replace(" ", "%20"))
    base.put(f"v1/task/{dag}/{RUN_SEGMENT}/other/-1/worker/k")
    as_admin.row(8, dag, "copied", marked(ref), "other")
    found = sweep(command, as_admin)
    assert (found["referenced"], found["deleted"]) == (3, 1)


def test_a_row_that_airflow_can_not_show_is_in_doubt(
    as_admin: Airflow, base: Base, dag: str, live: str, command: Run
) -> None:
    as_admin.instance(dag, "broken")
    for key in "k", "other":
        base.put(f"v1/task/{dag}/{RUN_SEGMENT}/broken/-1/worker/{key}")
    as_admin.row(6, dag, "k", "no JSON", "broken")
    found = sweep(command, as_admin)
    assert (found["in_doubt"], found["deleted"]) == (2, 0)


@pytest.mark.parametrize("which", ["run", "dag", "task"])
def test_identifiers_that_can_not_be_asked_for_are_in_doubt(
    which: str, as_admin: Airflow, base: Base, dag: str, live: str, command: Run
) -> None:
    as_admin.instance(dag, "x" * 250)
    ids = {"dag": dag, "run": RUN_SEGMENT, "task": "task"}
    segments = ["a%2Fb", "%2E%2E", "%7E", f"{'x' * 127}~{'0' * 32}"]
    for segment in segments:
        named = {**ids, which: segment}
        base.put(f"v1/task/{named['dag']}/{named['run']}/{named['task']}/-1/worker/k")
    found = sweep(command, as_admin)
    assert (found["foreign"], found["in_doubt"], found["deleted"]) == (0, 4, 0)


def test_more_rows_than_a_page_are_all_seen(as_admin: Airflow, base: Base, dag: str, live: str, command: Run) -> None:
    as_admin.instance(dag, "many")
    prefix = f"v1/task/{dag}/{RUN_SEGMENT}/many/-1/worker"
    for number in range(130):
        ref = base.put(f"{prefix}/k{number}")
        if number:
            as_admin.row(5, dag, f"k{number}", marked(ref), "many")
    long = f"{prefix}/{'k' * 167}~{'0' * 32}"
    base.put(long)
    found = sweep(command, as_admin)
    # The key that is shortened can't be asked for by itself, and nobody knows which other ones moved between the pages.
    assert (found["referenced"], found["in_doubt"], found["deleted"]) == (131, 2, 0)
    base.run(base.store.delete, [long], timeout=20)
    found = sweep(command, as_admin)
    assert (found["referenced"], found["in_doubt"], found["deleted"]) == (131, 0, 1)


def test_assets_are_found_by_name_and_by_uri(as_admin: Airflow, base: Base, live: str, command: Run) -> None:
    unique = uuid.uuid4().hex
    asset = as_admin.asset(f"prices/{unique}", f"s3://prices/{unique}")
    by_name, by_uri = f"v1/asset/name/prices%2F{unique}/worker", f"v1/asset/uri/s3:%2F%2Fprices%2F{unique}/worker"
    as_admin.asset_row(asset, "k", marked(base.put(f"{by_name}/k")))
    # Written by its name, and then by its URI: the row refers to the latter.
    as_admin.asset_row(asset, "both", marked(base.put(f"{by_uri}/both")))
    for name in f"{by_name}/both", f"{by_uri}/k", f"{by_name}/orphan":
        base.put(name)
    found = sweep(command, as_admin)
    assert (found["referenced"], found["in_doubt"], found["deleted"]) == (4, 0, 3)


def test_every_asset_that_ever_had_the_name_is_asked(as_admin: Airflow, base: Base, live: str, command: Run) -> None:
    unique = uuid.uuid4().hex
    old = as_admin.asset(unique, f"s3://old/{unique}", is_active=False)
    new = as_admin.asset(unique, f"s3://new/{unique}")
    prefix = f"v1/asset/name/{unique}/worker"
    as_admin.asset_row(old, "old", marked(base.put(f"{prefix}/old")))
    as_admin.asset_row(new, "new", marked(base.put(f"{prefix}/new")))
    base.put(f"{prefix}/orphan")
    inactive = as_admin.asset(f"{unique}2", f"s3://other/{unique}", is_active=False)
    base.put(f"v1/asset/name/{unique}2/worker/orphan")
    assert inactive
    found = sweep(command, as_admin)
    assert (found["referenced"], found["deleted"]) == (4, 2)


def test_a_long_uri_is_recognized(as_admin: Airflow, base: Base, live: str, command: Run) -> None:
    from airflow.sdk.state import AssetScope

    from async_state.keys import Side, object_name

    uri = f"s3://{uuid.uuid4().hex}/{'long/' * 60}"
    asset = as_admin.asset(uuid.uuid4().hex, uri)
    kept, orphan = (object_name(AssetScope(uri=uri), key, Side.WORKER) for key in ("k", "orphan"))
    as_admin.asset_row(asset, "k", marked(base.put(kept)))
    base.put(orphan)
    found = sweep(command, as_admin)
    assert (found["in_doubt"], found["deleted"]) == (0, 1)
    assert kept in base.names()


def test_an_asset_that_is_not_listed_is_in_doubt(as_admin: Airflow, base: Base, live: str, command: Run) -> None:
    base.put("v1/asset/name/nobody%20knows/worker/k")
    base.put("v1/asset/uri/s3:%2F%2Fnobody/worker/k")
    assert sweep(command, as_admin)["in_doubt"] == 2


def test_no_row_that_shows_a_reference_means_that_rows_are_elsewhere(
    as_admin: Airflow, base: Base, dag: str, command: Run
) -> None:
    number = as_admin.run(dag)
    as_admin.instance(dag)
    as_admin.row(number, dag, "other", "42")
    name = f"v1/task/{dag}/{RUN_SEGMENT}/task/-1/worker/k"
    base.put(name)
    # What is left of a run that is gone is an orphan wherever rows are.
    base.put(f"v1/task/{dag}/gone/task/-1/worker/k")
    found = sweep(command, as_admin)
    assert (found["in_doubt"], found["deleted"]) == (1, 1)
    assert base.names() == [name]


def test_with_rows_in_the_store_a_missing_row_says_nothing(
    as_admin: Airflow, base: Base, live: str, command: Run
) -> None:
    row = f"{live.removesuffix('/worker')}/server/stored"
    base.put(row, marked(base.put(f"{live}/stored")).encode())
    base.put(f"{live}/no row".replace(" ", "%20"))
    found = sweep(command, as_admin)
    assert (found["referenced"], found["in_doubt"], found["deleted"]) == (4, 1, 0)


def test_with_another_backend_here_a_missing_row_says_nothing(
    as_admin: Airflow, base: Base, live: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__STATE_STORE__BACKEND", "airflow.sdk.state.BaseStoreBackend")
    base.put(f"{live}/no%20row")
    found = sweep(command, as_admin)
    assert (found["referenced"], found["in_doubt"], found["deleted"]) == (2, 1, 0)


def test_a_wrong_token_deletes_nothing(
    airflow: Airflow, base: Base, live: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.put(f"{live}/orphan")
    for token, reason in ("wrong", "does not accept the token in AIRFLOW_API_TOKEN"), ("", "needs a token"):
        monkeypatch.setenv("AIRFLOW_API_TOKEN", token)
        done = command("sweep", "--api-url", airflow.url, "--delete")
        assert done.code == 1
        assert reason in done.err
        assert len(base.names()) == 3


@pytest.mark.parametrize("path", ["/elsewhere", "/auth"])
def test_a_wrong_path_deletes_nothing(path: str, as_admin: Airflow, base: Base, live: str, command: Run) -> None:
    base.put(f"{live}/orphan")
    done = command("sweep", "--api-url", f"{as_admin.url}{path}", "--delete")
    assert done.code == 1
    assert "not with Airflow's list of DAGs" in done.err


def test_a_server_that_is_down_deletes_nothing(
    as_admin: Airflow, base: Base, live: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_state.sweep.rest._PAUSE", 0)
    base.put(f"{live}/orphan")
    done = command("sweep", "--api-url", f"http://127.0.0.1:{free_port()}", "--delete")
    assert done.code == 1
    assert "does not answer" in done.err
    for url in "127.0.0.1:8080", "ftp://host", "http://[", "http://host?x":
        assert command("sweep", "--api-url", url, "--delete").code == 1


def test_all_sources_agree(
    as_admin: Airflow, base: Base, dag: str, live: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.put(f"{live}/orphan")
    base.put("foreign")
    base.put(f"{live}/young", age=5)
    monkeypatch.setattr("airflow.settings.engine", as_admin.engine)
    exported = command("export-refs")
    shown = [
        command("sweep", *source, "--output", "json", stdin=stdin).counts
        for source, stdin in (
            (("--api-url", f"{as_admin.url}/api/v2/"), b""),
            (("--database",), b""),
            (("--refs", "-"), exported.out.encode()),
        )
    ]
    assert shown[0] == shown[1] == shown[2]
    assert shown[0]["orphans"] == 1


def test_all_sources_agree_on_what_has_moved(
    as_admin: Airflow, base: Base, dag: str, live: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that still refers to the old base URL keeps the copy below the present one."""
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__MOVED_URLS", "s3://old/state")
    number, asset = as_admin.run(dag, "moved"), as_admin.asset(f"{dag}_moved", f"x://{dag}_moved")
    as_admin.instance(dag, run="moved")
    names = [f"v1/task/{dag}/moved/task/-1/worker/k", f"v1/asset/name/{dag}_moved/worker/k"]
    as_admin.row(number, dag, "k", marked(f"s3://old/state/{names[0]}"), run="moved")
    as_admin.asset_row(asset, "k", marked(f"s3://old/state/{names[1]}"))
    for name in (*names, f"{live}/orphan", f"v1/task/{dag}/moved/task/-1/worker/orphan"):
        base.put(name)
    monkeypatch.setattr("airflow.settings.engine", as_admin.engine)
    exported = command("export-refs").out.encode()
    sources = (("--api-url", as_admin.url), ("--database",), ("--refs", "-"))
    shown = [command("sweep", *source, "--output", "json", stdin=exported).counts for source in sources]
    assert shown[0] == shown[1] == shown[2]
    assert (shown[0]["referenced"], shown[0]["in_doubt"], shown[0]["orphans"]) == (4, 0, 2)
    assert sweep(command, as_admin)["deleted"] == 2
    assert set(names) <= set(base.names())
    # Where the option was forgotten, they are kept all the same.
    monkeypatch.delenv("AIRFLOW__ASYNC_STATE__MOVED_URLS")
    for source in sources:
        forgotten = command("sweep", *source, "--output", "json", stdin=exported).counts
        assert (forgotten["referenced"], forgotten["in_doubt"], forgotten["orphans"]) == (2, 2, 0)


def test_the_pipe_between_two_machines(airflow: Airflow, base: Base, live: str) -> None:
    base.put(f"{live}/orphan")
    common = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    common |= {"AIRFLOW__ASYNC_STATE__URL": base.url, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    # The first has the database and no access to the store, and the other one the reverse.
    server = {**common, "AIRFLOW_HOME": str(airflow.home), "HOME": str(airflow.home)}
    worker = {**common, "AIRFLOW_HOME": str(airflow.home.parent / "worker"), "HOME": str(airflow.home.parent)}
    export = [sys.executable, "-m", "airflow", "async-state", "export-refs"]
    sweep = [sys.executable, "-m", "async_state", "sweep", "--refs", "-", "--delete", "--output", "json"]
    with subprocess.Popen(export, env=server, stdout=subprocess.PIPE, cwd=airflow.home) as exporting:
        done = subprocess.run(sweep, env=worker, stdin=exporting.stdout, capture_output=True, cwd=airflow.home)
    assert exporting.returncode == 0
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["deleted"] == 1
    assert len(base.names()) == 2


def test_the_example_dag(as_admin: Airflow, base: Base, live: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from async_state.example_dags.async_state_sweep import async_state_sweep

    base.put(f"{live}/orphan")
    made: Any = async_state_sweep()
    assert (made.dag_id, made.schedule, made.is_paused_upon_creation) == ("async_state_sweep", None, True)
    (task,) = made.tasks
    params = {name: made.params[name] for name in made.params} | {"api_url": as_admin.url}
    assert params["delete"] is False
    shown = task.python_callable(params)
    assert (shown["orphans"], shown["deleted"]) == (1, 0)
    assert task.python_callable({**params, "delete": True})["deleted"] == 1
    monkeypatch.setenv("AIRFLOW_API_TOKEN", "wrong")
    with pytest.raises(RuntimeError, match="ended with 1"):
        task.python_callable(params)
