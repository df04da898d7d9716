"""Sweeps while fifty write: they delete orphans that nobody touches, and no value whose row exists."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from airflow.sdk.state import TaskScope
from sqlalchemy import Engine, text

from async_state import AsyncStateBackend, Settings, keys
from async_state.keys import Side
from async_state.testing import FakeS3
from tests.servers import s3_client
from tests.sweep import test_database
from tests.sweep.conftest import DAY, Base, Run, configured
from tests.sweep.databases import engine_of

WRITERS = 50
SWEEPS = 2
#: Keys of each kind that a writer has.
KEYS = 1
#: For a machine that does much else at the same time.
TIMEOUT = 600.0
VALUES = ["one", "two"]

Age = Callable[[], None]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_of("sqlite") as engine:
        yield engine


@pytest.fixture(params=["file", "S3", "S3 that keeps versions"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Base, Age]]:
    """A base URL, and what makes everything there two days old."""
    if request.param == "file":
        settings = Settings(url=(tmp_path / "state").as_uri(), timeout=TIMEOUT)
        base = Base(settings, tmp_path / "state")
    else:
        moto: FakeS3 = request.getfixturevalue("moto")
        bucket = f"busy-{uuid.uuid4().hex}"
        with contextlib.closing(s3_client(moto.url)) as client:
            client.create_bucket(Bucket=bucket)
            if "versions" in request.param:
                client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        settings = Settings(url=f"s3://{bucket}/busy", endpoint_url=moto.url, timeout=TIMEOUT)
        base = Base(settings, None)

    def age() -> None:
        if request.param == "file":
            for name in base.names():
                base.put(name, base.get(name) or b"", age=2 * DAY)
            return
        from moto.s3.models import s3_backends

        for account in s3_backends.values():
            for key in account["aws"].buckets[bucket].keys.values():
                key.last_modified = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(days=2)

    configured(monkeypatch, settings)
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__TIMEOUT", str(TIMEOUT))
    yield base, age
    base.run(base.store.aclose)


class Writer:
    """A task that sets and deletes its keys, each as Airflow and the backend do it, one after the other."""

    def __init__(self, number: int, backend: AsyncStateBackend, rows: Rows) -> None:
        self.scope = TaskScope(dag_id="dag", run_id="run", task_id=f"task{number}")
        self._backend = backend
        self._rows = rows
        self._random = random.Random(number)
        #: What each key must be, by the name of its object.
        self.expected: dict[str, str] = {}

    def name(self, key: str) -> str:
        return keys.object_name(self.scope, key, Side.WORKER)

    def set(self, key: str, value: str) -> None:
        ref = self._write(key, value)
        self._rows.set(self.scope.task_id, key, ref)
        self.expected[self.name(key)] = value

    def crash(self, key: str, value: str) -> None:
        """As a set that ends between its two writes. The next one may be the same, or none."""
        self._write(key, value)
        if self.name(key) in self.expected:
            self.expected[self.name(key)] = value

    def delete(self, key: str) -> None:
        if self.expected.pop(self.name(key), None) is not None:
            self._rows.delete(self.scope.task_id, key)
            self._backend.purge_task_state(keys.make_ref(self._rows.url, self.name(key)))

    def clean(self, key: str) -> None:
        """As ``state-store clean``: the row alone goes."""
        if self.expected.pop(self.name(key), None) is not None:
            self._rows.delete(self.scope.task_id, key)

    def write_until(self, ended: threading.Event, began: threading.Barrier) -> int:
        began.wait()
        writes = 0
        while not ended.is_set():
            key = f"{self._random.choice(('live', 'orphan', 'new'))}{self._random.randrange(KEYS)}"
            value = self._random.choice(VALUES)
            match self._random.choice(("set", "set", "set", "crash", "delete", "clean")):
                case "set":
                    self.set(key, value)
                case "crash":
                    self.crash(key, value)
                case "delete":
                    self.delete(key)
                case _:
                    self.clean(key)
            writes += 1
        return writes

    def _write(self, key: str, value: str) -> str:
        return self._backend.serialize_task_state_store_to_ref(value=value, key=key, scope=self.scope)


class Rows:
    """The rows of Airflow's table, one writer at a time, as SQLite has it."""

    def __init__(self, engine: Engine, url: str) -> None:
        self.url = url
        self._engine = engine
        self._lock = threading.Lock()

    def set(self, task: str, key: str, ref: str) -> None:
        value = json.dumps({"__airflow_state_ref__": ref})
        with self._lock, self._engine.begin() as connection:
            given = {"task": task, "key": key, "value": value}
            update = "UPDATE task_state_store SET value = :value WHERE task_id = :task AND key = :key"
            if not connection.execute(text(update), given).rowcount:
                insert = (
                    f"INSERT INTO task_state_store (dag_run_id, task_id, {test_database.index_column()}, key, dag_id, "  # noqa: S608
                    "run_id, value, updated_at) VALUES (1, :task, -1, :key, 'dag', 'run', :value, '2026-01-01')"
                )
                connection.execute(text(insert), given)

    def delete(self, task: str, key: str) -> None:
        with self._lock, self._engine.begin() as connection:
            delete = "DELETE FROM task_state_store WHERE task_id = :task AND key = :key"
            connection.execute(text(delete), {"task": task, "key": key})


def test_sweeps_while_fifty_write(
    place: tuple[Base, Age], engine: Engine, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, age = place
    test_database.clear(engine)
    monkeypatch.setattr("airflow.settings.engine", engine)
    # What nobody touches: an orphan for each writer, and a live value.
    untouched = {base.put(f"v1/task/dag/run/task{number}/-1/worker/untouched") for number in range(WRITERS)}
    rows = Rows(engine, base.url)
    ended, began = threading.Event(), threading.Barrier(WRITERS + 1)
    with AsyncStateBackend(base.settings) as backend, ThreadPoolExecutor(WRITERS) as pool:
        writers = [Writer(number, backend, rows) for number in range(WRITERS)]
        for writer in writers:
            for number in range(KEYS):
                writer.set(f"live{number}", "one")
                writer.crash(f"orphan{number}", "one")
            writer.set("stays", "one")
        age()
        writing = [pool.submit(writer.write_until, ended, began) for writer in writers]
        began.wait()
        try:
            sweeps = [
                command("sweep", "--database", "--delete", "--grace", "1h", "--max-orphans", "100%", "-o", "json")
                for _ in range(SWEEPS)
            ]
        finally:
            ended.set()
        assert all(future.result() > 0 for future in writing)
    assert [done.code for done in sweeps] == [0] * SWEEPS
    assert sum(done.counts["deleted"] for done in sweeps) >= len(untouched)
    left = set(base.names())
    assert not {ref.removeprefix(f"{base.url}/") for ref in untouched} & left
    expected = {name: value for writer in writers for name, value in writer.expected.items()}
    assert {name: json.loads(base.get(name) or b"null") for name in expected} == expected
    # Now that it is quiet, exactly what has no row goes.
    last = command("sweep", "--database", "--delete", "--grace", "0", "--max-orphans", "100%", "-o", "json")
    assert (last.code, last.counts["deleted"]) == (0, len(left - set(expected)))
    assert set(base.names()) == set(expected)
