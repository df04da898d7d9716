"""Processes whose parent has prepared them: what they inherit, and what they look up for themselves.

Prepared in the same process here, which changes nothing: what is prepared is what the next backend finds. That it is
inherited is shown in tests/airflow/test_patches.py, and what is the same either way in test_direct.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.state import TaskScope
from botocore.credentials import Credentials

from async_state import AsyncStateBackend, Settings
from async_state.errors import StoreAccessError, StoreError
from async_state.stores import prepare
from async_state.stores.s3 import bucket, client, prefork
from async_state.testing import FakeS3, Request, faults
from async_state.testing.server import hang_up
from tests.programs.wire import PATIENCE
from tests.stores.s3.direct import went_directly

BackendOf = Callable[..., AsyncStateBackend]
SettingsOf = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _nothing_prepared_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefork, "_endpoints", {})


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of all clients that are built, to find an endpoint or for operations."""
    built: list[Any] = []

    @contextlib.asynccontextmanager
    async def noted(options: Any, *arguments: Any) -> AsyncIterator[Any]:
        built.append(options)
        async with client.open_client(options, *arguments) as found:
            yield found

    for module in bucket, prefork:
        monkeypatch.setattr(module, "open_client", noted)
    return built


@pytest.fixture
def prepared(s3_settings: SettingsOf, clients: list[Any]) -> Settings:
    """Settings that are prepared for."""
    prepare(s3_settings())
    clients.clear()
    return s3_settings()


def test_no_operation_needs_a_client(
    opened: BackendOf, prepared: Settings, moto: FakeS3, task: TaskScope, clients: list[Any]
) -> None:
    assert not moto.requests
    backend = opened(prepared)
    ref = backend.serialize_task_state_store_to_ref(value="x", key="key", scope=task)
    assert backend.deserialize_task_state_store_from_ref(ref) == "x"
    backend.purge_task_state(ref)
    assert backend.deserialize_task_state_store_from_ref(ref) is None
    backend.delete(task, "key")
    backend.clear(task)
    assert [(request.method, went_directly(request)) for request in moto.requests] == [
        ("PUT", True),
        ("GET", True),
        ("DELETE", True),
        ("GET", True),
        ("POST", True),
        ("GET", True),
    ]
    assert not clients


@pytest.mark.anyio
async def test_what_needs_a_client_gets_one(
    prepared: Settings, moto: FakeS3, task: TaskScope, clients: list[Any]
) -> None:
    """A bucket in another region: the client follows. Together they need it, and there is one client for them."""
    moved = faults.error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "us-east-1"})
    async with AsyncStateBackend(prepared) as backend:
        await backend.aset(task, "key", "1")
        assert not clients
        with moto.failing(moved, when=went_directly):
            assert await asyncio.gather(*(backend.aget(task, "key") for _ in range(5))) == ["1"] * 5
        assert len(clients) == 1


def test_a_process_that_was_not_prepared_finds_its_endpoint_once(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope, clients: list[Any]
) -> None:
    """Also where connections were closed, or are those of other credentials."""
    backend = opened(s3_settings())
    for _ in range(2):
        backend.set(task, "key", "1")
        backend.close()
    opened(s3_settings()).set(task, "key", "1")
    assert [went_directly(request) for request in moto.requests] == [True] * 3
    assert len(clients) == 1


@pytest.mark.parametrize(
    "changed",
    [{"region_name": "eu-west-3"}, {"url": "s3://state/another/prefix"}, {"max_concurrency": 3}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_settings_are_not_what_was_prepared(
    changed: dict[str, Any],
    prepared: Settings,
    opened: BackendOf,
    s3_settings: SettingsOf,
    task: TaskScope,
    clients: list[Any],
) -> None:
    for _ in range(2):
        opened(s3_settings(**changed)).set(task, "key", "1")
        assert len(clients) == 1
        opened(prepared).set(task, "key", "1")
        assert len(clients) == 1


@pytest.mark.usefixtures("prepared")
def test_another_bucket_is_not_what_was_prepared(
    opened: BackendOf, s3_settings: SettingsOf, task: TaskScope, clients: list[Any]
) -> None:
    with pytest.raises(StoreError, match=r"s3://another/.*NoSuchBucket"):
        opened(s3_settings(url="s3://another/prefix")).set(task, "key", "1")
    assert len(clients) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_DEFAULT_REGION", "eu-west-3"),
        ("AWS_CONFIG_FILE", "/nowhere"),
        ("AWS_MAX_ATTEMPTS", "3"),
        ("HTTPS_PROXY", "http://127.0.0.1:9"),
        ("no_proxy", "*"),
    ],
)
def test_another_environment_is_not_what_was_prepared(
    name: str,
    value: str,
    prepared: Settings,
    opened: BackendOf,
    task: TaskScope,
    clients: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    opened(prepared).set(task, "key", "1")
    assert len(clients) == 1


@pytest.mark.parametrize("variable", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_another_config_file_is_not_what_was_prepared(
    variable: str,
    opened: BackendOf,
    s3_settings: SettingsOf,
    task: TaskScope,
    clients: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "config"
    file.write_text("[default]\nregion = us-east-1\n")
    monkeypatch.setenv(variable, str(file))
    prepare(s3_settings())
    opened(s3_settings()).set(task, "key", "1")
    assert len(clients) == 1
    file.write_text("[default]\nregion = eu-west-3\n")
    opened(s3_settings()).set(task, "key", "1")
    assert len(clients) == 2


@pytest.mark.anyio
async def test_an_operation_outlives_a_close(prepared: Settings, moto: FakeS3, task: TaskScope) -> None:
    """Its connections are closed when it is done, and the next one opens others."""
    # Those that other tests' backends keep.
    hang_up(moto)
    arrived, closed = threading.Event(), threading.Event()

    def hold_back(_: Request) -> None:
        arrived.set()
        closed.wait(PATIENCE)

    moto.intercept = hold_back
    backend = AsyncStateBackend(prepared)
    operation = asyncio.ensure_future(backend.aset(task, "key", "1"))
    await asyncio.to_thread(arrived.wait, PATIENCE)
    await backend.aclose()
    closed.set()
    await operation
    await asyncio.to_thread(moto.wait_until_idle)
    moto.intercept = None
    assert await backend.aget(task, "key") == "1"
    await backend.aclose()


def test_credentials_are_those_of_the_process(
    prepared: Settings,
    opened: BackendOf,
    moto: FakeS3,
    task: TaskScope,
    clients: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOWN")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "own-token")
    opened(prepared).set(task, "key", "1")
    (request,) = moto.requests
    assert "Credential=AKIAOWN/" in request.headers["authorization"]
    assert request.headers["x-amz-security-token"] == "own-token"
    assert not clients


def test_credentials_that_end_are_read_again(
    opened: BackendOf,
    s3_settings: SettingsOf,
    moto: FakeS3,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def given(number: int) -> None:
        ends = datetime.now(tz=timezone.utc) + timedelta(seconds=60)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"AKIA{number}")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"secret{number}")
        monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", ends.isoformat())

    given(1)
    prepare(s3_settings())
    backend = opened(s3_settings())
    for number in (2, 3):
        given(number)
        backend.set(task, "key", "1")
    assert [request.headers["authorization"].partition("Credential=")[2][:6] for request in moto.requests] == [
        "AKIA2/",
        "AKIA3/",
    ]


def test_credentials_are_those_of_the_connection(
    opened: BackendOf,
    s3_settings: SettingsOf,
    moto: FakeS3,
    task: TaskScope,
    clients: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"conn_type": "aws", "login": "AKIACONNECTION", "password": "secret", "extra": {"aws_session_token": "t"}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_STATE", json.dumps(given))
    settings = s3_settings(aws_conn_id="aws_state")
    prepare(settings)
    clients.clear()
    opened(settings).set(task, "key", "1")
    (request,) = moto.requests
    assert "Credential=AKIACONNECTION/" in request.headers["authorization"]
    assert request.headers["x-amz-security-token"] == "t"
    assert not clients


def test_without_credentials(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(s3_settings())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreAccessError, match=r"NoCredentialsError.*aws_conn_id"):
        opened(s3_settings(timeout=1.5)).set(task, "key", "1")
    assert not moto.requests


def test_what_is_prepared_holds_no_credentials(s3_settings: SettingsOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPARENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-parent")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-parent")
    prepare(s3_settings())
    found = prefork._endpoints
    assert any(found.values())
    assert "AKIAPARENT" not in repr(found)
    assert "-of-parent" not in repr(found)
    # Nor has what is garbage by now, which a parent may freeze and each of its children then keeps.
    assert not [o for o in gc.get_objects() if isinstance(o, Credentials) and o.access_key == "AKIAPARENT"]


@pytest.mark.parametrize("is_prepared", [False, True], ids=["unprepared", "prepared"])
@pytest.mark.parametrize(
    ("name", "value", "kind", "said"),
    [
        ("AWS_CREDENTIAL_EXPIRATION", "soon", StoreError, "soon.*AWS_"),
        ("AWS_CREDENTIAL_EXPIRATION", "2026-01-01T00:00:00Z", StoreAccessError, "expired.*Renew"),
        ("AWS_ENDPOINT_URL_S3", "localhost:9000", StoreError, "localhost:9000.*AWS_"),
    ],
)
def test_what_botocore_can_not_use_is_explained(
    name: str,
    value: str,
    kind: type[StoreError],
    said: str,
    is_prepared: bool,
    opened: BackendOf,
    s3_settings: SettingsOf,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = s3_settings(endpoint_url=None, timeout=1.5)
    if is_prepared:
        prepare(settings)
    monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=f"could not put s3://state/.*{said}"):
        opened(settings).set(task, "key", "1")


def test_a_user_without_a_home_directory(
    opened: BackendOf, s3_settings: SettingsOf, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containers have them: no HOME, and a number that the system knows no user of."""
    for name in "HOME", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    prepare(s3_settings())
    backend = opened(s3_settings())
    backend.set(task, "key", "1")
    assert backend.get(task, "key") == "1"
