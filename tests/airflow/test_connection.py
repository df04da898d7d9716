"""aws_conn_id: credentials from an Airflow connection, looked up on the calling thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from airflow.sdk import Connection
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.errors import ConfigurationError
from async_state.testing import FakeS3
from tests import servers

BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture
def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_DEFAULT_REGION")


def connection(monkeypatch: pytest.MonkeyPatch, **extra: str) -> None:
    given = {"conn_type": "aws", "login": servers.ACCESS_KEY, "password": servers.SECRET_KEY, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_STATE", json.dumps(given))


@pytest.mark.usefixtures("without_credentials")
def test_a_connection_gives_credentials_endpoint_and_region(
    monkeypatch: pytest.MonkeyPatch, rclone_url: str, opened: BackendOf, task: TaskScope
) -> None:
    connection(monkeypatch, endpoint_url=rclone_url, region_name="us-east-1")
    backend = opened(Settings(url="s3://state/connection", aws_conn_id="aws_state"))
    backend.set(task, "k", "1")
    assert backend.get(task, "k") == "1"


@pytest.mark.anyio
@pytest.mark.usefixtures("without_credentials")
async def test_the_settings_come_before_the_connection(
    monkeypatch: pytest.MonkeyPatch, moto: FakeS3, task: TaskScope
) -> None:
    connection(monkeypatch, endpoint_url="http://127.0.0.1:9", region_name="eu-central-1", aws_session_token="token")
    settings = Settings(
        url="s3://state/connection", aws_conn_id="aws_state", endpoint_url=moto.url, region_name="us-west-2"
    )
    async with AsyncStateBackend(settings) as backend:
        await backend.aset(task, "k", "1")
    headers = moto.requests[-1].headers
    assert f"Credential={servers.ACCESS_KEY}/" in headers["authorization"]
    assert "/us-west-2/s3/" in headers["authorization"]
    assert headers["x-amz-security-token"] == "token"


@pytest.mark.usefixtures("without_credentials")
def test_contract_23_the_lookup_is_on_the_calling_thread(
    monkeypatch: pytest.MonkeyPatch, moto: FakeS3, opened: BackendOf, task: TaskScope
) -> None:
    connection(monkeypatch)
    looked_up_on = []
    get = Connection.get.__func__  # type: ignore[attr-defined]
    async_get = Connection.async_get.__func__  # type: ignore[attr-defined]

    def seen(cls: type[Connection], conn_id: str) -> Connection:
        looked_up_on.append(threading.get_ident())
        found: Connection = get(cls, conn_id)
        return found

    async def aseen(cls: type[Connection], conn_id: str) -> Connection:
        looked_up_on.append(threading.get_ident())
        found: Connection = await async_get(cls, conn_id)
        return found

    monkeypatch.setattr(Connection, "get", classmethod(seen))
    monkeypatch.setattr(Connection, "async_get", classmethod(aseen))
    settings = Settings(
        url="s3://state/connection", aws_conn_id="aws_state", endpoint_url=moto.url, region_name="us-east-1"
    )

    async def use() -> None:
        await opened(settings).aset(task, "k", "1")

    async def use_hook_on_loop(portal: bool) -> None:
        import greenback

        if portal:
            await greenback.ensure_portal()
        opened(settings).serialize_task_state_store_to_ref(value=1, key="k", scope=task)

    import anyio

    backend = opened(settings)
    backend.set(task, "k", "1")
    backend.get(task, "k")
    anyio.run(use)
    anyio.run(use_hook_on_loop, False)
    anyio.run(use_hook_on_loop, True)
    # Once for each backend, however often it is used.
    assert looked_up_on == [threading.get_ident()] * 4


@pytest.mark.usefixtures("without_credentials")
def test_a_connection_that_can_not_be_used(
    monkeypatch: pytest.MonkeyPatch, moto: FakeS3, opened: BackendOf, task: TaskScope
) -> None:
    backend = opened(Settings(url="s3://state/p", aws_conn_id="aws_state", endpoint_url=moto.url))
    with pytest.raises(ConfigurationError, match=r"\[async_state\] aws_conn_id: .*aws_state"):
        backend.get(task, "k")
    connection(monkeypatch, role_arn="arn:aws:iam::123456789012:role/state")
    with pytest.raises(ConfigurationError, match=r"role_arn.*botocore") as caught:
        backend.get(task, "k")
    assert servers.SECRET_KEY not in str(caught.value)
    assert not moto.requests
    connection(monkeypatch, region_name="us-east-1")
    assert backend.get(task, "k") is None
    assert servers.SECRET_KEY not in repr(backend) + repr(vars(backend)) + repr(vars(backend._objects)["_stores"])
