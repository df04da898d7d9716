"""Clouds that fail: every operation under every fault, what is said of it, and what is there afterwards."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend
from async_state.errors import PurgeError, StoreError, StoreUnavailableError
from async_state.testing import faults
from async_state.testing.faults import Fault
from tests.stores.cloud.clouds import Cloud, store

BackendOf = Callable[..., AsyncStateBackend]

pytestmark = pytest.mark.usefixtures("quick")

OLD = "old" * 300
NEW = "anew" * 500


@dataclass(frozen=True)
class Operation:
    """One operation on a task whose key has the row and the value `OLD`."""

    run: Callable[[AsyncStateBackend, TaskScope, str], object]
    #: Which of its requests the fault hits, and how its error calls it.
    hit: str
    verb: str
    returns: object = None
    row: object = OLD
    value: object = OLD


#: One for each request that there is.
OPERATIONS = {
    "set": Operation(lambda backend, task, _: backend.set(task, "key", json.dumps(NEW)), "put", "put", row=NEW),
    "delete": Operation(lambda backend, task, _: backend.delete(task, "key"), "batch", "delete", row=None, value=None),
    "clear": Operation(lambda backend, task, _: backend.clear(task), "list", "list", row=None, value=None),
    "deserialize": Operation(
        lambda backend, _, ref: backend.deserialize_task_state_store_from_ref(ref), "get", "get", OLD
    ),
    "purge": Operation(lambda backend, _, ref: backend.purge_task_state(ref), "delete", "delete", value=None),
}


class Onlooker:
    """Another process's view, so to say: a backend that meets no fault."""

    def __init__(self, backend: AsyncStateBackend) -> None:
        self.backend = backend

    def prepared(self, task: TaskScope) -> str:
        """Have row and value be `OLD`, and return the value's reference."""
        self.backend.set(task, "key", json.dumps(OLD))
        return store(self.backend, task, "key", OLD)

    def seen(self, task: TaskScope, ref: str) -> tuple[object, object]:
        """Return row and value as they are now."""
        row = self.backend.get(task, "key")
        return None if row is None else json.loads(row), self.backend.deserialize_task_state_store_from_ref(ref)

    def check(self, operation: Operation, task: TaskScope, ref: str, found: object) -> None:
        """Check that the operation has done what it should."""
        assert found == operation.returns
        assert self.seen(task, ref) == (operation.row, operation.value)


@pytest.fixture
def onlooker(cloud: Cloud, opened: BackendOf) -> Onlooker:
    return Onlooker(opened(cloud.settings()))


def a_task() -> TaskScope:
    return TaskScope(f"dag-{uuid.uuid4().hex}", "r", "t")


def an_outage(cloud: Cloud) -> Fault:
    return cloud.error(*cloud.failing)


#: Faults after which the same request, sent again, succeeds.
FAULTS: dict[str, Callable[[Cloud], Fault]] = {
    "outage": an_outage,
    "429": lambda cloud: cloud.error(429, "TooManyRequests"),
    "throttled": lambda cloud: cloud.error(*cloud.throttled, headers={"Retry-After": "0"}),
    "408": lambda cloud: cloud.error(408, "RequestTimeout"),
    "reset before the answer": lambda _: faults.reset_before_answer(),
    "closed before the answer": lambda _: faults.closed_before_answer(),
    "reset after it was carried out": lambda _: faults.reset_after_carrying_out(),
    "reset after the headers": lambda _: faults.reset_after_headers(),
    "reset in the body": lambda _: faults.reset_in_body(),
    "truncated": lambda _: faults.truncated_body(),
    "truncated error": lambda cloud: faults.truncated_body(an_outage(cloud)),
    "a page of HTML": lambda _: faults.respond("200 OK", {"Content-Type": "text/html"}, b"<html>Proxy login</html>"),
    "an error of HTML": lambda _: faults.respond("502 Bad Gateway", {"Content-Type": "text/html"}, b"<html>502"),
    "an empty error": lambda _: faults.respond("503 Service Unavailable", {}, b""),
    "an unknown status": lambda _: faults.respond("599 Whatever", {}, b"?"),
    "no HTTP": lambda _: Fault(send=lambda exchange, _: exchange.send_bytes(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes(
    fault: Callable[[Cloud], Fault], cloud: Cloud, onlooker: Onlooker, opened: BackendOf
) -> None:
    for operation in OPERATIONS.values():
        task = a_task()
        ref = onlooker.prepared(task)
        backend = opened(cloud.settings(max_attempts=2))
        with cloud.server.failing(fault(cloud), times=1, when=cloud.is_(operation.hit)) as failing:
            found = operation.run(backend, task, ref)
        assert len(failing.requests) == 1
        onlooker.check(operation, task, ref, found)


@pytest.mark.parametrize(
    "name", ["outage", "throttled", "reset after it was carried out", "truncated", "a page of HTML", "no HTTP"]
)
def test_a_fault_that_stays(name: str, cloud: Cloud, onlooker: Onlooker, opened: BackendOf) -> None:
    fault = FAULTS[name]
    backend = opened(cloud.settings(max_attempts=2))
    for operation in OPERATIONS.values():
        task = a_task()
        ref = onlooker.prepared(task)
        with cloud.server.failing(fault(cloud), when=cloud.is_(operation.hit)) as failing:
            with pytest.raises(StoreError) as caught:
                operation.run(backend, task, ref)
            assert len(failing.requests) == 2
        said = str(caught.value)
        assert f"could not {operation.verb} {cloud.scheme}://state/cloud/v1/task/{task.dag_id}/" in said
        assert f"endpoint {cloud.endpoint}" in said
        assert "2 attempts" in said
        assert "[async_state]" in said
        cause = caught.value.__cause__ if isinstance(caught.value, PurgeError) else caught.value
        assert isinstance(cause, StoreUnavailableError)
        row, value = onlooker.seen(task, ref)
        assert row in (OLD, operation.row)
        assert value in (OLD, operation.value)
        # It works on.
        onlooker.prepared(task)
        onlooker.check(operation, task, ref, operation.run(backend, task, ref))
