"""Both clouds, each by the parameter ``gs`` or ``az``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_state import AsyncStateBackend
from async_state.stores import retry
from tests.cloud_faults import azure_batch_errors, azure_error, gcs_batch_errors, gcs_error
from tests.cloud_servers import AzureServer
from tests.cloud_tokens import AzureTokens, GoogleTokens, TokenServer, azure_tokens, google_tokens
from tests.stores.cloud.clouds import Cloud, Secured
from tests.stores.s3.tls import authority, terminator

BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    """Each cloud in turn; Azure's where Azurite is installed."""
    if request.param == "gs":
        return Cloud(
            "gs",
            request.getfixturevalue("gcs"),
            100,
            gcs_error,
            gcs_batch_errors,
            failing=(503, "backendError"),
            throttled=(429, "rateLimitExceeded"),
            denied=(403, "forbidden"),
            refused=(401, "authError"),
        )
    return Cloud(
        "az",
        request.getfixturevalue("azure"),
        256,
        azure_error,
        azure_batch_errors,
        failing=(500, "InternalError"),
        throttled=(503, "ServerBusy"),
        denied=(403, "AuthorizationPermissionMismatch"),
        refused=(403, "AuthenticationFailed"),
    )


@pytest.fixture
def backend(cloud: Cloud, opened: BackendOf) -> AsyncStateBackend:
    """A backend on the cloud."""
    return opened(cloud.settings())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts that take no time; test_retry.py looks at them."""
    for pause in "FIRST_PAUSE", "FIRST_THROTTLED_PAUSE", "LEAST_THROTTLED_PAUSE", "LONGEST_PAUSE":
        monkeypatch.setattr(retry, pause, 0.01)


@pytest.fixture(scope="session")
def of_google() -> Iterator[GoogleTokens]:
    with google_tokens() as tokens:
        yield tokens


@pytest.fixture(scope="session")
def of_azure() -> Iterator[AzureTokens]:
    with azure_tokens() as tokens:
        yield tokens


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secured(
    cloud: Cloud,
    certificates: tuple[Path, Path],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Secured]:
    ca, chain = certificates
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    tokens: TokenServer = request.getfixturevalue("of_google" if cloud.scheme == "gs" else "of_azure")
    tokens.lifetime = 3600
    tokens.revoke()
    tokens.requests.clear()

    def found(there: bool) -> None:
        if isinstance(tokens, AzureTokens):
            for name, value in tokens.environment.items():
                if there:
                    monkeypatch.setenv(name, value)
                else:
                    monkeypatch.delenv(name)
        elif there:
            assert isinstance(tokens, GoogleTokens)
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tokens.write(tmp_path / "credentials.json")))
        else:
            (tmp_path / "credentials.json").unlink()

    found(True)
    accepted = [tokens]
    with (
        cloud.server.demanding(lambda header: any(each.accepts(header) for each in accepted)),
        terminator(cloud.server.url) as tls,
    ):
        tls.show(chain)
        path = f"/{cloud.server.account}" if isinstance(cloud.server, AzureServer) else ""
        yield Secured(cloud, tls.url + path, tokens, accepted, found)
