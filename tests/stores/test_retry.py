"""The one retry loop: until the operation's time is over, and no sooner."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import format_datetime

import anyio
import pytest
from airflow.sdk.state import TaskScope
from hypothesis import given
from hypothesis import strategies as st

from async_state import AsyncStateBackend, Settings
from async_state.errors import StoreAccessError, StoreError, StoreUnavailableError
from async_state.stores import retry
from async_state.stores.retry import Attempts
from async_state.stores.s3 import errors as s3_errors
from async_state.stores.s3.errors import is_retryable
from async_state.stores.s3.operations import S3Error
from async_state.testing import FakeS3, Request, fake_s3, faults
from tests import fuzzing as fuzzing

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


def test_an_operation_outlives_any_number_of_failures(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.01)
    backend = opened(s3_settings())
    with moto.failing(faults.error(503, "ServiceUnavailable"), times=50) as failing:
        backend.set(task, "key", "1")
    assert len(failing.requests) == 50
    assert backend.get(task, "key") == "1"


def test_no_failure_of_the_past_shortens_an_operation(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's standard mode gives up at every first 503 once its budget of retries is used up."""
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.01)
    backend = opened(s3_settings(max_attempts=5))
    with moto.failing(faults.error(503, "ServiceUnavailable")):
        for _ in range(40):
            with pytest.raises(StoreUnavailableError, match="5 attempts"):
                backend.set(task, "key", "1")
    with moto.failing(faults.error(503, "ServiceUnavailable"), times=4):
        backend.set(task, "key", "2")
    assert backend.get(task, "key") == "2"


def test_many_operations_that_meet_an_outage_all_succeed(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope
) -> None:
    """The store comes back once each of them has failed twice; who failed is counted, and not how long it took."""
    backend = opened(s3_settings())
    for number in range(12):
        backend.set(task, f"get-{number}", str(number))
    met: dict[str, int] = {}
    back = threading.Event()

    def is_hit(request: Request) -> bool:
        met[request.path] = met.get(request.path, 0) + 1
        if len(met) == 24 and min(met.values()) >= 2:
            back.set()
        return not back.is_set()

    with moto.failing(faults.slow_down(), when=is_hit), ThreadPoolExecutor(24) as pool:
        sets = [pool.submit(backend.set, task, f"set-{number}", str(number)) for number in range(12)]
        gets = [pool.submit(backend.get, task, f"get-{number}") for number in range(12)]
        assert [found.result() for found in gets] == [str(number) for number in range(12)]
        for made in sets:
            made.result()
    assert [backend.get(task, f"set-{number}") for number in range(12)] == [str(number) for number in range(12)]


@pytest.mark.parametrize("dropped", [True, False], ids=["idle connection", "new connection"])
def test_max_attempts_counts_what_the_server_sees(task: TaskScope, opened: BackendOf, dropped: bool) -> None:
    """aiohttp by itself sends a request again where the server drops a connection that it had used before."""
    with fake_s3(keep_alive=True) as server:
        for attempts in 1, 2, 3:
            backend = opened(Settings(url="s3://state/p", endpoint_url=server.url, max_attempts=attempts))
            if dropped:
                backend.set(task, "key", "1")
            with (
                server.failing(faults.closed_before_answer()) as failing,
                pytest.raises(StoreUnavailableError, match=f"{attempts} attempt"),
            ):
                backend.set(task, "key", "2")
            assert len(failing.requests) == attempts


def test_what_the_store_refuses_is_an_error_at_once(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope
) -> None:
    with moto.failing(faults.error(403, "AccessDenied")) as failing, pytest.raises(StoreAccessError):
        opened(s3_settings()).set(task, "key", "1")
    assert len(failing.requests) == 1


def test_retry_after_is_honoured_within_the_deadline(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []
    sleep = anyio.sleep

    async def noted(seconds: float) -> None:
        paused.append(seconds)
        await sleep(0)

    monkeypatch.setattr(anyio, "sleep", noted)
    fault = faults.error(503, "SlowDown", headers={"Retry-After": "7"})
    with moto.failing(fault, times=1):
        opened(s3_settings()).set(task, "key", "1")
    assert 7 < paused[-1] < 8.1
    with moto.failing(fault, times=1):
        opened(s3_settings(timeout=5)).set(task, "key", "1")
    # It ends in time for another request, and still is longer than any pause that the store has not asked for.
    assert retry.FIRST_THROTTLED_PAUSE < paused[-1] <= 0.9 * 5


@given(st.integers(0, 2000), st.floats(0.05, 1000), st.sampled_from(["", "3", "x", "-1", "1e9", "99999"]))
def test_a_pause_is_bounded_and_leaves_time_for_another_request(
    failures: int, remaining: float, retry_after: str
) -> None:
    for code in "SlowDown", "InternalError":
        found = retry.pause(S3Error(code, "", status=503, retry_after=retry_after), failures, remaining, s3_errors)
        assert 0 <= found <= 0.9 * remaining
        if not retry_after.isdecimal():
            assert found <= retry.LONGEST_PAUSE


def test_pauses_grow_and_are_spread() -> None:
    def longest(failures: int, code: str) -> float:
        return max(retry.pause(S3Error(code, ""), failures, 1000, s3_errors) for _ in range(300))

    assert longest(0, "InternalError") <= 0.1 < longest(1, "InternalError") <= 0.2 < longest(3, "InternalError")
    drawn = sorted(retry.pause(S3Error("InternalError", ""), 2, 1000, s3_errors) for _ in range(300))
    assert drawn[0] < 0.1 < 0.3 < drawn[-1]


def test_a_store_that_asks_to_slow_down_is_left_alone_for_a_while() -> None:
    """A second request 4 ms after the first is what it did not ask for."""
    assert min(retry.pause(S3Error("SlowDown", "", status=503), 0, 1000, s3_errors) for _ in range(300)) >= 0.1


def test_dates_in_retry_after() -> None:
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=100)
    assert 90 < retry._seconds(format_datetime(later, usegmt=True)) <= 100
    assert retry._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry._seconds("Wed, 21 Oct 2015 07:28:00") == 0


@pytest.mark.anyio
async def test_the_last_error_is_raised_when_time_or_attempts_are_used_up() -> None:
    attempts, errors = Attempts(), [S3Error("InternalError", str(i), status=500) for i in range(9)]

    async def send() -> None:
        attempts.sent += 1
        raise errors[attempts.sent - 1]

    with pytest.raises(S3Error, match="2"):
        await retry.until(asyncio.get_running_loop().time() + 20, send, attempts, 3, s3_errors)
    assert attempts.last is errors[2]
    with pytest.raises(S3Error, match="3"):
        await retry.until(asyncio.get_running_loop().time(), send, attempts, 0, s3_errors)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "pauses"),
    [
        ("InternalError", [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.8), (0, 1.6), (0, 3.2), (0, 5), (0, 5)]),
        ("SlowDown", [(0.1, 1), (0.1, 2), (0.1, 4), (0.1, 5)]),
    ],
)
async def test_each_pause_may_take_twice_as_long_as_the_one_before(
    monkeypatch: pytest.MonkeyPatch, code: str, pauses: list[tuple[float, float]]
) -> None:
    attempts, drawn, slept = Attempts(), list[tuple[float, float]](), list[float]()

    def highest(least: float, most: float) -> float:
        drawn.append((least, most))
        return most

    async def noted(seconds: float) -> None:
        slept.append(seconds)

    async def send() -> None:
        attempts.sent += 1
        raise S3Error(code, "", status=503)

    monkeypatch.setattr("random.uniform", highest)
    monkeypatch.setattr(anyio, "sleep", noted)
    with pytest.raises(S3Error):
        await retry.until(anyio.current_time() + 1000, send, attempts, len(pauses) + 1, s3_errors)
    assert drawn == pauses
    assert slept == [most for _, most in pauses]


@pytest.mark.anyio
@pytest.mark.parametrize(("left", "sent"), [(retry.LEAST_TIME, 2), (retry.LEAST_TIME / 2, 1)])
async def test_another_request_is_sent_while_it_can_be_answered(
    monkeypatch: pytest.MonkeyPatch, left: float, sent: int
) -> None:
    attempts = Attempts()

    async def send() -> None:
        attempts.sent += 1
        raise S3Error("InternalError", "", status=503)

    monkeypatch.setattr(anyio, "current_time", lambda: 0.0)
    with pytest.raises(S3Error):
        await retry.until(left, send, attempts, 2, s3_errors)
    assert attempts.sent == sent


@pytest.mark.parametrize(
    ("code", "status", "passes"),
    [
        ("", 500, True),
        ("", 503, True),
        ("", 599, True),
        ("", 501, False),
        ("", 408, True),
        ("", 429, True),
        ("", 404, False),
        ("", 403, False),
        ("SlowDown", 400, True),
        ("RequestTimeout", 400, True),
        ("InternalError", 200, True),
        ("OperationAborted", 409, True),
        ("InvalidRequest", 400, False),
        ("NotImplemented", 501, False),
        ("RequestTimeTooSkewed", 403, False),
    ],
)
def test_which_answers_pass(code: str, status: int, passes: bool) -> None:
    assert is_retryable(S3Error(code, "", status=status)) is passes


def test_errors_of_ours_and_mistakes_are_not_tried_again() -> None:
    assert not is_retryable(StoreError("said"))
    assert not is_retryable(TypeError("mistake"))
