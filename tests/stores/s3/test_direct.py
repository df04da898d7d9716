"""Which requests go past botocore's client, and that they are the same as the client's."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.errors import StoreAccessError, StoreError
from async_state.stores import prepare
from async_state.stores.s3 import prefork
from async_state.testing import Answer, FakeS3, Request, fake_s3, faults
from async_state.testing.faults import Fault
from tests.stores.s3.direct import went_directly

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture(params=[False, True], ids=["resolved", "prepared"])
def endpoint_prepared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether backends find what a parent has prepared, with `prepare`, or resolve the endpoint themselves."""
    monkeypatch.setattr(prefork, "_endpoints", {})
    return bool(request.param)


@pytest.fixture
def made(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, endpoint_prepared: bool
) -> Callable[..., AsyncStateBackend]:
    """Make a backend that has sent nothing yet."""

    def made(**options: Any) -> AsyncStateBackend:
        settings = s3_settings(**options)
        if endpoint_prepared:
            prepare(settings)
            assert not moto.requests
        return opened(settings)

    return made


def test_everything_goes_directly(made: Callable[..., AsyncStateBackend], moto: FakeS3, task: TaskScope) -> None:
    backend = made()
    ref = backend.serialize_task_state_store_to_ref(value="x", key="key", scope=task)
    assert backend.deserialize_task_state_store_from_ref(ref) == "x"
    assert backend.get(task, "missing") is None
    backend.purge_task_state(ref)
    backend.delete(task, "key")
    backend.serialize_task_state_store_to_ref(value="x" * 2 * 1024 * 1024, key="key", scope=task)
    assert backend.deserialize_task_state_store_from_ref(ref) == "x" * 2 * 1024 * 1024
    backend.clear(task)
    assert backend.deserialize_task_state_store_from_ref(ref) is None
    sent = [request.method for request in moto.requests]
    assert sent == ["PUT", "GET", "GET", "DELETE", "POST", "PUT", "GET", "GET", "DELETE", "GET"]
    assert all(map(went_directly, moto.requests))


def test_what_fails_for_a_while_stays_on_the_direct_way(
    made: Callable[..., AsyncStateBackend], moto: FakeS3, task: TaskScope
) -> None:
    backend = made(max_attempts=3)
    with moto.failing(faults.error(500, "InternalError")), pytest.raises(StoreError, match="InternalError"):
        backend.set(task, "key", "1")
    backend.set(task, "key", "1")
    assert [went_directly(request) for request in moto.requests] == [True] * 4


def test_a_bucket_in_another_region(made: Callable[..., AsyncStateBackend], moto: FakeS3, task: TaskScope) -> None:
    """The client follows, and remembers; so everything goes through it from then on."""
    backend = made()

    def elsewhere(request: Request) -> bool:
        return "/eu-west-1/s3/" not in request.headers["authorization"]

    moved = faults.error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"})
    with moto.failing(moved, when=elsewhere) as failing:
        backend.set(task, "key", "1")
        assert [went_directly(request) for request in moto.requests] == [True, False, False]
        assert len(failing.requests) == 2
        moto.requests.clear()
        assert backend.get(task, "key") == "1"
        assert [went_directly(request) for request in moto.requests] == [False]


@pytest.mark.parametrize(
    ("fault", "direct"),
    [
        (faults.error(307, "TemporaryRedirect"), [True, False]),
        (faults.error(400, "AuthorizationHeaderMalformed"), [True, False]),
        (faults.error(400, "ExpiredToken"), [True, True]),
        (faults.error(429, "TooManyRequests"), [True, True]),
        (faults.error(400, "RequestTimeout"), [True, True]),
        (faults.respond("200 OK", {}, b"<Error><Code>InternalError</Code></Error>"), [True, True]),
    ],
    ids=["307", "region", "expired", "429", "timeout", "error under 200"],
)
def test_what_passes_is_asked_again(
    fault: Fault,
    direct: list[bool],
    made: Callable[..., AsyncStateBackend],
    moto: FakeS3,
    task: TaskScope,
) -> None:
    backend = made()
    with moto.failing(fault, times=1):
        backend.set(task, "key", '"1"')
    assert [went_directly(request) for request in moto.requests] == direct
    assert backend.get(task, "key") == '"1"'


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "RequestTimeTooSkewed", "clock"),
        (403, "AccessDenied", "Grant s3:"),
        (404, "NoSuchBucket", "bucket"),
        (400, "InvalidRequest", "Check"),
    ],
)
def test_what_is_refused_is_not_asked_again(
    status: int, code: str, advice: str, made: Callable[..., AsyncStateBackend], moto: FakeS3, task: TaskScope
) -> None:
    backend = made()
    with (
        moto.failing(faults.error(status, code)),
        pytest.raises(StoreError, match=rf"{code}.*1 attempt.*{advice}") as e,
    ):
        backend.set(task, "key", "1")
    assert isinstance(e.value, StoreAccessError) == (status == 403)
    assert [went_directly(request) for request in moto.requests] == [True]
    backend.set(task, "key", "1")


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
    assert [went_directly(request) for request in puts] == [True] * 4
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


def test_a_connection_that_was_closed_while_it_was_idle(opened: BackendOf, task: TaskScope) -> None:
    """As S3 closes those that nobody uses: found out with the next request, which goes over another one."""
    with fake_s3(keep_alive=True) as server:
        backend = opened(Settings(url="s3://state/p", endpoint_url=server.url, max_attempts=2))
        for fault in (faults.closed_before_answer(), faults.reset_before_answer()):
            backend.set(task, "key", '"before"')
            with server.failing(fault, times=1) as failing:
                backend.set(task, "key", '"after"')
            assert len(failing.requests) == 1
            assert backend.get(task, "key") == '"after"'
