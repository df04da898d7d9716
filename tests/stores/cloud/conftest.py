"""Both clouds, each by the parameter ``gs`` or ``az``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from async_state import AsyncStateBackend
from async_state.stores import retry
from tests.cloud_faults import azure_batch_errors, azure_error, gcs_batch_errors, gcs_error
from tests.stores.cloud.clouds import Cloud

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
