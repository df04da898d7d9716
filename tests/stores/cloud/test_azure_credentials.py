"""Azure's account and its keys: where they come from, and what is said of those that are refused."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.connections.azure import AzureConnection
from async_state.errors import ConfigurationError, StoreAccessError, StoreCredentialsError
from async_state.stores.cloud.azure_credentials import account_of
from tests.cloud_servers import AZURE_KEY, AzureServer

BackendOf = Callable[..., AsyncStateBackend]

OTHER_KEY = "b3RoZXIga2V5IG9mIHNvbWVib2R5IGVsc2U="


@pytest.fixture
def settings(azure: AzureServer) -> Callable[..., Settings]:
    return lambda **options: Settings(**{"url": "az://state/credentials", "endpoint_url": azure.endpoint, **options})


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without a key."""
    monkeypatch.delenv("AZURE_STORAGE_KEY")


def all_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", ["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"])
def test_a_key(
    name: str, opened: BackendOf, settings: Callable[..., Settings], task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, AZURE_KEY)
    backend = opened(settings())
    backend.set(task, "key", "1")
    assert backend.get(task, "key") == "1"


def test_a_key_that_is_wrong_until_it_is_replaced(
    opened: BackendOf,
    settings: Callable[..., Settings],
    azure: AzureServer,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", OTHER_KEY)
    backend = opened(settings())
    with pytest.raises(StoreCredentialsError, match=r"HTTP 403, 2 attempts.*AZURE_STORAGE_\*") as caught:
        backend.set(task, "key", "1")
    assert len(azure.requests) == 2
    assert OTHER_KEY not in all_said(caught.value)
    monkeypatch.setenv("AZURE_STORAGE_KEY", AZURE_KEY)
    backend.set(task, "key", "1")
    assert backend.get(task, "key") == "1"


def test_a_key_that_is_none(
    opened: BackendOf, settings: Callable[..., Settings], task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "secret%key")
    backend = opened(settings())
    for operation in backend.get, backend.delete:
        with pytest.raises(ConfigurationError, match=r"'devstoreaccount1' in the environment.*no base64") as caught:
            operation(task, "key")
        assert "secret%key" not in all_said(caught.value)


@pytest.mark.usefixtures("bare")
def test_a_shared_access_signature(
    opened: BackendOf,
    settings: Callable[..., Settings],
    azure: AzureServer,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?{azure.sas_token()}")
    backend = opened(settings())
    for number in range(3):
        backend.set(task, f"k{number}", "1")
    assert backend.get(task, "k0") == "1"
    backend.clear(task)
    assert backend.get(task, "k0") is None
    assert all("authorization" not in request.headers for request in azure.requests)


@pytest.mark.usefixtures("bare")
def test_a_signature_that_ends_and_is_replaced(
    opened: BackendOf,
    settings: Callable[..., Settings],
    azure: AzureServer,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azure.sas_token(lifetime=-60))
    backend = opened(settings())
    with pytest.raises(StoreCredentialsError, match=r"2 attempts.*renew what has ended") as caught:
        backend.set(task, "key", "1")
    assert "sig=" not in all_said(caught.value)
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azure.sas_token())
    backend.set(task, "key", "1")
    assert backend.get(task, "key") == "1"


@pytest.mark.usefixtures("bare")
def test_a_signature_that_permits_too_little(
    opened: BackendOf,
    settings: Callable[..., Settings],
    azure: AzureServer,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azure.sas_token("rl"))
    backend = opened(settings())
    assert backend.get(task, "key") is None
    with pytest.raises(
        StoreAccessError, match=r"AuthorizationPermissionMismatch.*read, create, write, delete and list"
    ):
        backend.set(task, "key", "1")


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("kind", ["key", "sas"])
def test_a_connection_string(
    kind: str, opened: BackendOf, azure: AzureServer, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    string = azure.connection_string
    if kind == "sas":
        string = f"BlobEndpoint={azure.endpoint}/;SharedAccessSignature={azure.sas_token()}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", string)
    backend = opened(Settings(url="az://state/credentials"))
    backend.set(task, "key", "1")
    assert backend.get(task, "key") == "1"
    assert azure.requests


def test_emulators_have_a_short_string(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")
    found = account_of(Settings(url="az://state"), AzureConnection())
    assert (found.name, found.key, found.endpoint) == (
        "devstoreaccount1",
        AZURE_KEY,
        "http://127.0.0.1:10000/devstoreaccount1",
    )


CLOUD = "https://{}.blob.core.windows.net"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("options", "environment", "connection", "account", "endpoint"),
    [
        ({"azure_account": "option"}, {}, {}, "option", CLOUD.format("option")),
        ({"azure_account": "option"}, {"AZURE_STORAGE_ACCOUNT": "variable"}, {}, "option", CLOUD.format("option")),
        ({}, {"AZURE_STORAGE_ACCOUNT": "variable"}, {}, "variable", CLOUD.format("variable")),
        ({}, {"AZURE_STORAGE_ACCOUNT_NAME": "variable"}, {}, "variable", CLOUD.format("variable")),
        ({}, {}, {"account": "connection"}, "connection", CLOUD.format("connection")),
        (
            {},
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=string;EndpointSuffix=core.chinacloudapi.cn"},
            {},
            "string",
            "https://string.blob.core.chinacloudapi.cn",
        ),
        ({"endpoint_url": CLOUD.format("host")}, {}, {}, "host", CLOUD.format("host")),
        ({"endpoint_url": "http://127.0.0.1:10000/path"}, {}, {}, "path", "http://127.0.0.1:10000/path"),
        (
            {"azure_account": "option", "endpoint_url": "https://blobs.example/"},
            {},
            {},
            "option",
            "https://blobs.example",
        ),
        (
            {},
            {},
            {"account": "connection", "endpoint_url": "https://blobs.example"},
            "connection",
            "https://blobs.example",
        ),
    ],
)
def test_the_account(
    options: dict[str, Any],
    environment: dict[str, str],
    connection: dict[str, str],
    account: str,
    endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    conn_id = "c" if connection else ""
    given = AzureConnection(conn_id=conn_id, **connection)
    found = account_of(Settings(url="az://state", wasb_conn_id=conn_id or None, **options), given)
    assert (found.name, found.endpoint) == (account, endpoint)


def test_no_account() -> None:
    with pytest.raises(ConfigurationError, match=r"\[async_state\] azure_account.*AZURE_STORAGE_ACCOUNT"):
        Settings(url="az://state")
    # Where the connection may tell, it is found out when that is known.
    settings = Settings(url="az://state", wasb_conn_id="c")
    with pytest.raises(ConfigurationError, match=r"\[async_state\] azure_account.*AZURE_STORAGE_ACCOUNT"):
        account_of(settings, AzureConnection(conn_id="c"))


@pytest.mark.usefixtures("bare")
def test_a_token_is_never_sent_without_tls(
    opened: BackendOf, settings: Callable[..., Settings], azure: AzureServer, task: TaskScope
) -> None:
    backend = opened(settings())
    operations: list[Callable[[], object]] = [
        lambda: backend.get(task, "key"),
        lambda: backend.delete(task, "key"),
        lambda: backend.clear(task),
    ]
    for operation in operations:
        with pytest.raises(ConfigurationError, match=r"\[async_state\] endpoint_url: a token is never sent"):
            operation()
    assert azure.requests == []


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("way", ["blocking", "coroutine"])
def test_a_connection_whose_key_is_replaced(
    way: str, opened: BackendOf, azure: AzureServer, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(key: str) -> None:
        given = {"conn_type": "wasb", "login": azure.account, "host": azure.endpoint, "password": key}
        monkeypatch.setenv("AIRFLOW_CONN_AZURE_STATE", json.dumps(given))

    backend = opened(Settings(url="az://state/credentials", wasb_conn_id="azure_state"))

    def set_() -> None:
        if way == "blocking":
            backend.set(task, "key", "1")
        else:
            asyncio.run(backend.aset(task, "key", "1"))

    use(AZURE_KEY)
    set_()
    use(OTHER_KEY)
    # The key in use is good.
    set_()
    backend.close()
    backend = opened(Settings(url="az://state/credentials", wasb_conn_id="azure_state"))
    with pytest.raises(StoreCredentialsError, match="wasb_conn_id") as caught:
        set_()
    assert OTHER_KEY not in all_said(caught.value)
    use(AZURE_KEY)
    set_()


def test_what_accounts_hold_is_not_shown() -> None:
    found = account_of(
        Settings(url="az://state", wasb_conn_id="c"),
        AzureConnection(conn_id="c", account="account", account_key=AZURE_KEY, sas_token="sig=secret"),
    )
    assert AZURE_KEY not in repr(found)
    assert "secret" not in repr(found)
    assert found.source == "the Airflow connection c"
