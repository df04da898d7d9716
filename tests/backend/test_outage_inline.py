"""``outage_inline_threshold``: a small value outlives an outage of the store in Airflow's database."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.errors import StoreAccessError, StoreError, StoreTimeoutError, StoreUnavailableError
from async_state.testing import FakeS3, faults
from async_state.testing.faults import Fault
from tests.programs.wire import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_kept_alive")

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]

OUTAGES = {
    "failing": faults.error(503, "ServiceUnavailable"),
    "silent": faults.never_answers(),
    "refusing credentials": faults.error(400, "ExpiredToken"),
    "resetting": faults.reset_before_answer(),
}


@pytest.fixture
def backend(opened: BackendOf, s3_settings: SettingsOf) -> AsyncStateBackend:
    backend = opened(s3_settings(outage_inline_threshold=100, timeout=1.5))
    # What comes after meets no first use, which takes its time on a busy machine.
    with contextlib.suppress(StoreError):
        backend.get(TaskScope("warm", "r", "t"), "key")
    return backend


def put(backend: AsyncStateBackend, task: TaskScope, value: Any) -> str:
    return backend.serialize_task_state_store_to_ref(value=value, key="job_id", scope=task)


@pytest.mark.parametrize("fault", OUTAGES.values(), ids=OUTAGES)
def test_a_job_id_survives(
    fault: Fault, backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, caplog: pytest.LogCaptureFixture
) -> None:
    older = put(backend, task, "older")
    with moto.failing(fault), caplog.at_level(logging.WARNING, "async_state"):
        row = put(backend, task, "job-1")
    # The deadline cuts the last attempt off. Where that reaches the server late, it does so before what follows.
    moto.wait_until_idle(PATIENCE)
    assert json.loads(row) == "job-1"
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("async_state")]
    assert older in warning
    assert "outage_inline_threshold" in warning
    assert "job-1" not in warning
    # The row counts, and not the older object of the key.
    assert backend.deserialize_task_state_store_from_ref(row) == "job-1"
    # Purging the row has nothing to delete, also while the store fails.
    with moto.failing(fault):
        backend.purge_task_state(row)
    # The next set moves it to the store.
    assert put(backend, task, "job-2") == older
    assert backend.deserialize_task_state_store_from_ref(older) == "job-2"


def test_delete_and_clear_take_the_older_object_along(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    removals: list[Callable[[], None]] = [lambda: backend.delete(task, "job_id"), lambda: backend.clear(task)]
    for remove in removals:
        older = put(backend, task, "older")
        with moto.failing(OUTAGES["failing"]):
            put(backend, task, "job-1")
        moto.wait_until_idle(PATIENCE)
        remove()
        assert backend.deserialize_task_state_store_from_ref(older) is None


@pytest.mark.parametrize("size", [100, 101])
def test_the_threshold_is_in_bytes_of_json(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, size: int
) -> None:
    value = "x" * (size - 2)
    with moto.failing(OUTAGES["failing"]):
        if size == 100:
            assert json.loads(put(backend, task, value)) == value
        else:
            with pytest.raises(StoreUnavailableError):
                put(backend, task, value)


def test_it_is_off_by_default(opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope) -> None:
    for fault, error in ((OUTAGES["failing"], StoreUnavailableError), (OUTAGES["silent"], StoreTimeoutError)):
        with moto.failing(fault), pytest.raises(error, match="outage_inline_threshold"):
            put(opened(s3_settings(timeout=1)), task, 1)


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchBucket"])
def test_a_mistake_in_the_configuration_is_no_outage(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, code: str
) -> None:
    with moto.failing(faults.error(403, code)), pytest.raises(StoreError) as caught:
        put(backend, task, "job-1")
    assert isinstance(caught.value, StoreAccessError) == (code == "AccessDenied")
