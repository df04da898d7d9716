"""Google's credentials: files and connections, what can't be used, and where no token is sent."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.connections.google import GoogleConnection
from async_state.errors import StoreCredentialsError
from async_state.stores.cloud.google import endpoint_of
from async_state.testing import Answer, Request
from tests.cloud_servers import GcsServer
from tests.cloud_tokens import GoogleTokens, google_tokens
from tests.stores.cloud.clouds import Secured

BackendOf = Callable[..., AsyncStateBackend]

only_google = pytest.mark.parametrize("cloud", ["gs"], indirect=True)


def all_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@only_google
@pytest.mark.usefixtures("quick")
def test_a_file_that_is_replaced(secured: Secured, opened: BackendOf, task: TaskScope, tmp_path: Path) -> None:
    """By that of another account, whose tokens alone are accepted from then on."""
    backend = opened(secured.settings())
    backend.set(task, "key", "1")
    with google_tokens() as others:
        secured.accepted[:] = [others]
        with pytest.raises(StoreCredentialsError, match="authError"):
            backend.set(task, "key", "2")
        others.write(tmp_path / "credentials.json")
        backend.set(task, "key", "2")
        assert len(others.issued) == 1
    assert backend.get(task, "key") == "2"


@only_google
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no token of Google's was found|can't be used"),
        ("[]", "can't be used"),
        ("{}", "no token of Google's was found"),
        (
            '{"type": "service_account", "client_email": "x", "private_key": "secret", "token_uri": "x"}',
            "no token of Google's was found",
        ),
    ],
    ids=["empty", "a list", "nothing", "half"],
)
def test_a_file_that_is_none(
    secured: Secured,
    opened: BackendOf,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: str,
    said: str,
) -> None:
    file = tmp_path / "none.json"
    file.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(StoreCredentialsError, match=rf"{task.dag_id}.*({said}).*GOOGLE_APPLICATION_CREDENTIALS") as e:
        opened(secured.settings(timeout=0.5)).set(task, "key", "1")
    assert "secret" not in all_said(e.value)


@only_google
def test_a_key_that_is_not_the_accounts(
    secured: Secured,
    of_google: GoogleTokens,
    opened: BackendOf,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Waiting would not help, and so nobody waits."""
    with google_tokens() as others:
        stolen = {**of_google.credentials, "private_key": others.credentials["private_key"]}
    file = tmp_path / "stolen.json"
    file.write_text(json.dumps(stolen))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(StoreCredentialsError, match="Google refused to give a token: invalid_grant") as caught:
        opened(secured.settings()).set(task, "key", "1")
    assert len(of_google.requests) == 1
    assert stolen["private_key"][40:80] not in all_said(caught.value)


@only_google
@pytest.mark.parametrize("way", ["blocking", "coroutine"])
def test_a_connection_whose_key_is_replaced(
    way: str,
    secured: Secured,
    of_google: GoogleTokens,
    opened: BackendOf,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the process would find by itself is not used.
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    backend = opened(secured.settings(gcp_conn_id="gcp_state"))

    def use(keyfile: dict[str, str]) -> None:
        given = {"conn_type": "google_cloud_platform", "extra": {"keyfile_dict": keyfile}}
        monkeypatch.setenv("AIRFLOW_CONN_GCP_STATE", json.dumps(given))

    def set_() -> None:
        if way == "blocking":
            backend.set(task, "key", "1")
        else:
            asyncio.run(backend.aset(task, "key", "1"))

    with google_tokens() as others:
        stolen = {**of_google.credentials, "private_key": others.credentials["private_key"]}
    use(stolen)
    with pytest.raises(StoreCredentialsError, match="gcp_conn_id"):
        set_()
    use(of_google.credentials)
    set_()
    assert len(of_google.issued) == 1


@only_google
def test_a_connections_file(
    secured: Secured,
    of_google: GoogleTokens,
    opened: BackendOf,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    file = of_google.write(tmp_path / "of-the-connection.json")
    given = {"conn_type": "google_cloud_platform", "extra": {"key_path": str(file)}}
    monkeypatch.setenv("AIRFLOW_CONN_GCP_STATE", json.dumps(given))
    opened(secured.settings(gcp_conn_id="gcp_state")).set(task, "key", "1")
    assert len(of_google.issued) == 1


def test_no_token_is_asked_for_without_tls(
    opened: BackendOf,
    gcs: GcsServer,
    of_google: GoogleTokens,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    of_google.requests.clear()
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(of_google.write(tmp_path / "credentials.json")))
    backend = opened(Settings(url="gs://state/plain", endpoint_url=gcs.url))
    backend.set(task, "key", "1")
    assert all("authorization" not in request.headers for request in gcs.requests)
    assert of_google.requests == []


@pytest.mark.parametrize("value", ["{}", "http://{}/"])
def test_an_emulators_variable(
    opened: BackendOf, gcs: GcsServer, task: TaskScope, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", value.format(gcs.url.removeprefix("http://")))
    opened(Settings(url="gs://state/emulated")).set(task, "key", "1")
    assert len(gcs.requests) == 1


def test_the_endpoint_of_an_option_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "emulator:1")
    connection = GoogleConnection(conn_id="c", endpoint_url="https://connection.example")
    option = Settings(url="gs://state", endpoint_url="https://option.example")
    assert endpoint_of(option, connection) == "https://option.example"
    assert endpoint_of(Settings(url="gs://state"), connection) == "https://connection.example"
    # Of another store.
    assert endpoint_of(Settings(url="s3://state", endpoint_url="https://s3.example"), GoogleConnection()) == (
        "http://emulator:1"
    )
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    assert endpoint_of(Settings(url="gs://state"), GoogleConnection()) == "https://storage.googleapis.com"


@only_google
@pytest.mark.filterwarnings("ignore:The load_credentials_from_dict method:DeprecationWarning")
def test_workload_identity_federation(
    secured: Secured,
    of_google: GoogleTokens,
    opened: BackendOf,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Credentials of another kind than a service account's: google-auth exchanges the token of a file for Google's."""
    (tmp_path / "subject").write_text("subject-token")
    federation = {
        "type": "external_account",
        # With a project's number in it, google-auth asks Google for the project's name.
        "audience": "pool",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{of_google.url}/exchange",
        "credential_source": {"file": str(tmp_path / "subject")},
    }
    given = {"conn_type": "google_cloud_platform", "extra": {"credential_config_file": federation}}
    monkeypatch.setenv("AIRFLOW_CONN_GCP_STATE", json.dumps(given))

    def exchanged(_: Request) -> Answer:
        token = {"access_token": of_google._issue(), "token_type": "Bearer", "expires_in": 3600}
        kind = {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}
        return "200 OK", [("Content-Type", "application/json")], json.dumps({**token, **kind}).encode()

    of_google.intercept = exchanged
    try:
        opened(secured.settings(gcp_conn_id="gcp_state")).set(task, "key", "1")
    finally:
        of_google.intercept = None
    assert len(of_google.issued) == 1
    with pytest.raises(StoreCredentialsError, match=r"no token of Google's was found: .*invalid_request") as caught:
        opened(secured.settings(gcp_conn_id="gcp_state", timeout=1.5)).set(task, "key", "1")
    assert "subject-token" not in all_said(caught.value)
