"""S3 that fails: every operation under every fault, and afterwards."""

from __future__ import annotations

import asyncio
import datetime
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
    StoreAccessError,
    StoreError,
    StoreTimeoutError,
)
from async_state.stores import prepare, s3_prepared
from async_state.testing import Answer, FakeS3, Request, fake_s3, faults
from async_state.testing.contract import KEYS, Calls
from async_state.testing.faults import Fault
from tests.stores.s3.direct import SDK_HEADER, went_directly

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]

# Of different lengths, so that no mixture of the two is one of them.
OLD = "old" * 300
NEW = "anew" * 500
#: A timeout that nothing reaches that does not stall.
AMPLE = 20.0


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore waits up to a second before its second try, at random."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)


@pytest.fixture
def opened() -> Iterator[BackendOf]:
    """As everywhere, but without collecting garbage, which takes longer than most tests here."""
    backends: list[AsyncStateBackend] = []

    def open_(settings: Settings) -> AsyncStateBackend:
        backends.append(AsyncStateBackend(settings))
        return backends[-1]

    yield open_
    for backend in backends:
        backend.close()


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
    deadline = time.monotonic() + 5
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
#: Those of them that drop the connection before there is any answer. In each attempt, aiohttp then sends the request
#: once more by itself, unless it is a POST.
DROPPING = {"reset before the answer", "closed before the answer", "reset after it was carried out"}
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
    """Make a way to a new backend: its methods, after a call that has succeeded; or its coroutines, first of all."""
    way, warm = request.param
    made = []

    def calls_of(**options: Any) -> Calls:
        calls = Calls(opened(s3_settings(**{"max_attempts": 2, "timeout": AMPLE, **options})), way)
        made.append(calls)
        if warm:
            calls.get(TaskScope("warm", "r", "t"), "k")
        return calls

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
            assert len(failing.requests) == (4 if name in DROPPING and operation.hit is not is_bulk_delete else 2)
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
        pytest.raises(CorruptObjectError, match=rf"s3://state/s3/v1/task/{task.dag_id}/.* is damaged"),
    ):
        operation.run(calls, task, ref)
    check_effect(operation, onlooker, task, ref, operation.run(calls, task, ref))


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
) -> Iterator[tuple[str, Callable[[], tuple[Exception | None, float]], TaskScope, str, Calls]]:
    for name, operation in OPERATIONS.items():
        task = a_task()
        ref, calls = prepared(onlooker, task), Calls(first.backend, first.way)

        def run(
            operation: Operation = operation, calls: Calls = calls, task: TaskScope = task, ref: str = ref
        ) -> tuple[Exception | None, float]:
            begun = time.monotonic()
            try:
                operation.run(calls, task, ref)
            except Exception as e:
                return e, time.monotonic() - begun
            return None, time.monotonic() - begun

        yield name, run, task, ref, calls


@pytest.mark.parametrize("fault", STALLS.values(), ids=STALLS)
def test_a_store_that_stalls(
    fault: Fault, calls_of: Callable[..., Calls], onlooker: AsyncStateBackend, moto: FakeS3
) -> None:
    """Every operation at once, since all that they do is wait."""
    timeout = 1.5
    every = list(each_at_once(calls_of(timeout=timeout), onlooker))
    with moto.failing(fault), ThreadPoolExecutor(len(every)) as pool:
        outcomes = list(pool.map(lambda one: one[1](), every))
    for (name, _, task, ref, calls), (error, took) in zip(every, outcomes, strict=True):
        assert took < timeout + 1, name
        assert error is not None, name
        check_error(error, task, rf"within {timeout:g} s \(1 attempt\)")
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
    for (name, _, task, ref, calls), (error, took) in zip(every, outcomes, strict=True):
        assert took < timeout + 1, name
        assert error is not None, name
        # The time to connect may end before the deadline, or with it.
        check_error(error, task, r"\b[12] attempts?\b")
        assert seen(onlooker, task, ref) == (OLD, OLD)
        check_effect(OPERATIONS[name], onlooker, task, ref, OPERATIONS[name].run(calls, task, ref))
        calls.close()


def test_a_wait_before_a_retry_ends_with_the_deadline(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 60)
    backend = opened(s3_settings(timeout=0.5))
    begun = time.monotonic()
    with moto.failing(faults.slow_down()), pytest.raises(StoreTimeoutError, match=r"\(1 attempt\)"):
        backend.set(task, "key", "1")
    assert time.monotonic() - begun < 1.5


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
            pytest.raises(
                PurgeError, match=rf"{code}: said by a fault, attempt {1 if code == 'AccessDenied' else 2}"
            ) as e,
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


# Single objects go past the client once a call through it has succeeded, or where the parent has prepared it.


@pytest.fixture(params=[False, True], ids=["learned", "prepared"])
def endpoint_prepared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether backends find what a parent has prepared, with `prepare`."""
    monkeypatch.setattr(s3_prepared, "_prepared", None)
    return bool(request.param)


@pytest.fixture
def warm(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, endpoint_prepared: bool
) -> Callable[..., AsyncStateBackend]:
    """Make a backend through whose client a call has succeeded, or whose endpoint was prepared."""

    def warm(**options: Any) -> AsyncStateBackend:
        settings = s3_settings(**{"max_attempts": 2, "timeout": AMPLE, **options})
        backend = opened(settings)
        if endpoint_prepared:
            prepare(settings)
            assert not moto.requests
        else:
            backend.get(TaskScope("warm", "r", "t"), "k")
            backend.set(TaskScope("warm", "r", "t"), "k", "1")
            moto.requests.clear()
        return backend

    return warm


def test_what_goes_directly(
    warm: Callable[..., AsyncStateBackend], opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope
) -> None:
    backend = warm()
    ref = backend.serialize_task_state_store_to_ref(value="x", key="key", scope=task)
    assert backend.deserialize_task_state_store_from_ref(ref) == "x"
    assert backend.get(task, "missing") is None
    backend.purge_task_state(ref)
    assert [(request.method, went_directly(request)) for request in moto.requests] == [
        ("PUT", True),
        ("GET", True),
        ("GET", True),
        ("DELETE", True),
    ]
    moto.requests.clear()
    backend.delete(task, "key")
    backend.clear(task)
    # Larger than what S3 wants to be asked for first.
    backend.serialize_task_state_store_to_ref(value="x" * 1024 * 1024, key="key", scope=task)
    assert [(request.method, went_directly(request)) for request in moto.requests] == [
        ("POST", False),
        ("GET", False),
        ("PUT", False),
    ]
    moto.requests.clear()
    cold = opened(s3_settings())
    cold.set(task, "key", "1")
    cold.set(task, "key", "1")
    assert [went_directly(request) for request in moto.requests] == [False, True]


def test_nothing_goes_directly_with_one_attempt(
    warm: Callable[..., AsyncStateBackend], moto: FakeS3, task: TaskScope
) -> None:
    """It would be the only one, and errors are told by the client."""
    backend = warm(max_attempts=1)
    for _ in range(3):
        backend.set(task, "key", "1")
        assert backend.get(task, "key") == "1"
    assert [went_directly(request) for request in moto.requests] == [False] * 6


def test_after_a_failure_the_client_goes_first_until_it_succeeds(
    warm: Callable[..., AsyncStateBackend], moto: FakeS3, task: TaskScope
) -> None:
    backend = warm(max_attempts=3)
    with moto.failing(faults.slow_down()), pytest.raises(StoreError, match="SlowDown"):
        backend.set(task, "key", "1")
    assert [went_directly(request) for request in moto.requests] == [True, False, False]
    moto.requests.clear()
    backend.set(task, "key", "1")
    backend.set(task, "key", "1")
    assert [went_directly(request) for request in moto.requests] == [False, True]


def test_a_bucket_in_another_region(warm: Callable[..., AsyncStateBackend], moto: FakeS3, task: TaskScope) -> None:
    """The client follows, and remembers; what goes directly after its next call is signed for that region."""
    backend = warm()

    def elsewhere(request: Request) -> bool:
        return "/eu-west-1/s3/" not in request.headers["authorization"]

    moved = faults.error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"})
    with moto.failing(moved, when=elsewhere) as failing:
        backend.set(task, "key", "1")
        assert [went_directly(request) for request in moto.requests] == [True, False, False]
        assert len(failing.requests) == 2
        assert backend.get(task, "key") == "1"
        moto.requests.clear()
        assert backend.get(task, "key") == "1"
        assert [went_directly(request) for request in moto.requests] == [True]


@pytest.mark.parametrize(
    "fault",
    [
        faults.error(400, "InvalidRequest"),
        faults.error(400, "ExpiredToken"),
        faults.error(307, "TemporaryRedirect"),
        faults.error(429, "TooManyRequests"),
        faults.respond("200 OK", {}, b"<Error><Code>InternalError</Code></Error>"),
    ],
    ids=["400", "expired", "307", "429", "error under 200"],
)
def test_what_the_direct_try_does_not_understand_the_client_is_asked(
    fault: Fault, warm: Callable[..., AsyncStateBackend], onlooker: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    backend = warm()
    with moto.failing(fault, times=1):
        backend.set(task, "key", '"1"')
    assert [went_directly(request) for request in moto.requests] == [True, False]
    assert onlooker.get(task, "key") == '"1"'


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [(403, "RequestTimeTooSkewed", "clock"), (403, "AccessDenied", "Grant s3:"), (404, "NoSuchBucket", "bucket")],
)
def test_what_is_refused_is_not_asked_again(
    status: int, code: str, advice: str, warm: Callable[..., AsyncStateBackend], moto: FakeS3, task: TaskScope
) -> None:
    backend = warm()
    with (
        moto.failing(faults.error(status, code)),
        pytest.raises(StoreError, match=rf"{code}.*1 attempt.*{advice}") as e,
    ):
        backend.set(task, "key", "1")
    assert isinstance(e.value, StoreAccessError) == (status == 403)
    assert [went_directly(request) for request in moto.requests] == [True]
    backend.set(task, "key", "1")


#: Of the client's own bookkeeping, or of the moment.
PASSING_HEADERS = {SDK_HEADER, "amz-sdk-request", "authorization", "x-amz-date", "expect"}


def said(request: Request) -> tuple[str, str, str, dict[str, str]]:
    headers = {name: value for name, value in request.headers.items() if name not in PASSING_HEADERS}
    return request.method, request.path, request.query, headers


def test_both_ways_say_the_same(opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope) -> None:
    options: dict[str, Any] = {
        "server_side_encryption": "aws:kms",
        "sse_kms_key_id": "alias/state",
        "compression": "gzip",
        "compression_threshold": 1,
    }
    for name in ("set", "serialize", "get", "deserialize", "purge"):
        backend = opened(s3_settings(**options))
        calls = Calls(backend, "thread")
        ref = calls.store(task, "key", OLD)
        calls.set(task, "key", json.dumps(OLD))
        backend.close()
        moto.requests.clear()
        OPERATIONS[name].run(calls, task, ref)
        calls.store(task, "key", OLD)
        calls.set(task, "key", json.dumps(OLD))
        OPERATIONS[name].run(calls, task, ref)
        first, last = moto.requests[0], moto.requests[-1]
        assert (went_directly(first), went_directly(last)) == (False, True)
        assert said(first) == said(last)
    puts = [request for request in moto.requests if request.method == "PUT"]
    assert puts
    for request in puts:
        assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/state"
        assert request.headers["content-encoding"] == "gzip"
        assert "x-amz-meta-crc32" in request.headers


def test_both_ways_have_the_same_urls(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope
) -> None:
    prefix = "s3://state/p!_.*'()=:@-x/y"
    through_client = opened(s3_settings(url=prefix, max_attempts=1))
    directly = opened(s3_settings(url=prefix))
    directly.set(task, "key", "1")
    moto.requests.clear()
    for key in KEYS:
        for backend in (through_client, directly):
            backend.set(task, key, json.dumps(key))
            assert backend.get(task, key) == json.dumps(key)
    for client_put, client_get, put, get in zip(*[iter(moto.requests)] * 4, strict=True):
        assert (went_directly(client_put), went_directly(put)) == (False, True)
        assert client_put.path == client_get.path == put.path == get.path
        assert (client_put.query, client_get.query) == (put.query, get.query)


def test_credentials_that_change_between_operations(
    opened: BackendOf,
    s3_settings: SettingsOf,
    moto: FakeS3,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    endpoint_prepared: bool,
) -> None:
    """As a container's role has them: they end soon, and there are others each time one asks."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{moto.url}/credentials")
    issued = itertools.count(1)

    def credentials(request: Request) -> Answer | None:
        if request.path != "/credentials":
            return None
        number = next(issued)
        ends = datetime.datetime.now(tz=datetime.timezone.utc) + datetime.timedelta(seconds=60)
        document = {
            "AccessKeyId": f"AKIA{number:016}",
            "SecretAccessKey": f"secret-{number}",
            "Token": f"token-{number}",
            "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return "200 OK", [("Content-Type", "application/json")], json.dumps(document).encode()

    if endpoint_prepared:
        prepare(s3_settings())
    moto.intercept = credentials
    backend = opened(s3_settings())
    for _ in range(4):
        backend.set(task, "key", "1")
    puts = [request for request in moto.requests if request.method == "PUT"]
    assert [went_directly(request) for request in puts] == [endpoint_prepared, True, True, True]
    tokens = [request.headers["x-amz-security-token"] for request in puts]
    assert len(set(tokens)) == 4
    for request, token in zip(puts, tokens, strict=True):
        number = int(token.removeprefix("token-"))
        assert f"Credential=AKIA{number:016}/" in request.headers["authorization"]


def test_session_credentials_of_a_bucket_never_go_directly(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope, endpoint_prepared: bool
) -> None:
    """S3 Express: each bucket has credentials of its own, which only the client knows to get and to sign with."""
    ends = datetime.datetime.now(tz=datetime.timezone.utc) + datetime.timedelta(minutes=5)
    session = (
        "<CreateSessionResult><Credentials><SessionToken>express-token</SessionToken>"
        "<SecretAccessKey>secret</SecretAccessKey><AccessKeyId>AKIAEXPRESS</AccessKeyId>"
        f"<Expiration>{ends:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials></CreateSessionResult>"
    )

    def express(request: Request) -> Answer | None:
        return "200 OK", [("Content-Type", "application/xml")], session.encode() if "session" in request.query else b""

    moto.intercept = express
    settings = s3_settings(url="s3://state--use1-az4--x-s3/p")
    if endpoint_prepared:
        prepare(settings)
    backend = opened(settings)
    for _ in range(3):
        backend.set(task, "key", "1")
    puts = [request for request in moto.requests if request.method == "PUT"]
    assert len(puts) == 3
    assert {request.headers["x-amz-s3session-token"] for request in puts} == {"express-token"}
    assert not any(map(went_directly, moto.requests))


def test_a_connection_that_was_closed_while_it_was_idle(
    opened: BackendOf, onlooker: AsyncStateBackend, task: TaskScope
) -> None:
    """As S3 closes those that nobody uses: found out with the next request, which goes over another one."""
    with fake_s3(keep_alive=True) as server:
        backend = opened(Settings(url="s3://state/p", endpoint_url=server.url, max_attempts=2))
        for fault in (faults.closed_before_answer(), faults.reset_before_answer()):
            backend.set(task, "key", '"before"')
            with server.failing(fault, times=1):
                backend.set(task, "key", '"after"')
            assert backend.get(task, "key") == '"after"'
