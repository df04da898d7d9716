"""Servers, scopes and backends that every test file uses."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests import botocore_sessions, cloud_servers, servers

# Until all tests are imported: what is imported stays, and a collection takes a second.
gc.disable()

# Before any module reads them: no test sees the Airflow or cloud configuration of the machine it runs on.
_CLOUDS = ("AWS_", "AZURE_", "CLOUDSDK_", "GCE_METADATA_", "GOOGLE_", "IDENTITY_", "MSI_", "STORAGE_EMULATOR_")
for name in list(os.environ):
    # Nor its proxy, which knows nothing of servers on this machine.
    if name.startswith(("AIRFLOW_", *_CLOUDS)) or name.lower().endswith("_proxy"):
        del os.environ[name]
_home = Path(tempfile.mkdtemp(prefix="async-state-tests-"))
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ |= {
    "AIRFLOW_HOME": str(_home),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AWS_CONFIG_FILE": str(_home / "aws-config"),
    "AWS_SHARED_CREDENTIALS_FILE": str(_home / "aws-credentials"),
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Where the clouds' command-line tools keep credentials; and no look for Google's metadata server.
    "AZURE_CONFIG_DIR": str(_home / "azure"),
    "CLOUDSDK_CONFIG": str(_home / "gcloud"),
    "NO_GCE_CHECK": "true",
    # Azurite's account's.
    "AZURE_STORAGE_KEY": cloud_servers.AZURE_KEY,
    # rclone's server knows these only; moto's takes any.
    "AWS_ACCESS_KEY_ID": servers.ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": servers.SECRET_KEY,
}

# A shell ignores Ctrl-C for what it runs in the background, and every process that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test in this process needs Airflow's database, whose set-up would be half of a short run's time. Processes that the
# tests start set up everything, and so does an Airflow that does not know this name.
os.environ["_AIRFLOW__AS_LIBRARY"] = "1"
from airflow.sdk.state import AssetScope, TaskScope  # noqa: E402

del os.environ["_AIRFLOW__AS_LIBRARY"]

from async_state import AsyncStateBackend, Settings  # noqa: E402
from async_state.testing import FakeS3, fake_s3  # noqa: E402
from async_state.testing.server import hang_up  # noqa: E402
from tests.cloud_servers import AzureServer, GcsServer, ServerMissing  # noqa: E402
from tests.programs.runner import Runner, runner  # noqa: E402

_Server = TypeVar("_Server")


def pytest_configure(config: pytest.Config) -> None:
    """Let Python 3.10's asyncio say of a TLS connection that it was not closed where the server has closed it."""
    if sys.version_info < (3, 11):
        unclosed = "unclosed transport <asyncio.sslproto._SSLProtocolTransport"
        config.addinivalue_line("filterwarnings", f"ignore:{unclosed}:ResourceWarning")


def pytest_unconfigure() -> None:
    """Delete what this process made, as a process of xdist ends without functions of `atexit`."""
    shutil.rmtree(_home, ignore_errors=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare runs without hypothesis's tests the second that its plugin takes to import it for its summary."""
    if "hypothesis" not in sys.modules and session.config.pluginmanager.has_plugin("hypothesispytest"):
        session.config.pluginmanager.unregister(name="hypothesispytest")
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def anyio_backend() -> str:
    """Airflow's event loops are asyncio's."""
    return "asyncio"


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this run, which is the same in all of xdist's processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def moto_server() -> Iterator[FakeS3]:
    """moto's S3 server, with the bucket ``state``."""
    botocore_sessions.remember()
    # As S3 does; a connection for each request would take as much of the processor again as the request.
    with fake_s3(["state"], keep_alive=True) as server:
        # What moto imports stays as well, and each collection would go through it.
        gc.freeze()
        yield server


@pytest.fixture
def moto(moto_server: FakeS3) -> Iterator[FakeS3]:
    """The server with no requests counted yet and nothing intercepted."""
    moto_server.requests.clear()
    yield moto_server
    moto_server.intercept = None


@pytest.fixture(scope="module")
def nothing_kept_alive(moto_server: FakeS3) -> Iterator[None]:
    """Let the server close each connection after its answer, for tests that wait until none is open."""
    moto_server.keep_alive = False
    # Other modules' backends may have kept some.
    hang_up(moto_server)
    yield
    moto_server.keep_alive = True


@pytest.fixture(scope="session")
def rclone_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """rclone's S3 server, with the bucket ``state``."""
    botocore_sessions.remember()
    directory = tmp_path_factory.mktemp("rclone") / "buckets"
    (directory / "state").mkdir(parents=True)
    with servers.rclone_s3(directory) as url:
        yield url


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """Google Cloud Storage as fake-gcs-server has it, with the bucket ``state``."""
    with _or_skip(cloud_servers.fake_gcs()) as server:
        server.make_bucket("state")
        yield server


@pytest.fixture
def gcs(gcs_server: GcsServer) -> Iterator[GcsServer]:
    """The server with no requests counted yet and nothing intercepted."""
    gcs_server.requests.clear()
    yield gcs_server
    gcs_server.intercept = None


@pytest.fixture(scope="session")
def azure_server() -> Iterator[AzureServer]:
    """Azure's blobs as Azurite has them, with the container ``state``."""
    with _or_skip(cloud_servers.azurite()) as server:
        server.make_container("state")
        yield server


@pytest.fixture
def azure(azure_server: AzureServer) -> Iterator[AzureServer]:
    """The server with no requests counted yet and nothing intercepted."""
    azure_server.requests.clear()
    yield azure_server
    azure_server.intercept = None


@contextlib.contextmanager
def _or_skip(server: AbstractContextManager[_Server]) -> Iterator[_Server]:
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except ServerMissing as e:
            pytest.skip(str(e))
        yield running


@pytest.fixture(scope="session")
def python() -> Iterator[Runner]:
    """Processes that have not used a backend, in forks of which programs and commands run."""
    with runner() as made:
        yield made


SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture(scope="session")
def s3_settings(moto_server: FakeS3) -> SettingsOf:
    """Settings for moto's server."""
    return lambda **options: Settings(**{"url": "s3://state/s3", "endpoint_url": moto_server.url, **options})


#: The kinds of store, as far as their servers are installed. Which of the clouds' are known when tests are collected.
STORES = ["memory", "file", "moto", "rclone"]
STORES += ["gs"] * cloud_servers.fake_gcs_is_installed() + ["az"] * cloud_servers.azurite_is_installed()


@pytest.fixture(scope="session", params=STORES)
def store_settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SettingsOf:
    """Settings for each kind of store in turn. Tests share the place, and have scopes of their own in it."""
    given: dict[str, Any]
    if request.param == "memory":
        given = {"url": "memory://tests"}
    elif request.param == "file":
        given = {"url": (tmp_path_factory.mktemp("file") / "state").as_uri()}
    elif request.param == "moto":
        given = {"url": "s3://state/tests", "endpoint_url": request.getfixturevalue("moto_server").url}
    elif request.param == "rclone":
        given = {"url": "s3://state/tests", "endpoint_url": request.getfixturevalue("rclone_url")}
    elif request.param == "gs":
        given = {"url": "gs://state/tests", "endpoint_url": request.getfixturevalue("gcs_server").url}
    else:
        azure: AzureServer = request.getfixturevalue("azure_server")
        given = {"url": "az://state/tests", "azure_account": azure.account, "endpoint_url": azure.endpoint}
    return lambda **options: Settings(**{**given, **options})


@pytest.fixture
def opened() -> Iterator[BackendOf]:
    """Make backends that are closed after the test; what they leave open then fails it."""
    # Garbage is looked for among what the test makes; among all that is there, it would take a third of a second.
    gc.freeze()
    backends: list[AsyncStateBackend] = []

    def open_(settings: Settings) -> AsyncStateBackend:
        backends.append(AsyncStateBackend(settings))
        return backends[-1]

    yield open_
    for backend in backends:
        backend.close()
    gc.collect()


@pytest.fixture(scope="session")
def backend(store_settings: SettingsOf) -> Iterator[AsyncStateBackend]:
    """A backend on each kind of store in turn."""
    with AsyncStateBackend(store_settings()) as backend:
        yield backend


@pytest.fixture
def task() -> TaskScope:
    """A task that no other test uses."""
    return TaskScope(dag_id=f"dag-{uuid.uuid4().hex}", run_id="manual__2026-01-01T00:00:00+00:00", task_id="task")


@pytest.fixture
def asset() -> AssetScope:
    """An asset, as a worker names it, that no other test uses."""
    return AssetScope(name=f"asset-{uuid.uuid4().hex}")
