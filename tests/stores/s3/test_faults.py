"""S3 that fails: every operation under every fault, and afterwards."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.errors import (
    CorruptObjectError,
    PurgeError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from async_state.stores import retry
from async_state.testing import FakeS3, Request, faults
from async_state.testing.contract import Calls
from async_state.testing.faults import Fault
from tests.programs.wire import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_kept_alive")

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]

# Of different lengths, so that no mixture of the two is one of them.
OLD = "old" * 300
NEW = "anew" * 500
#: A timeout that nothing reaches that does not stall.
AMPLE = 20.0


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts are what these tests do not look at; test_retry.py does."""
    for pause in "FIRST_PAUSE", "FIRST_THROTTLED_PAUSE", "LEAST_THROTTLED_PAUSE":
        monkeypatch.setattr(retry, pause, 0.01)


@pytest.fixture(scope="module")
def onlooker(s3_settings: SettingsOf) -> Iterator[AsyncStateBackend]:
    """Another process's view, so to say: a backend that meets no fault."""
    with AsyncStateBackend(s3_settings()) as backend:
        yield backend


@pytest.fixture(autouse=True)
def _nothing_leaks(onlooker: AsyncStateBackend, moto_server: FakeS3, task: TaskScope) -> Iterator[None]:
    """Compare threads and descriptors, before the test's backends are opened and after they are closed."""
    onlooker.get(task, "the I/O thread and the onlooker's client stay")
    moto_server.wait_until_idle()
    before = resources()
    yield
    moto_server.wait_until_idle()
    deadline = time.monotonic() + PATIENCE
    # Threads that have done their last work take a moment to end.
    while any(now > then for now, then in zip(resources(), before, strict=True)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [f"{now} > {then}" for now, then in zip(resources(), before, strict=True) if now > then] == []


def resources() -> tuple[int, int]:
    """Descriptors and threads, without the threads that executors keep for their next work."""
    kept = ("asyncio_", "AnyIO worker")
    return (
        len(list(Path("/proc/self/fd").iterdir())),
        len([thread for thread in threading.enumerate() if not thread.name.startswith(kept)]),
    )


@dataclass(frozen=True)
class Operation:
    """One operation on a task whose key has the row and the value `OLD`."""

    run: Callable[[Calls, TaskScope, str], object]
    #: Which of its requests the fault hits.
    hit: Callable[[Request], bool]
    #: What it returns, and what row and value are afterwards.
    returns: object
    row: object = OLD
    value: object = OLD


def is_object(request: Request) -> bool:
    return request.path.count("/") > 2


def is_list(request: Request) -> bool:
    return "list-type=2" in request.query


def is_bulk_delete(request: Request) -> bool:
    return request.method == "POST"


OPERATIONS = {
    "get": Operation(lambda calls, task, _: calls.get(task, "key"), is_object, json.dumps(OLD)),
    "set": Operation(lambda calls, task, _: calls.set(task, "key", json.dumps(NEW)), is_object, None, row=NEW),
    "delete": Operation(lambda calls, task, _: calls.delete(task, "key"), is_bulk_delete, None, row=None, value=None),
    "clear, listing": Operation(lambda calls, task, _: calls.clear(task), is_list, None, row=None, value=None),
    "clear, deleting": Operation(lambda calls, task, _: calls.clear(task), is_bulk_delete, None, row=None, value=None),
    "serialize": Operation(lambda calls, task, _: calls.store(task, "key", NEW), is_object, "<ref>", value=NEW),
    "deserialize": Operation(lambda calls, task, ref: calls.resolve(task, ref), is_object, OLD),
    "purge": Operation(lambda calls, _, ref: calls.call("purge_task_state", ref), is_object, None, value=None),
}


def a_task() -> TaskScope:
    return TaskScope(f"dag-{uuid.uuid4().hex}", "r", "t")


#: Faults after which the same request, sent again, succeeds; each is tried again.
PASSING: dict[str, Fault] = {
    "500": faults.error(500, "InternalError"),
    "503": faults.slow_down(),
    "reset before the answer": faults.reset_before_answer(),
    "closed before the answer": faults.closed_before_answer(),
    "reset after it was carried out": faults.reset_after_carrying_out(),
    "reset after the headers": faults.reset_after_headers(),
    "reset in the body": faults.reset_in_body(),
    "truncated": faults.truncated_body(),
    "truncated 500": faults.truncated_body(faults.error(500, "InternalError")),
    "reset in the body of a 503": faults.reset_in_body(faults.slow_down()),
}
#: Faults that harm nothing.
HARMLESS: dict[str, Fault] = {"latency": faults.latency(0.05), "slow drip": faults.slow_drip(100, 0.001)}


def prepared(onlooker: AsyncStateBackend, task: TaskScope) -> str:
    onlooker.set(task, "key", json.dumps(OLD))
    return onlooker.serialize_task_state_store_to_ref(value=OLD, key="key", scope=task)


def seen(onlooker: AsyncStateBackend, task: TaskScope, ref: str) -> tuple[object, object]:
    """Row and value as they are now."""
    row = onlooker.get(task, "key")
    return None if row is None else json.loads(row), onlooker.deserialize_task_state_store_from_ref(ref)


def check_effect(operation: Operation, onlooker: AsyncStateBackend, task: TaskScope, ref: str, found: object) -> None:
    assert found == (ref if operation.returns == "<ref>" else operation.returns)
    assert seen(onlooker, task, ref) == (operation.row, operation.value)


def check_nothing_torn(operation: Operation, onlooker: AsyncStateBackend, task: TaskScope, ref: str) -> None:
    row, value = seen(onlooker, task, ref)
    assert row in (OLD, operation.row)
    assert value in (OLD, operation.value)


def check_error(error: Exception, task: TaskScope, attempts: str) -> None:
    said = str(error)
    assert isinstance(error, StoreError)
    assert f"s3://state/s3/v1/task/{task.dag_id}/" in said
    assert re.search(attempts, said), said
    cause = error.__cause__ if isinstance(error, PurgeError) else error
    assert isinstance(cause, StoreError)
    # What botocore or aiohttp said; a deadline has no other cause than itself.
    assert cause.__cause__ is not None or isinstance(cause, StoreTimeoutError)
    if isinstance(error, PurgeError):
        assert error.remaining
        assert all(task.dag_id in name for name in error.remaining)


@pytest.fixture(params=[("thread", True), ("coroutine", False)], ids=["thread-warm", "coroutine-cold"])
def calls_of(
    request: pytest.FixtureRequest, opened: BackendOf, s3_settings: SettingsOf, onlooker: AsyncStateBackend
) -> Iterator[Callable[..., Calls]]:
    """Make a way to a backend.

    In the one case it is its methods, after calls that have succeeded, and the same backend each time; in the other its
    coroutines, and a new one each time.
    """
    way, warm = request.param
    made: list[Any] = []

    def calls_of(**options: Any) -> Any:
        if warm and made:
            # It may have met faults before, and works on all the same.
            made.append(Calls(made[0].backend, way))
            return made[-1]
        made.append(Calls(opened(s3_settings(**{"max_attempts": 2, "timeout": AMPLE, **options})), way))
        if warm:
            made[-1].get(TaskScope("warm", "r", "t"), "k")
        return made[-1]

    yield calls_of
    for calls in made:
        calls.close()


@pytest.mark.parametrize("name", [*PASSING, *HARMLESS])
def test_a_fault_that_passes(
    name: str, calls_of: Callable[..., Calls], onlooker: AsyncStateBackend, moto: FakeS3
) -> None:
    for operation in OPERATIONS.values():
        task = a_task()
        ref = prepared(onlooker, task)
        calls = calls_of()
        with moto.failing((PASSING | HARMLESS)[name], times=1, when=operation.hit) as failing:
            found = operation.run(calls, task, ref)
        assert len(failing.requests) == 1
        check_effect(operation, onlooker, task, ref, found)


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_stays(
    name: str, calls_of: Callable[..., Calls], onlooker: AsyncStateBackend, moto: FakeS3
) -> None:
    for operation in OPERATIONS.values():
        task = a_task()
        ref = prepared(onlooker, task)
        calls = calls_of()
        with moto.failing(PASSING[name], when=operation.hit) as failing:
            with pytest.raises(StoreError) as caught:
                operation.run(calls, task, ref)
            assert len(failing.requests) == 2
        check_error(caught.value, task, r"\b2 attempts\b")
        check_nothing_torn(operation, onlooker, task, ref)
        prepared(onlooker, task)
        check_effect(operation, onlooker, task, ref, operation.run(calls, task, ref))


#: Answers that are whole and wrong.
NONSENSE = {
    "not XML": faults.respond("200 OK", {"Content-Type": "application/xml"}, b"<ListBucketResult><unclosed"),
    "a page of HTML": faults.respond("200 OK", {"Content-Type": "text/html"}, b"<html><body>Proxy login</body></html>"),
    "an error under 200": faults.respond(
        "200 OK", {}, b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>late</Message></Error>"
    ),
    "an HTML error": faults.respond("502 Bad Gateway", {"Content-Type": "text/html"}, b"<html>Bad Gateway</html>"),
    "an empty error": faults.respond("503 Service Unavailable", {}, b""),
    "an unknown status": faults.respond("599 Whatever", {}, b"?"),
}
WHOLE = {"not XML", "a page of HTML", "an error under 200"}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_answer_that_is_nonsense(
    name: str, calls_of: Callable[..., Calls], onlooker: AsyncStateBackend, moto: FakeS3
) -> None:
    """It is never taken for success by what changes something, and never for a value."""
    for kind, operation in OPERATIONS.items():
        if kind == "get" and name in WHOLE:
            # Nothing tells a row that somebody has restored by hand, without a checksum, from other text.
            continue
        task = a_task()
        ref = prepared(onlooker, task)
        calls = calls_of()
        with (
            moto.failing(NONSENSE[name], when=operation.hit) as failing,
            pytest.raises((StoreError, CorruptObjectError), match=task.dag_id),
        ):
            operation.run(calls, task, ref)
        assert 1 <= len(failing.requests) <= 2
        assert seen(onlooker, task, ref) == (OLD, OLD)
        check_effect(operation, onlooker, task, ref, operation.run(calls, task, ref))


@pytest.mark.parametrize("fault", [faults.corrupted_body(), faults.wrong_checksum()], ids=["a flipped bit", "checksum"])
@pytest.mark.parametrize("operation", [OPERATIONS["get"], OPERATIONS["deserialize"]], ids=["get", "deserialize"])
def test_damage_on_the_way(
    fault: Fault,
    operation: Operation,
    calls_of: Callable[..., Calls],
    onlooker: AsyncStateBackend,
    moto: FakeS3,
    task: TaskScope,
) -> None:
    ref = prepared(onlooker, task)
    calls = calls_of()
    with (
        moto.failing(fault, when=operation.hit),
        pytest.raises(CorruptObjectError, match=rf"s3://state/s3/v1/task/{task.dag_id}/.* does not match the checksum"),
    ):
        operation.run(calls, task, ref)
    # Once, it is read again.
    with moto.failing(fault, when=operation.hit, times=1) as failing:
        check_effect(operation, onlooker, task, ref, operation.run(calls, task, ref))
    assert len(failing.requests) == 1


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("get", "deserialize")])
def test_checksums_in_answers_to_writers_are_nobodys_business(
    name: str, calls_of: Callable[..., Calls], onlooker: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    operation, ref = OPERATIONS[name], prepared(onlooker, task)
    with moto.failing(faults.wrong_checksum(), when=operation.hit) as failing:
        found = operation.run(calls_of(), task, ref)
    assert failing.requests
    check_effect(operation, onlooker, task, ref, found)


STALLS = {
    "never answers": faults.never_answers(),
    "never ends its answer": faults.stalled_body(),
    "slow drip": faults.slow_drip(1, 0.1),
}


def each_at_once(
    first: Calls, onlooker: AsyncStateBackend
) -> Iterator[tuple[str, Callable[[], Exception | None], TaskScope, str, Calls]]:
    for name, operation in OPERATIONS.items():
        task = a_task()
        ref, calls = prepared(onlooker, task), Calls(first.backend, first.way)

        def run(
            operation: Operation = operation, calls: Calls = calls, task: TaskScope = task, ref: str = ref
        ) -> Exception | None:
            try:
                operation.run(calls, task, ref)
            except Exception as e:
                return e
            return None

        yield name, run, task, ref, calls


@pytest.mark.parametrize("fault", STALLS.values(), ids=STALLS)
def test_a_store_that_stalls(
    fault: Fault, calls_of: Callable[..., Calls], onlooker: AsyncStateBackend, moto: FakeS3
) -> None:
    """Every operation at once, since all that they do is wait. The store never goes on: only the deadline ends them."""
    timeout = 1.5
    every = list(each_at_once(calls_of(timeout=timeout, max_attempts=0), onlooker))
    with moto.failing(fault), ThreadPoolExecutor(len(every)) as pool:
        outcomes = list(pool.map(lambda one: one[1](), every))
    for (name, _, task, ref, calls), error in zip(every, outcomes, strict=True):
        assert error is not None, name
        # On a busy machine, the time to read may end just before the deadline.
        check_error(error, task, rf"within {timeout:g} s \([1-9]|\b[1-9][0-9]* attempts? in")
        check_nothing_torn(OPERATIONS[name], onlooker, task, ref)
        prepared(onlooker, task)
        check_effect(OPERATIONS[name], onlooker, task, ref, OPERATIONS[name].run(calls, task, ref))
        calls.close()


def test_a_store_that_does_not_accept(
    calls_of: Callable[..., Calls], onlooker: AsyncStateBackend, moto: FakeS3
) -> None:
    timeout = 1.5
    every = list(each_at_once(calls_of(timeout=timeout), onlooker))
    with moto.not_accepting(), ThreadPoolExecutor(len(every)) as pool:
        outcomes = list(pool.map(lambda one: one[1](), every))
    for (name, _, task, ref, calls), error in zip(every, outcomes, strict=True):
        assert error is not None, name
        # The time to connect may end before the deadline, or with it.
        check_error(error, task, r"\b[12] attempts?\b")
        assert seen(onlooker, task, ref) == (OLD, OLD)
        check_effect(OPERATIONS[name], onlooker, task, ref, OPERATIONS[name].run(calls, task, ref))
        calls.close()


def test_a_wait_before_a_retry_ends_with_the_deadline(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LEAST_THROTTLED_PAUSE", 60)
    # A tenth of it is left for the request after the wait.
    backend = opened(s3_settings(timeout=6))
    with moto.failing(faults.slow_down()) as failing, pytest.raises(StoreUnavailableError, match="SlowDown"):
        backend.set(task, "key", "1")
    assert len(failing.requests) > 1


@pytest.mark.parametrize("attempts", [1, 2, 3])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize(
    "fault",
    [
        faults.error(500, "InternalError"),
        faults.error(400, "RequestTimeout"),
        faults.error(400, "InvalidRequest"),
        faults.error(403, "RequestTimeTooSkewed"),
        faults.truncated_body(faults.error(500, "InternalError")),
    ],
    ids=["500", "400 that passes", "400", "clock", "truncated 500"],
)
def test_requests_never_exceed_the_attempts(
    fault: Fault,
    warm: bool,
    attempts: int,
    opened: BackendOf,
    s3_settings: SettingsOf,
    onlooker: AsyncStateBackend,
    moto: FakeS3,
    task: TaskScope,
) -> None:
    ref = prepared(onlooker, task)
    for name in ("get", "serialize", "purge"):
        calls = Calls(opened(s3_settings(max_attempts=attempts, timeout=AMPLE)), "thread")
        if warm:
            calls.get(task, "key")
        with moto.failing(fault) as failing, pytest.raises(StoreError) as caught:
            OPERATIONS[name].run(calls, task, ref)
        assert len(failing.requests) <= attempts
        assert f"{len(failing.requests)} attempt" in str(caught.value)


# A clear that is interrupted, and deletes of which some fail.


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let moto list three keys a page, as S3 may."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")


def filled(onlooker: AsyncStateBackend, task: TaskScope, count: int = 11) -> list[str]:
    return [onlooker.serialize_task_state_store_to_ref(value=i, key=f"k{i:02}", scope=task) for i in range(count)]


def left(onlooker: AsyncStateBackend, refs: list[str]) -> list[str]:
    return [ref for ref in refs if onlooker.deserialize_task_state_store_from_ref(ref) is not None]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("request_number", range(8))
@pytest.mark.parametrize(
    "fault", [faults.error(500, "InternalError"), faults.reset_after_carrying_out()], ids=["500", "reset"]
)
def test_a_clear_that_fails_anywhere_finishes_when_run_again(
    request_number: int,
    fault: Fault,
    opened: BackendOf,
    s3_settings: SettingsOf,
    onlooker: AsyncStateBackend,
    moto: FakeS3,
    task: TaskScope,
) -> None:
    refs = filled(onlooker, task)
    backend = opened(s3_settings(max_attempts=1, timeout=AMPLE))
    counted = itertools.count()
    with moto.failing(fault, when=lambda _: next(counted) >= request_number) as failing:
        with pytest.raises(StoreError, match=re.escape(task.dag_id)):
            backend.clear(task)
        assert failing.requests
    backend.clear(task)
    assert left(onlooker, refs) == []


@pytest.mark.usefixtures("small_pages")
@pytest.mark.anyio
@pytest.mark.parametrize("request_number", range(8))
async def test_a_clear_that_is_cancelled_anywhere_finishes_when_run_again(
    request_number: int,
    s3_settings: SettingsOf,
    onlooker: AsyncStateBackend,
    moto: FakeS3,
    task: TaskScope,
) -> None:
    refs = filled(onlooker, task)
    counted, reached = itertools.count(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def is_the_one(_: Request) -> bool:
        if next(counted) < request_number:
            return False
        loop.call_soon_threadsafe(reached.set)
        return True

    async with AsyncStateBackend(s3_settings(max_attempts=1)) as backend:
        with moto.failing(faults.never_answers(), when=is_the_one):
            clearing = asyncio.ensure_future(backend.aclear(task))
            await reached.wait()
            clearing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await clearing
        await backend.aclear(task)
    assert left(onlooker, refs) == []


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("code", ["InternalError", "AccessDenied"])
def test_deletes_that_fail_for_some_keys_name_them(
    code: str, opened: BackendOf, s3_settings: SettingsOf, onlooker: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    refs = filled(onlooker, task)
    # One of the first page and one of the third.
    failing = [refs[1], refs[7]]
    keys = [ref.removeprefix("s3://state/") for ref in failing]
    names = sorted(ref.removeprefix("s3://state/s3/") for ref in failing)
    backend = opened(s3_settings(max_attempts=2, timeout=AMPLE))
    purges: list[Callable[[], None]] = [lambda: backend.clear(task), lambda: backend.purge_many(refs)]
    for purge in purges:
        with (
            moto.failing(faults.delete_errors(keys, code), method="POST"),
            pytest.raises(PurgeError, match=rf"{code}: said by a fault .{1 if code == 'AccessDenied' else 2}") as e,
        ):
            purge()
        assert sorted(e.value.remaining) == names
        assert all(f"s3://state/s3/{name}" in said for name, said in e.value.remaining.items())
        assert all(name in str(e.value) for name in names)
        assert left(onlooker, refs) == failing
    backend.clear(task)
    assert left(onlooker, refs) == []


def test_keys_whose_delete_fails_once(
    opened: BackendOf, s3_settings: SettingsOf, onlooker: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    refs = filled(onlooker, task, 5)
    backend = opened(s3_settings(max_attempts=2))
    with moto.failing(faults.delete_errors(lambda key: key.endswith("3")), times=1, method="POST") as failing:
        backend.clear(task)
    assert len(failing.requests) == 1
    assert left(onlooker, refs) == []


def test_readers_never_see_a_torn_value(
    opened: BackendOf, s3_settings: SettingsOf, onlooker: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    """A writer that keeps failing, a reader beside it whose connections fail too."""
    ref = prepared(onlooker, task)
    writer, reader = opened(s3_settings(max_attempts=2)), opened(s3_settings(max_attempts=2))
    kinds = itertools.cycle(PASSING.values())
    found: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                found.append(reader.deserialize_task_state_store_from_ref(ref))
            except StoreError:
                continue

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for i in range(40):
            # Some of the writer's requests are hit and some of the reader's, as it comes.
            with moto.failing(next(kinds), times=2):
                try:
                    writer.serialize_task_state_store_to_ref(value=(OLD, NEW)[i % 2], key="key", scope=task)
                except StoreError:
                    continue
    finally:
        done.set()
        thread.join()
    assert set(found) <= {OLD, NEW}
    assert found
    writer.serialize_task_state_store_to_ref(value=NEW, key="key", scope=task)
    assert reader.deserialize_task_state_store_from_ref(ref) == NEW
