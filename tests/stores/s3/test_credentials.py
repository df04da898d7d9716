"""Credentials and certificates that come late, end, or are replaced while a process lives."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.errors import StoreCredentialsError, StoreError, StoreUnavailableError
from async_state.stores import prepare, retry
from async_state.stores.s3 import prefork
from async_state.testing import Answer, FakeS3, Request, faults
from tests.stores.s3.tls import authority, terminator

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.05)


@pytest.fixture(params=[False, True], ids=["resolved", "prepared"])
def backend(
    request: pytest.FixtureRequest, opened: BackendOf, s3_settings: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> AsyncStateBackend:
    """A backend whose endpoint a parent has prepared, or not."""
    monkeypatch.setattr(prefork, "_endpoints", {})
    if request.param:
        prepare(s3_settings())
    return opened(s3_settings())


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY":
        monkeypatch.delenv(name)


def use(monkeypatch: pytest.MonkeyPatch, key_id: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"secret-of-{key_id}")
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"token-of-{key_id}")


def signed_by(request: Request) -> str:
    return request.headers["authorization"].partition("Credential=")[2].partition("/")[0]


@pytest.fixture
def only(moto: FakeS3) -> Iterator[Callable[[str], None]]:
    """Have the store accept one key alone, and say that every other one has expired."""
    accepted = [""]
    with moto.failing(faults.error(400, "ExpiredToken"), when=lambda request: signed_by(request) != accepted[0]):
        yield lambda key_id: accepted.__setitem__(0, key_id)


@pytest.mark.usefixtures("no_credentials")
def test_one_empty_lookup_is_not_the_end(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{moto.url}/credentials")
    asked = itertools.count()

    def credentials(request: Request) -> Answer | None:
        if request.path != "/credentials":
            return None
        # botocore itself asks three times.
        if next(asked) < 4:
            return "503 Service Unavailable", [], b""
        found = {"AccessKeyId": "AKIALATE", "SecretAccessKey": "s", "Token": "t", "Expiration": "2099-01-01T00:00:00Z"}
        return "200 OK", [("Content-Type", "application/json")], json.dumps(found).encode()

    moto.intercept = credentials
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    monkeypatch.setattr("aiobotocore.utils.AioContainerMetadataFetcher.SLEEP_TIME", 0, raising=False)
    backend.set(task, "key", "1")
    assert signed_by(moto.requests[-1]) == "AKIALATE"


@pytest.mark.usefixtures("no_credentials")
def test_a_credentials_file_that_is_written_later(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with pytest.raises(StoreCredentialsError, match="NoCredentialsError"):
        AsyncStateBackend(Settings(url="s3://state/p", endpoint_url=moto.url, timeout=1.5)).set(task, "key", "1")
    writer = threading.Timer(
        0.2, file.write_text, ["[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = secret\n"]
    )
    writer.start()
    backend.set(task, "key", "1")
    writer.join()
    assert signed_by(moto.requests[-1]) == "AKIAFILE"


def test_credentials_of_the_environment_that_are_replaced(
    backend: AsyncStateBackend,
    moto: FakeS3,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    only: Callable[[str], None],
) -> None:
    for key_id in "AKIAFIRST", "AKIASECOND":
        only(key_id)
        use(monkeypatch, key_id)
        backend.set(task, "key", f'"{key_id}"')
        assert backend.get(task, "key") == f'"{key_id}"'
    # One refusal, after which they were read anew.
    assert [signed_by(request) for request in moto.requests].count("AKIAFIRST") == 3


def test_credentials_of_the_shared_file_that_are_replaced(
    backend: AsyncStateBackend,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    no_credentials: None,
    only: Callable[[str], None],
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for key_id in "AKIAFIRST", "AKIASECOND":
        only(key_id)
        file.write_text(f"[default]\naws_access_key_id = {key_id}\naws_secret_access_key = s\naws_session_token = t\n")
        backend.set(task, "key", "1")
        assert backend.get(task, "key") == "1"


@pytest.mark.parametrize("way", ["blocking", "coroutine"])
def test_credentials_of_a_connection_that_are_replaced(
    way: str,
    opened: BackendOf,
    s3_settings: SettingsOf,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    only: Callable[[str], None],
) -> None:
    backend = opened(s3_settings(aws_conn_id="aws_state"))
    for key_id in "AKIAFIRST", "AKIASECOND":
        only(key_id)
        given = {"conn_type": "aws", "login": key_id, "password": "s", "extra": {"aws_session_token": "t"}}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_STATE", json.dumps(given))
        if way == "blocking":
            backend.set(task, "key", "1")
        else:
            asyncio.run(backend.aset(task, "key", "1"))


def test_credentials_that_stay_refused_are_an_error_at_once(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, only: Callable[[str], None]
) -> None:
    only("AKIANOBODY")
    with pytest.raises(StoreCredentialsError, match=r"ExpiredToken.*2 attempts.*Renew"):
        backend.set(task, "key", "1")
    assert len(moto.requests) == 2


@pytest.mark.anyio
async def test_operations_that_are_refused_together(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to be refused opens the bucket anew for all; none fails, and none is cut off."""
    await backend.aset(task, "key", "1")
    use(monkeypatch, "AKIANEW")
    with moto.failing(faults.error(403, "InvalidAccessKeyId"), when=lambda request: signed_by(request) != "AKIANEW"):
        await asyncio.gather(*(backend.aset(task, f"key-{number}", str(number)) for number in range(50)))
        assert [await backend.aget(task, f"key-{number}") for number in range(50)] == [str(n) for n in range(50)]


# Credentials that another service gives.


@pytest.fixture
def web_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_credentials: None) -> None:
    (tmp_path / "token").write_text("identity-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/state")


@pytest.mark.usefixtures("web_identity")
def test_what_sts_refuses_is_said_of_sts(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.url)
    refused = (
        b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>Not authorized to perform "
        b"sts:AssumeRoleWithWebIdentity</Message></Error><RequestId>R</RequestId></ErrorResponse>"
    )
    moto.intercept = lambda _: ("403 Forbidden", [("Content-Type", "text/xml")], refused)
    with pytest.raises(StoreCredentialsError) as caught:
        backend.set(task, "key", "1")
    said = str(caught.value)
    assert "sts:AssumeRoleWithWebIdentity for arn:aws:iam::123456789012:role/state was refused" in said
    assert "s3:PutObject" not in said
    assert "identity-token" not in said


@pytest.mark.usefixtures("web_identity")
def test_sts_that_fails_for_a_while(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.url)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0)
    to_sts = [503] * 12
    given = (
        b"<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        b"<AccessKeyId>AKIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
        b"<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
        b"</AssumeRoleWithWebIdentityResponse>"
    )

    def sts(request: Request) -> Answer | None:
        if request.path != "/":
            return None
        return (
            ("503 Unavailable", [], b"")
            if to_sts and to_sts.pop()
            else ("200 OK", [("Content-Type", "text/xml")], given)
        )

    moto.intercept = sts
    backend.set(task, "key", "1")
    assert signed_by(moto.requests[-1]) == "AKIAROLE"


class Connects:
    """A proxy that refuses every connection, and remembers where each was to go."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.hosts.append(connection.recv(4096).split()[1].decode())
                connection.sendall(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy() -> Iterator[Connects]:
    proxy = Connects()
    yield proxy
    proxy.close()


@pytest.mark.usefixtures("web_identity")
def test_the_region_reaches_sts(
    opened: BackendOf, s3_settings: SettingsOf, task: TaskScope, monkeypatch: pytest.MonkeyPatch, proxy: Connects
) -> None:
    """In a private network, no other region's STS can be reached."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    # The default of later versions.
    monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", "regional")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")

    async def until_asked() -> None:
        operation = asyncio.ensure_future(opened(s3_settings(region_name="eu-west-1")).aset(task, "key", "1"))
        while not proxy.hosts:
            await asyncio.sleep(0.01)
        operation.cancel()

    asyncio.run(until_asked())
    assert set(proxy.hosts) == {"sts.eu-west-1.amazonaws.com:443"}


# Secrets that are part of an address.


def all_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_a_proxys_password_is_in_no_error(
    opened: BackendOf, task: TaskScope, monkeypatch: pytest.MonkeyPatch, proxy: Connects
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass-word@127.0.0.1:{proxy.port}")
    for port in (proxy.port, 9):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass-word@127.0.0.1:{port}")
        backend = opened(Settings(url="s3://state/p", endpoint_url="https://s3.example.com", max_attempts=1))
        with pytest.raises(StoreUnavailableError, match="s3://state/p/") as caught:
            backend.set(task, "key", "1")
        assert "pass-word" not in all_said(caught.value)
    assert proxy.hosts


@pytest.mark.parametrize("address", ["https://admin:pass-word@host.example", "https://admin:pass/word@host.example"])
def test_an_endpoints_password_is_in_no_error(
    address: str, opened: BackendOf, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    with pytest.raises(StoreError) as caught:
        opened(Settings(url="s3://state/p", timeout=2)).set(task, "key", "1")
    for secret in "pass-word", "pass/word":
        assert secret not in all_said(caught.value)


# Certificates.


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_of_authorities_that_is_replaced(
    variable: str, opened: BackendOf, moto: FakeS3, task: TaskScope, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As cert-manager does: first the bundle, then the store's certificate."""
    bundle = tmp_path / "bundle.pem"
    monkeypatch.setenv(variable, str(bundle))
    with terminator(moto.url) as tls:
        backend = opened(Settings(url="s3://state/p", endpoint_url=tls.url))
        for name in "first", "second":
            ca, chain = authority(tmp_path)
            replaced = tmp_path / "replaced.pem"
            replaced.write_bytes(ca.read_bytes())
            replaced.rename(bundle)
            tls.show(chain)
            backend.set(task, "key", f'"{name}"')
            assert backend.get(task, "key") == f'"{name}"'


def test_a_certificate_of_nobody(
    opened: BackendOf, moto: FakeS3, task: TaskScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, chain = authority(tmp_path)
    # botocore does not read it, and so neither do we.
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    with terminator(moto.url) as tls:
        tls.show(chain)
        with pytest.raises(StoreUnavailableError, match=r"AWS_CA_BUNDLE \(SSL_CERT_FILE is not read\)"):
            opened(Settings(url="s3://state/p", endpoint_url=tls.url)).set(task, "key", "1")
    assert not moto.requests
