"""aws_conn_id: credentials from an Airflow connection, looked up on the calling thread."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from airflow.sdk import Connection
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings, connections, keys
from async_state.connections.aws import AwsConnection
from async_state.errors import ConfigurationError
from async_state.testing import FakeS3
from tests import servers

BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture
def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_DEFAULT_REGION")


def defined(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_STATE", json.dumps({"conn_type": "aws", **fields}))


def connection(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    defined(monkeypatch, login=servers.ACCESS_KEY, password=servers.SECRET_KEY, extra=extra)


@pytest.fixture(params=["get", "aget"])
def look_up(request: pytest.FixtureRequest) -> LookUp:
    """Look the connection up in one of the two ways."""

    def look_up() -> AwsConnection:
        ask = "aws_conn_id", "aws_state"
        found = connections.get(*ask) if request.param == "get" else anyio.run(connections.aget, *ask)
        assert isinstance(found, AwsConnection)
        return found

    return look_up


LookUp = Callable[[], AwsConnection]


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


@pytest.mark.usefixtures("without_credentials")
def test_only_the_store_of_its_scheme_needs_a_connection(
    monkeypatch: pytest.MonkeyPatch, moto: FakeS3, opened: BackendOf, task: TaskScope, tmp_path: Path
) -> None:
    old, new = "s3://state/scheme", tmp_path.as_uri()
    backend = opened(Settings(url=new, trusted_urls=(old,), aws_conn_id="aws_state"))
    backend.set(task, "k", "1")
    assert backend.get(task, "k") == "1"
    ref = keys.make_ref(old, keys.object_name(task, "old", keys.Side.WORKER))
    with pytest.raises(ConfigurationError, match=r"\[async_state\] aws_conn_id: .*aws_state"):
        backend.deserialize_task_state_store_from_ref(ref)
    connection(monkeypatch, endpoint_url=moto.url, region_name="us-east-1")
    earlier = opened(Settings(url=old, aws_conn_id="aws_state"))
    assert earlier.serialize_task_state_store_to_ref(value=2, key="old", scope=task) == ref
    assert backend.deserialize_task_state_store_from_ref(ref) == 2


def test_login_and_password_come_before_extras(monkeypatch: pytest.MonkeyPatch, look_up: LookUp) -> None:
    extra = {"aws_access_key_id": "OTHER", "aws_secret_access_key": "other", "aws_session_token": "token"}
    connection(monkeypatch, **extra)
    found = look_up()
    assert (found.access_key_id, found.secret_access_key) == (servers.ACCESS_KEY, servers.SECRET_KEY)
    assert (found.conn_id, found.session_token, found.region_name) == ("aws_state", "token", None)
    defined(monkeypatch, extra=extra)
    assert (look_up().access_key_id, look_up().secret_access_key) == ("OTHER", "other")
    # As in Airflow's Amazon provider, a login by itself is no pair.
    defined(monkeypatch, login="someone", extra=extra)
    assert (look_up().access_key_id, look_up().secret_access_key) == ("OTHER", "other")


def test_a_connection_without_keys_leaves_them_to_botocores_chain(
    monkeypatch: pytest.MonkeyPatch, look_up: LookUp
) -> None:
    defined(monkeypatch, extra={"region_name": "eu-central-1"})
    assert look_up() == AwsConnection(conn_id="aws_state", region_name="eu-central-1")


def test_its_secrets_are_not_in_its_repr(monkeypatch: pytest.MonkeyPatch, look_up: LookUp) -> None:
    connection(monkeypatch, aws_session_token="a-token", endpoint_url="http://host")
    shown = repr(look_up())
    assert "aws_state" in shown
    assert "http://host" in shown
    assert not [secret for secret in (servers.ACCESS_KEY, servers.SECRET_KEY, "a-token") if secret in shown]


def test_another_lookup_finds_what_was_replaced(monkeypatch: pytest.MonkeyPatch, look_up: LookUp) -> None:
    connection(monkeypatch, aws_session_token="old")
    assert look_up().session_token == "old"
    connection(monkeypatch, aws_session_token="new")
    assert look_up().session_token == "new"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"password": "hunter2"}, "needs both a login"),
        ({"login": "hunter2"}, "needs both a login"),
        ({"extra": {"aws_access_key_id": "hunter2"}}, "needs both a login"),
        ({"extra": {"aws_secret_access_key": "hunter2"}}, "needs both a login"),
        ({"login": "hunter2", "extra": {"aws_secret_access_key": "hunter2"}}, "needs both a login"),
        ({"extra": {"aws_session_token": "hunter2"}}, "no login and password"),
        ({"login": "a", "password": "hunter2\n"}, "a space, a line break"),
        ({"login": "hunter2\n", "password": "b"}, "a space, a line break"),
        ({"login": "a", "password": "hunter2\u00e9"}, "a space, a line break"),
        ({"login": "a", "password": "b", "extra": {"aws_session_token": "hunter2 x"}}, "a space, a line break"),
        ({"extra": "hunter2"}, "no JSON object"),
        ({"extra": ["hunter2"]}, "no JSON object"),
        ({"extra": {"region_name": "eu central hunter"}}, "extra region_name that can't be used: it must be a region"),
        ({"extra": {"region_name": 1}}, "extra region_name that can't be used"),
        ({"extra": {"endpoint_url": "minio:9000"}}, "extra endpoint_url that can't be used: it must be an http"),
        (
            {"extra": {"endpoint_url": "https://admin:hunter2/a@host"}},
            "extra endpoint_url that can't be used: .*creden",
        ),
        ({"extra": {"endpoint_url": "https://admin:80/hunter2@host"}}, "extra endpoint_url that can't be used: .*cred"),
        ({"extra": {"endpoint_url": {"s3": "hunter2@"}}}, "extra endpoint_url that can't be used"),
        ({"extra": {"endpoint": "https://admin:hunter2@host"}}, "extra endpoint, .* did you mean endpoint_url?"),
        ({"extra": {"region": "eu-central-1"}}, "extra region, .* did you mean region_name?"),
        ({"extra": {"something": "hunter2"}}, "extra something, which is not known: remove it"),
    ],
)
def test_a_connection_that_can_not_work_is_named(
    monkeypatch: pytest.MonkeyPatch, look_up: LookUp, fields: dict[str, Any], says: str
) -> None:
    defined(monkeypatch, **fields)
    with pytest.raises(
        ConfigurationError, match=rf"^\[async_state\] aws_conn_id: the connection 'aws_state' .*{says}"
    ) as caught:
        look_up()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


#: Every extra of an AWS connection that Airflow's Amazon provider reads (9.39) or once read (1.10's to 8).
AMAZONS = {
    "assume_role_kwargs": {"ExternalId": "x"},
    "assume_role_method": "assume_role",
    "assume_role_with_saml": {"principal_arn": "x"},
    "assume_role_with_web_identity_federation": "file",
    "assume_role_with_web_identity_federation_audience": "x",
    "assume_role_with_web_identity_token_file": "/token",
    "aws_account_id": "123456789012",
    "aws_iam_role": "state",
    "config_kwargs": {"s3": {"addressing_style": "path"}},
    "external_id": "x",
    "host": "http://minio:9000",
    "profile": "x",
    "profile_name": "x",
    "role_arn": "arn:aws:iam::123456789012:role/state",
    "s3_config_file": "/etc/boto.cfg",
    "s3_config_format": "boto",
    "service_config": {"s3": {"endpoint_url": "http://minio:9000"}},
    "session_kwargs": {"profile_name": "x"},
    "verify": False,
}


@pytest.mark.parametrize("extra", AMAZONS)
def test_an_extra_that_is_not_taken_is_refused(monkeypatch: pytest.MonkeyPatch, look_up: LookUp, extra: str) -> None:
    connection(monkeypatch, **{extra: AMAZONS[extra]})
    with pytest.raises(
        ConfigurationError,
        match=rf"^\[async_state\] aws_conn_id: the connection 'aws_state' has the extra {extra}, .*not supported: \w+",
    ):
        look_up()


def test_extras_that_change_nothing_are_let_be(monkeypatch: pytest.MonkeyPatch, look_up: LookUp) -> None:
    empty: dict[str, Any] = dict.fromkeys(AMAZONS, "") | {"verify": True, "config_kwargs": {}, "host": None}
    connection(monkeypatch, **(empty | {"service_config": {"sns": {"endpoint_url": "http://sns"}}, "region_name": ""}))
    assert look_up().access_key_id == servers.ACCESS_KEY
