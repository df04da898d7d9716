"""What must never be said: values and credentials, at any log level, in errors, reprs and references."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import traceback
from collections.abc import Iterator

import pytest
from airflow.sdk.state import AssetScope, TaskScope
from pydantic import JsonValue

from async_state import AsyncStateBackend, Settings
from async_state.connections.aws import AwsConnection
from async_state.errors import AsyncStateError
from async_state.stores.s3 import S3Options
from async_state.testing import FakeS3, faults
from tests.servers import s3_client

VALUE = "sentinel-of-the-value"
KEY_ID = "SENTINELOFTHEKEYID"
SECRET = "sentinel/of+the+secret+key"
TOKEN = "sentinel//of//the//session//token"


class Everything(logging.Handler):
    """Keeps what any logger says, at any level, with its tracebacks."""

    def __init__(self) -> None:
        super().__init__(level=logging.NOTSET)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.name}: {self.format(record)}")


@pytest.fixture
def everything() -> Iterator[Everything]:
    handler = Everything()
    root = logging.getLogger()
    level = root.level
    names = ["", "aiobotocore", "botocore", "aiohttp", "asyncio", "async_state"]
    levels = {name: logging.getLogger(name).level for name in names}
    root.addHandler(handler)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    for name in names:
        logging.getLogger(name).setLevel(levels[name])
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)


def use(backend: AsyncStateBackend, task: TaskScope) -> list[str]:
    """Do every operation, and return references and, of what fails, all that a handler could print."""
    told: list[str] = []
    value: JsonValue = {"secret": VALUE, "filler": "x" * 2000}
    asset = AssetScope(name=task.dag_id)

    @contextlib.contextmanager
    def telling() -> Iterator[None]:
        try:
            yield
        except AsyncStateError as e:
            told.extend([str(e), repr(e), repr(vars(e)), *traceback.format_exception(e)])

    async def awaited() -> None:
        with telling():
            told.append(await backend.aserialize_asset_state_store_to_ref(value=value, key="value", scope=asset))

    for _ in range(2):
        with telling():
            ref = backend.serialize_task_state_store_to_ref(value=value, key="value", scope=task)
            told.append(ref)
            assert backend.deserialize_task_state_store_from_ref(ref) == value
            backend.purge_task_state(ref)
        with telling():
            backend.set(task, "row", f'"{VALUE}"')
            assert backend.get(task, "row") == f'"{VALUE}"'
        with telling():
            backend.delete(task, "row")
        with telling():
            backend.clear(task)
        asyncio.run(awaited())
    told += [repr(backend), str(backend), repr(vars(backend)), repr(vars(backend._objects))]
    return told


def leaked(texts: list[str]) -> set[str]:
    together = "\n".join(texts)
    return {sentinel for sentinel in (VALUE, KEY_ID, SECRET, TOKEN) if sentinel in together}


@pytest.mark.parametrize(
    "fault",
    [
        None,
        faults.error(403, "SignatureDoesNotMatch"),
        faults.error(500, "InternalError"),
        faults.reset_before_answer(),
        faults.reset_in_body(),
        faults.corrupted_body(),
    ],
    ids=["no fault", "403", "500", "reset", "cut", "damaged"],
)
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_values_and_secrets_are_never_said(
    everything: Everything,
    moto: FakeS3,
    task: TaskScope,
    fault: faults.Fault | None,
    compression: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in a process that has used nothing yet, where botocore composes requests.
    monkeypatch.setattr("async_state.stores.s3.prefork._endpoints", {})
    settings = Settings(
        url="s3://state/privileges", endpoint_url=moto.url, max_attempts=1, timeout=5, compression=compression
    )
    with AsyncStateBackend(settings) as backend:
        with moto.failing(fault) if fault else contextlib.nullcontext():
            told = use(backend, task)
        told.append(repr(settings))
    # Tasks and futures that nobody asks any more report when they go.
    gc.collect()
    # The search is worth something only where botocore does tell what it does.
    assert any(line.startswith("botocore.hooks: ") for line in everything.said)
    assert leaked(everything.said) == set()
    assert leaked(told) == set()


def test_what_others_do_with_botocore_is_logged_as_before(everything: Everything, moto: FakeS3) -> None:
    with AsyncStateBackend(Settings(url="s3://state/privileges", endpoint_url=moto.url)) as backend:
        backend.get(AssetScope(name="asset"), "key")
    with contextlib.closing(s3_client(moto.url)) as client:
        client.list_buckets()
    assert any(line.startswith("botocore.endpoint: Sending http request") for line in everything.said)


def test_credentials_are_not_in_the_options_repr() -> None:
    options = S3Options("bucket", connection=AwsConnection("c", KEY_ID, SECRET, TOKEN))
    assert leaked([repr(options), str(options)]) == set()


def test_the_search_finds_what_is_there() -> None:
    assert leaked([f"a {VALUE}", SECRET]) == {VALUE, SECRET}
