"""Writes on a condition, in every store that has them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
import pytest

from async_state import Settings, connections, iothread
from async_state.errors import ConditionsError
from async_state.stores import Store, open_store
from async_state.stores.base import Details
from async_state.testing import FakeS3, faults
from tests.cloud_servers import AzureServer, GcsServer
from tests.stores.s3.direct import send_nothing_directly

T = TypeVar("T")

SettingsOf = Callable[..., Settings]

pytestmark = pytest.mark.anyio


async def arun(function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
    return await iothread.arun(function, *args, timeout=20)


@pytest.fixture(params=["memory", "file", "moto", "moto-by-client", "gs", "az"])
def store(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "memory":
        settings = Settings(url="memory://conditions")
    elif request.param == "file":
        settings = Settings(url=(tmp_path / "state").as_uri())
    elif request.param in ("gs", "az"):
        return opened_on(cloud_of(request.param, request))
    else:
        if request.param == "moto-by-client":
            send_nothing_directly(monkeypatch)
        settings = Settings(url="s3://state/conditions", endpoint_url=request.getfixturevalue("moto").url)
    return open_store(settings.url, settings, connections.empty(settings.url))


def cloud_of(scheme: str, request: pytest.FixtureRequest) -> GcsServer | AzureServer:
    server: GcsServer | AzureServer = request.getfixturevalue("gcs" if scheme == "gs" else "azure")
    return server


def opened_on(server: GcsServer | AzureServer) -> Store:
    if isinstance(server, AzureServer):
        settings = Settings(url="az://state/conditions", endpoint_url=server.endpoint)
    else:
        settings = Settings(url="gs://state/conditions", endpoint_url=server.url)
    return open_store(settings.url, settings, connections.empty(settings.url))


@pytest.fixture
def name() -> str:
    return f"v1/task/{uuid.uuid4().hex}/run/task/-1/worker/key"


async def test_an_object_is_made_once(store: Store, name: str) -> None:
    assert await arun(store.get_tagged, name) is None
    assert await arun(store.put_if_unchanged, name, b"1", "", None)
    assert not await arun(store.put_if_unchanged, name, b"2", "", None)
    assert await arun(store.get, name) == b"1"


async def test_an_object_is_replaced_if_it_is_what_was_seen(store: Store, name: str) -> None:
    await arun(store.put, name, b"1", "")
    first = await arun(store.get_tagged, name)
    assert first is not None
    assert first.body == b"1"
    assert await arun(store.put_if_unchanged, name, b"2", "", first)
    assert not await arun(store.put_if_unchanged, name, b"3", "", first)
    assert await arun(store.get, name) == b"2"
    second = await arun(store.get_tagged, name)
    await arun(store.delete, [name])
    assert not await arun(store.put_if_unchanged, name, b"3", "", second)
    assert await arun(store.get_tagged, name) is None


async def test_of_many_at_once_one_writes(store: Store, name: str) -> None:
    await arun(store.put, name, b"0", "")
    seen = await arun(store.get_tagged, name)
    written: list[int] = []

    async def write(number: int) -> None:
        if await arun(store.put_if_unchanged, name, b"%d" % number, "", seen):
            written.append(number)

    async with anyio.create_task_group() as group:
        for number in range(1, 21):
            group.start_soon(write, number)
    (winner,) = written
    assert await arun(store.get, name) == b"%d" % winner


@pytest.mark.parametrize("fault", [faults.reset_after_carrying_out(), faults.error(500, "InternalError")])
async def test_an_answer_that_is_lost_does_not_hide_a_write(moto: FakeS3, name: str, fault: faults.Fault) -> None:
    settings = Settings(url="s3://state/lost", endpoint_url=moto.url)
    store = open_store(settings.url, settings, connections.empty(settings.url))
    assert await arun(store.put_if_unchanged, name, b"1", "", None)
    seen = await arun(store.get_tagged, name)
    with moto.failing(fault, method="PUT", times=1) as failing:
        assert await arun(store.put_if_unchanged, name, b"2", "", seen)
    assert len(failing.requests) == 1
    assert await arun(store.get, name) == b"2"
    with moto.failing(fault, method="PUT", times=1):
        assert not await arun(store.put_if_unchanged, name, b"3", "", seen)
    assert await arun(store.get, name) == b"2"


@pytest.mark.parametrize("scheme", ["gs", "az"])
@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_clouds_answer_that_is_lost_does_not_hide_a_write(
    scheme: str, carried_out: bool, request: pytest.FixtureRequest, name: str
) -> None:
    server = cloud_of(scheme, request)
    store = opened_on(server)
    fault = faults.reset_after_carrying_out() if carried_out else faults.reset_before_answer()
    method = "POST" if scheme == "gs" else "PUT"
    with server.failing(fault, method=method, times=1) as failing:
        assert await arun(store.put_if_unchanged, name, b"1", "", None)
    assert len(failing.requests) == 1
    seen = await arun(store.get_tagged, name)
    with server.failing(fault, method=method, times=1) as failing:
        assert await arun(store.put_if_unchanged, name, b"2", "", seen)
    assert len(failing.requests) == 1
    assert await arun(store.get, name) == b"2"
    with server.failing(fault, method=method, times=1):
        assert not await arun(store.put_if_unchanged, name, b"3", "", seen)
    assert await arun(store.get, name) == b"2"


async def seen_in(store: Store, name: str) -> Details:
    found = await arun(store.head, name)
    assert found is not None
    return found


async def test_an_object_is_deleted_if_it_is_what_was_seen(store: Store, name: str) -> None:
    await arun(store.put, name, b"1", "")
    seen = await seen_in(store, name)
    await arun(store.put, name, b"2", "")
    assert not await arun(store.delete_unchanged, seen)
    assert await arun(store.get, name) == b"2"
    assert await arun(store.delete_unchanged, await seen_in(store, name))
    assert await arun(store.get, name) is None
    # Whoever else has deleted it.
    assert await arun(store.delete_unchanged, seen)


@pytest.mark.parametrize("scheme", ["gs", "az"])
async def test_a_clouds_answer_that_is_lost_does_not_hide_a_deletion(
    scheme: str, request: pytest.FixtureRequest, name: str
) -> None:
    server = cloud_of(scheme, request)
    store = opened_on(server)
    await arun(store.put, name, b"1", "")
    seen = await seen_in(store, name)
    with server.failing(faults.reset_after_carrying_out(), method="DELETE", times=1) as failing:
        assert await arun(store.delete_unchanged, seen)
    assert len(failing.requests) == 1
    assert await arun(store.get, name) is None


async def test_an_object_is_written_over_if_it_is_what_was_seen(store: Store, name: str) -> None:
    await arun(store.put_over, name, b"1", "", None)
    assert await arun(store.get, name) == b"1"
    # There is one already.
    await arun(store.put_over, name, b"2", "", None)
    assert await arun(store.get, name) == b"1"
    seen = await seen_in(store, name)
    await arun(store.put_over, name, b"2", "", seen)
    assert await arun(store.get, name) == b"2"
    await arun(store.put_over, name, b"3", "", seen)
    assert await arun(store.get, name) == b"2"


async def test_a_store_that_ignores_conditions_is_found_out_before_anything_is_written(
    rclone_url: str, name: str
) -> None:
    settings = Settings(url="s3://state/ignores", endpoint_url=rclone_url)
    store = open_store(settings.url, settings, connections.empty(settings.url))
    await arun(store.put, name, b"1", "")
    seen = await arun(store.get_tagged, name)
    for _ in range(2):
        with pytest.raises(ConditionsError, match="ignores If-Match or If-None-Match"):
            await arun(store.put_if_unchanged, name, b"2", "", seen)
    assert await arun(store.get, name) == b"1"

    async def listed() -> list[str]:
        return [entry.name async for page in store.entries("v1/check/", timeout=20) for entry in page]

    assert await iothread.arun(listed) == []
