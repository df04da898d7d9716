"""Servers, scopes and backends that every test file uses."""

from __future__ import annotations

import gc
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before any Airflow module reads them.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="async-state-airflow-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
for name in [name for name in os.environ if name.startswith(("AWS_", "AIRFLOW__ASYNC_STATE"))]:
    del os.environ[name]

from airflow.sdk.state import AssetScope, TaskScope  # noqa: E402

from async_state import AsyncStateBackend, Settings  # noqa: E402
from async_state.testing import CREDENTIALS, REGION, FakeS3, fake_s3  # noqa: E402
from tests import servers  # noqa: E402


@pytest.fixture
def anyio_backend() -> str:
    """Airflow's event loops are asyncio's."""
    return "asyncio"


@pytest.fixture(scope="session")
def aws_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home without AWS configuration."""
    return tmp_path_factory.mktemp("aws")


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, aws_home: Path) -> None:
    """No test sees the AWS configuration of the machine it runs on."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(aws_home / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(aws_home / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[FakeS3]:
    """moto's S3 server, with the bucket ``state``."""
    with fake_s3(["state"]) as server:
        yield server


@pytest.fixture
def moto(moto_server: FakeS3) -> Iterator[FakeS3]:
    """The server with no requests counted yet and nothing intercepted."""
    moto_server.requests.clear()
    yield moto_server
    moto_server.intercept = None


@pytest.fixture(scope="session")
def rclone_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """rclone's S3 server, with the bucket ``state``."""
    directory = tmp_path_factory.mktemp("rclone") / "buckets"
    (directory / "state").mkdir(parents=True)
    with servers.rclone_s3(directory) as url:
        yield url


SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture
def s3_settings(moto: FakeS3) -> SettingsOf:
    """Settings for an unused prefix on moto's server."""
    url = f"s3://state/{uuid.uuid4().hex}"

    def settings(**options: object) -> Settings:
        return Settings(**{"url": url, "endpoint_url": moto.url, **options})  # type: ignore[arg-type]

    return settings


@pytest.fixture(params=["memory", "file", "moto", "rclone"])
def store_settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettingsOf:
    """Settings for an unused place in each kind of store in turn."""
    unused = uuid.uuid4().hex
    given: dict[str, object]
    if request.param == "memory":
        given = {"url": f"memory://{unused}"}
    elif request.param == "file":
        given = {"url": (tmp_path / "state").as_uri()}
    elif request.param == "moto":
        given = {"url": f"s3://state/{unused}", "endpoint_url": request.getfixturevalue("moto").url}
    else:
        given = {"url": f"s3://state/{unused}", "endpoint_url": request.getfixturevalue("rclone_url")}
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
    return lambda **options: Settings(**{**given, **options})  # type: ignore[arg-type]


@pytest.fixture
def opened() -> Iterator[BackendOf]:
    """Make backends that are closed after the test; what they leave open then fails it."""
    backends: list[AsyncStateBackend] = []

    def open_(settings: Settings) -> AsyncStateBackend:
        backends.append(AsyncStateBackend(settings))
        return backends[-1]

    yield open_
    for backend in backends:
        backend.close()
    gc.collect()


@pytest.fixture
def backend(store_settings: SettingsOf, opened: BackendOf) -> AsyncStateBackend:
    """A backend on each kind of store in turn."""
    return opened(store_settings())


@pytest.fixture
def task() -> TaskScope:
    """A task that no other test uses."""
    return TaskScope(dag_id=f"dag-{uuid.uuid4().hex}", run_id="manual__2026-01-01T00:00:00+00:00", task_id="task")


@pytest.fixture
def asset() -> AssetScope:
    """An asset, as a worker names it, that no other test uses."""
    return AssetScope(name=f"asset-{uuid.uuid4().hex}")
