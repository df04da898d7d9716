"""A bucket that was moved: what was written below the old URL is read, purged and cleared below the new one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.state import AssetScope, TaskScope
from hypothesis import given, settings
from hypothesis import strategies as st

from async_state import AsyncStateBackend, Settings, connections, iothread, temporary
from async_state.copying import Copying
from async_state.errors import UntrustedRefError
from async_state.stores import open_store

SettingsOf = Callable[..., Settings]

KEYS = ["a", "b/c", "..."]
SCOPES: list[TaskScope | AssetScope] = [
    TaskScope(dag_id="dag", run_id="run", task_id="task"),
    TaskScope(dag_id="dag", run_id="run", task_id="task", map_index=1),
    AssetScope(name="asset"),
]


def move(old: Settings, new: Settings) -> None:
    """Copy what is below the old URL, as the command does, and delete it there."""

    async def run() -> None:
        source, target = (open_store(each.url, each, connections.empty(each.url)) for each in (old, new))
        try:
            with temporary.database() as database:
                copy = Copying(source, old.url, target, concurrency=8, timeout=20, database=database)
                await copy.survey(lambda _: None)
                assert await copy.copy(lambda _: None) == {}
                assert await copy.missing() == 0
            async with aclosing(source.entries("", timeout=20)) as pages:
                async for page in pages:
                    assert await source.delete([entry.name for entry in page], timeout=20) == {}
        finally:
            await source.aclose()
            await target.aclose()

    iothread.run(iothread.arun, run)


def stored(settings: Settings) -> list[str]:
    """The names of what is below the URL."""

    async def run() -> list[str]:
        store = open_store(settings.url, settings, connections.empty(settings.url))
        try:
            return [entry.name async for page in store.entries("", timeout=20) for entry in page]
        finally:
            await store.aclose()

    return iothread.run(iothread.arun, run)


class Deployment:
    """A backend as the SDK calls it, a dict in place of the database's rows, and what every key must be."""

    def __init__(self, settings: Settings) -> None:
        self.backend = AsyncStateBackend(settings)
        self.rows: dict[tuple[int, str], str] = {}
        self.expected: dict[tuple[int, str], Any] = {}

    def reconfigure(self, settings: Settings) -> None:
        self.backend.close()
        self.backend = AsyncStateBackend(settings)

    def set(self, scope: int, key: str, value: Any) -> str:
        where = SCOPES[scope]
        if isinstance(where, AssetScope):
            ref = self.backend.serialize_asset_state_store_to_ref(value=value, key=key, scope=where)
        else:
            ref = self.backend.serialize_task_state_store_to_ref(value=value, key=key, scope=where)
        self.rows[scope, key], self.expected[scope, key] = ref, value
        return ref

    def delete(self, scope: int, key: str) -> None:
        self.expected.pop((scope, key), None)
        if ref := self.rows.pop((scope, key), None):
            self.backend.purge_task_state(ref)

    def clear(self, scope: int) -> None:
        for key in KEYS:
            self.expected.pop((scope, key), None)
            self.rows.pop((scope, key), None)
        self.backend.clear(SCOPES[scope])

    def check(self) -> None:
        assert {at: self.backend.deserialize_task_state_store_from_ref(ref) for at, ref in self.rows.items()} == (
            self.expected
        )


scopes, keys = st.integers(0, len(SCOPES) - 1), st.sampled_from(KEYS)
steps = st.lists(
    st.tuples(st.just("set"), scopes, keys, st.integers(0, 3))
    | st.tuples(st.just("delete"), scopes, keys)
    | st.tuples(st.just("clear"), scopes),
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(steps, steps)
def test_every_history_goes_on_below_the_new_url(before: list[Any], after: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        old, new = ((Path(directory) / name).as_uri() for name in ("old", "new"))
        deployment = Deployment(Settings(url=old))
        for step, *arguments in before:
            getattr(deployment, step)(*arguments)
        move(Settings(url=old), Settings(url=new))
        assert stored(Settings(url=old)) == []
        deployment.reconfigure(Settings(url=new, moved_urls=(old,)))
        deployment.check()
        for step, *arguments in after:
            getattr(deployment, step)(*arguments)
            deployment.check()
        # Nothing is left behind: each object below the new URL has its row.
        assert len(stored(Settings(url=new))) == len(deployment.rows)
        deployment.backend.purge_many(deployment.rows.values())
        assert stored(Settings(url=new)) == []
        deployment.backend.close()


@settings(max_examples=50, deadline=None)
@given(steps, steps, steps)
def test_a_move_while_tasks_run(before: list[Any], meanwhile: list[Any], after: list[Any]) -> None:
    """In the order that README gives: both URLs are trusted until all is copied."""
    with tempfile.TemporaryDirectory() as directory:
        old, new = ((Path(directory) / name).as_uri() for name in ("old", "new"))
        deployment = Deployment(Settings(url=old))
        for step, *arguments in before:
            getattr(deployment, step)(*arguments)
        # Which of two was written later, a copy can tell by the second.
        for name in stored(Settings(url=old)):
            os.utime(Path(directory, "old", name), (0, 0))
        deployment.reconfigure(Settings(url=new, trusted_urls=(old,)))
        for step, *arguments in meanwhile:
            getattr(deployment, step)(*arguments)
            deployment.check()
        move(Settings(url=old), Settings(url=new))
        deployment.reconfigure(Settings(url=new, moved_urls=(old,)))
        deployment.check()
        for step, *arguments in after:
            getattr(deployment, step)(*arguments)
            deployment.check()
        deployment.backend.close()


def test_a_moved_reference(store_settings: SettingsOf, task: TaskScope) -> None:
    """On each kind of store: read, replaced by one of the new form, and purged."""
    place = f"{store_settings().url}/{task.dag_id}"
    old = store_settings(url=f"{place}/old", compression="gzip", compression_threshold=0)
    with AsyncStateBackend(old) as backend:
        refs = [backend.serialize_task_state_store_to_ref(value=[key], key=key, scope=task) for key in ("a", "b", "c")]
    new = store_settings(url=f"{place}/new", moved_urls=(old.url,))
    move(old, new)
    with AsyncStateBackend(new) as backend:
        assert [backend.deserialize_task_state_store_from_ref(ref) for ref in refs] == [["a"], ["b"], ["c"]]
        written = backend.serialize_task_state_store_to_ref(value=2, key="a", scope=task)
        assert written == refs[0].replace(old.url, new.url)
        # Both references are of one object.
        assert backend.deserialize_task_state_store_from_ref(refs[0]) == 2
        backend.purge_task_state(refs[1])
        assert len(stored(new)) == 2
        backend.purge_many([refs[0], written, refs[1]])
        assert stored(new) == [refs[2].removeprefix(f"{old.url}/")]
        backend.clear(task)
        assert stored(new) == []
        assert backend.deserialize_task_state_store_from_ref(refs[2]) is None


def test_rows_keep_their_time_of_expiry(store_settings: SettingsOf, task: TaskScope) -> None:
    """The rows that the API server keeps in the store."""
    now, hour = datetime.now(timezone.utc), timedelta(hours=1)
    place = f"{store_settings().url}/{task.dag_id}"
    old, new = store_settings(url=f"{place}/old"), store_settings(url=f"{place}/new", moved_urls=(f"{place}/old",))
    with AsyncStateBackend(old) as backend:
        backend.set(task, "past", "1", expires_at=now - hour)
        backend.set(task, "coming", "1", expires_at=now + hour)
        backend.set(task, "never", "1")
    move(old, new)
    with AsyncStateBackend(new) as backend:
        assert [backend.get(task, key) for key in ("past", "coming", "never")] == [None, "1", "1"]
        assert (backend.cleanup(), backend.cleanup()) == (1, 0)
        assert len(stored(new)) == 2


def test_without_the_option_a_moved_reference_is_refused(store_settings: SettingsOf, task: TaskScope) -> None:
    place = f"{store_settings().url}/{task.dag_id}"
    with AsyncStateBackend(store_settings(url=f"{place}/old")) as backend:
        ref = backend.serialize_task_state_store_to_ref(value=1, key="key", scope=task)
    with AsyncStateBackend(store_settings(url=f"{place}/new")) as backend, pytest.raises(UntrustedRefError):
        backend.deserialize_task_state_store_from_ref(ref)


def test_what_was_not_copied_is_gone(
    store_settings: SettingsOf, task: TaskScope, caplog: pytest.LogCaptureFixture
) -> None:
    """The old place is never asked, so that the test fails where it still is."""
    place = f"{store_settings().url}/{task.dag_id}"
    old = store_settings(url=f"{place}/old")
    with AsyncStateBackend(old) as backend:
        ref = backend.serialize_task_state_store_to_ref(value=1, key="key", scope=task)
        with AsyncStateBackend(store_settings(url=f"{place}/new", moved_urls=(old.url,))) as moved:
            assert moved.deserialize_task_state_store_from_ref(ref) is None
            moved.purge_task_state(ref)
        assert ref in caplog.text
        assert backend.deserialize_task_state_store_from_ref(ref) == 1
