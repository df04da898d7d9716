"""References come out of Airflow's database whole, page by page: PostgreSQL, MySQL and SQLite."""

from __future__ import annotations

import configparser
import importlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from async_state.sweep import database
from async_state.sweep.errors import SourceError
from async_state.sweep.references import References
from tests.sweep.conftest import Base, Run
from tests.sweep.databases import engine_of

BASE = "s3://bucket/state"


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Engine]:
    with engine_of("sqlite") as engine:
        yield engine


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mysql"])
def made(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    with engine_of(request.param) as engine:
        yield engine


@pytest.fixture
def engine(made: Engine) -> Engine:
    clear(made)
    return made


def clear(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in "task_state_store", "asset_state_store":
            connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608


def insert(engine: Engine, tasks: dict[str, Any], assets: dict[tuple[int, str], Any]) -> None:
    """Write rows, of tasks by key and of assets by id and key, without the runs and assets that they belong to."""
    key = "`key`" if engine.dialect.name == "mysql" else "key"
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET session_replication_role = replica"))
        if engine.dialect.name == "mysql":
            connection.execute(text("SET foreign_key_checks = 0"))
        columns = f"dag_run_id, task_id, {index_column()}, {key}, dag_id, run_id, value, updated_at"
        task = (
            f"INSERT INTO task_state_store ({columns}) "  # noqa: S608
            "VALUES (1, 't', -1, :key, 'd', 'r', :value, '2026-01-01 00:00:00')"
        )
        asset = (
            f"INSERT INTO asset_state_store (asset_id, {key}, value, updated_at) "  # noqa: S608
            "VALUES (:id, :key, :value, '2026-01-01 00:00:00')"
        )
        if tasks:
            connection.execute(text(task), [{"key": key, "value": value} for key, value in tasks.items()])
        if assets:
            rows = [{"id": id_, "key": key, "value": value} for (id_, key), value in assets.items()]
            connection.execute(text(asset), rows)


def index_column() -> str:
    from airflow.models.base import Base as Model

    # As Airflow 3.4 calls it.
    return "region_index" if "region_index" in Model.metadata.tables["task_state_store"].columns else "map_index"


def row(ref: str) -> str:
    return json.dumps({"__airflow_state_ref__": ref})


def found(engine: Engine) -> list[str]:
    return list(database.references(References([BASE]), engine))


def test_every_reference_is_found(engine: Engine) -> None:
    insert(
        engine,
        {"a": row(f"{BASE}/v1/a"), "b": "42", "c": f"no JSON, but {BASE}/v1/c", "d é/%": row("gs://other/v1/d")},
        {
            (1, "a"): row(f"{BASE}/v1/e"),
            (2, "a"): '"' + "x" * 70_000 + f' {BASE}/v1/f"',
            (2, "b"): "",
            (10, "ü"): row(f"{BASE}/v1/g"),
        },
    )
    names = [f"{BASE}/v1/{letter}" for letter in "acefg"]
    assert sorted(found(engine)) == sorted([*names, "gs://other/v1/d"])


def test_no_row_is_lost_at_the_ends_of_pages(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_PAGE", 3)
    for count in 0, 1, 3, 4, 6, 7:
        clear(engine)
        tasks = {f"k{number}": row(f"{BASE}/v1/t{number}") for number in range(count)}
        # Ids that text would sort otherwise, several keys for each, and keys in which case alone differs.
        assets = {
            (id_, key): row(f"{BASE}/v1/a{id_}{key}")
            for id_ in (9, 10, 100)[: count // 2]
            for key in ("a", "A", "b", "B")
        }
        insert(engine, tasks, assets)
        assert sorted(found(engine)) == sorted(
            json.loads(value)["__airflow_state_ref__"] for value in (*tasks.values(), *assets.values())
        )


def test_rows_that_change_meanwhile(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_PAGE", 2)
    insert(
        engine, {f"k{n}": row(f"{BASE}/v1/{n}") for n in range(6)}, {(n, "k"): row(f"{BASE}/v1/a{n}") for n in range(4)}
    )
    seen = []
    for number, ref in enumerate(database.references(References([BASE]), engine)):
        seen.append(ref)
        if number == 0:
            with engine.begin() as connection:
                # Before and after the page that is read, rows vanish; and one that stays is written again.
                key = "`key`" if engine.dialect.name == "mysql" else "key"
                connection.execute(text(f"DELETE FROM task_state_store WHERE {key} IN ('k0', 'k1', 'k4')"))  # noqa: S608
                connection.execute(text("DELETE FROM asset_state_store WHERE asset_id = 1"))
                connection.execute(text("UPDATE asset_state_store SET value = value WHERE asset_id = 3"))
    stay = {f"{BASE}/v1/{name}" for name in ("2", "3", "5", "a0", "a2", "a3")}
    assert stay <= set(seen)
    assert len(seen) == len(set(seen))


def test_large_values_take_no_memory(sqlite: Engine) -> None:
    clear(sqlite)
    insert(sqlite, {f"k{number}": json.dumps("x" * 1_000_000) for number in range(30)}, {})
    insert(sqlite, {"ref": row(f"{BASE}/v1/a")}, {})
    found(sqlite)
    tracemalloc.start()
    try:
        assert found(sqlite) == [f"{BASE}/v1/a"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000, "the values have 30 MB"


def test_each_page_is_one_query_by_the_key(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_PAGE", 10)
    insert(
        engine,
        {f"k{n}": row(f"{BASE}/v1/{n}") for n in range(35)},
        {(1, f"k{n}"): row(f"{BASE}/v1/a{n}") for n in range(15)},
    )
    statements: list[str] = []

    def count(*args: Any) -> None:
        statements.append(args[2])

    event.listen(engine, "before_cursor_execute", count)
    try:
        assert len(found(engine)) == 50
    finally:
        event.remove(engine, "before_cursor_execute", count)
    pages = [statement for statement in statements if "FROM task_state_store" in statement]
    assert len(pages) == 4
    assert ["WHERE" in page for page in pages] == [False, True, True, True]
    assert len(statements) == 6


def test_a_database_without_the_tables_is_an_error(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(SourceError, match=r"no such table: task_state_store.*Airflow 3\.3 or later"):
        found(engine)
    engine.dispose()


def configuration(backend: str | None) -> Any:
    class Conf(configparser.ConfigParser):
        def getimport(self, section: str, key: str) -> Any:
            module, _, name = self.get(section, key).rpartition(".")
            return getattr(importlib.import_module(module), name)

    conf = Conf()
    if backend is not None:
        conf.read_dict({"state_store": {"backend": backend}})
    return conf


@pytest.mark.parametrize(
    ("backend", "in_store"),
    [
        (None, False),
        ("", False),
        ("airflow.state.metastore.MetastoreBackend", False),
        ("async_state.AsyncStateBackend", True),
        ("tests.airflow.dags.async_subclass.Encrypting", True),
    ],
)
def test_where_the_rows_are(backend: str | None, in_store: bool) -> None:
    assert database.check_backend(configuration(backend)) is in_store


@pytest.mark.parametrize("backend", ["airflow.sdk.state.BaseStoreBackend", "no.such.Backend"])
def test_rows_that_are_elsewhere_are_an_error(backend: str) -> None:
    with pytest.raises(SourceError, match=r"\[state_store\] backend"):
        database.check_backend(configuration(backend))


def test_export_and_sweep_of_airflows_own_database(
    sqlite: Engine, base: Base, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear(sqlite)
    names = ["v1/task/d/r/t/-1/worker/live", "v1/asset/name/a/worker/live"]
    task, asset = map(base.put, names)
    base.put("v1/task/d/r/t/-1/worker/orphan")
    insert(sqlite, {"live": row(task), "plain": "42", "other": row("gs://other/x")}, {(1, "live"): row(asset)})
    monkeypatch.setattr("airflow.settings.engine", sqlite)
    exported = command("export-refs")
    assert exported.code == 0
    head, *refs, last = map(json.loads, exported.out.splitlines())
    assert head.keys() == {"async_state_refs", "taken_at", "url"}
    assert (head["async_state_refs"], head["url"]) == (1, base.url)
    assert refs == [task, "gs://other/x", asset]
    assert last == {"count": 3}
    by_refs = command("sweep", "--refs", "-", "--output", "json", stdin=exported.out.encode())
    by_database = command("sweep", "--database", "--delete", "--output", "json")
    assert by_database.counts == {**by_refs.counts, "deleted": 1}
    assert base.names() == sorted(names)


def test_a_backend_elsewhere_is_refused(base: Base, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__STATE_STORE__BACKEND", "airflow.sdk.state.BaseStoreBackend")
    for argv in (["export-refs"], ["sweep", "--database", "--delete"]):
        done = command(*argv)
        assert (done.code, done.out) == (1, "")
        assert "keeps the rows elsewhere" in done.err
