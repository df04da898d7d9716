"""What a worker writes is another content each time, so that whoever deletes what was seen deletes nothing newer."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.state import AssetScope, TaskScope

from async_state import AsyncStateBackend, Settings, connections, iothread
from async_state.keys import Side, object_name
from async_state.stores import open_store
from async_state.stores.base import Details


def stored(settings: Settings, name: str) -> tuple[Details, bytes]:
    """What the store says of the object, and its content."""

    async def look() -> tuple[Details | None, bytes | None]:
        store = open_store(settings.url, settings, connections.empty(settings.url))
        try:
            return await store.head(name, timeout=20), await store.get(name, timeout=20)
        finally:
            await store.aclose()

    details, body = iothread.run(iothread.arun, look)
    assert details is not None
    assert body is not None
    return details, body


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("value", [{"job": "1"}, 7, ["x" * 70_000]], ids=["dict", "number", "large"])
def test_the_same_value_has_another_etag_each_time(
    value: Any, compression: str, store_settings: Any, opened: Any, task: TaskScope
) -> None:
    settings = store_settings(compression=compression, compression_threshold=0)
    backend: AsyncStateBackend = opened(settings)
    found = set()
    for _ in range(3):
        ref = backend.serialize_task_state_store_to_ref(value=value, key="key", scope=task)
        assert backend.deserialize_task_state_store_from_ref(ref) == value
        details, body = stored(settings, object_name(task, "key", Side.WORKER))
        found.add((details.entry.etag, body))
    assert len({etag for etag, _ in found}) == 3
    assert len({body for _, body in found}) == 3


def test_the_value_of_an_asset_too(store_settings: Any, opened: Any, asset: AssetScope) -> None:
    settings = store_settings()
    backend: AsyncStateBackend = opened(settings)
    bodies = set()
    for _ in range(2):
        backend.serialize_asset_state_store_to_ref(value=1, key="key", scope=asset)
        bodies.add(stored(settings, object_name(asset, "key", Side.WORKER))[1])
    assert len(bodies) == 2
    assert {body.strip() for body in bodies} == {b"1"}


def test_a_row_of_the_server_is_stored_as_it_is(store_settings: Any, opened: Any, task: TaskScope) -> None:
    settings = store_settings()
    backend: AsyncStateBackend = opened(settings)
    backend.set(task, "key", "[1]")
    assert stored(settings, object_name(task, "key", Side.SERVER))[1] == b"[1]"


def test_what_stays_in_the_database_has_no_ending(store_settings: Any, opened: Any, task: TaskScope) -> None:
    backend: AsyncStateBackend = opened(store_settings(inline_threshold=3))
    assert backend.serialize_task_state_store_to_ref(value=[1], key="key", scope=task) == "[1]"


def test_an_ending_counts_towards_no_threshold(store_settings: Any, opened: Any, task: TaskScope) -> None:
    settings = store_settings(compression="gzip", compression_threshold=100)
    backend: AsyncStateBackend = opened(settings)
    for length, encoding in (97, ""), (98, "gzip"):
        backend.serialize_task_state_store_to_ref(value="x" * length, key="key", scope=task)
        details, _ = stored(settings, object_name(task, "key", Side.WORKER))
        assert details.content_encoding == encoding
