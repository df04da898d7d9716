"""Stores that are not AWS: what they ask for, ignore, and get wrong; by both ways, directly and through the client."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.errors import CorruptObjectError, StoreError
from async_state.testing import Answer, FakeS3, Request, fake_s3, faults
from async_state.testing.faults import Exchange, Fault
from tests.stores.s3.direct import send_nothing_directly, went_directly

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]
XML = [("Content-Type", "application/xml")]


@pytest.fixture(params=[True, False], ids=["directly", "through the client"])
def backend(
    request: pytest.FixtureRequest, opened: BackendOf, s3_settings: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> AsyncStateBackend:
    if not request.param:
        send_nothing_directly(monkeypatch)
    return opened(s3_settings(max_attempts=2))


def test_a_store_that_asks_for_content_md5(backend: AsyncStateBackend, moto: FakeS3, task: TaskScope) -> None:
    """Older MinIO, Ceph and Google's S3 interface do, of DeleteObjects; moto does not look."""

    def asks(request: Request) -> Answer | None:
        if request.method == "POST" and len(base64.b64decode(request.headers.get("content-md5", ""))) != 16:
            return (
                "400 Bad Request",
                XML,
                b"<Error><Code>InvalidRequest</Code><Message>no digest</Message></Error>",
            )
        return None

    moto.intercept = asks
    backend.set(task, "key", "1")
    backend.delete(task, "key")
    assert backend.get(task, "key") is None
    for key in "one", "two":
        backend.set(task, key, "1")
    backend.clear(task)
    assert [backend.get(task, key) for key in ("one", "two")] == [None, None]


def test_the_digest_is_that_of_the_body(backend: AsyncStateBackend, moto: FakeS3, task: TaskScope) -> None:
    bodies: list[tuple[str, bytes]] = []

    def carried_out(exchange: Exchange) -> Answer:
        bodies.append((exchange.request.headers["content-md5"], exchange.body))
        return exchange.carry_out(exchange.body)

    with moto.failing(Fault(carried_out), method="POST"):
        backend.delete(task, "key & <key>")
    ((digest, body),) = bodies
    assert base64.b64decode(digest) == hashlib.md5(body, usedforsecurity=False).digest()


def test_a_store_that_ignores_expect(backend: AsyncStateBackend, moto: FakeS3, task: TaskScope) -> None:
    """Whoever asked it whether a large body is welcome would wait for ever."""
    value = "x" * 3 * 1024 * 1024
    ref = backend.serialize_task_state_store_to_ref(value=value, key="key", scope=task)
    assert "expect" not in moto.requests[-1].headers
    assert backend.deserialize_task_state_store_from_ref(ref) == value


NONSENSE = {
    "truncated without a token": (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>k</Key></Contents></ListBucketResult>"
    ),
    "an entry without a key": b"<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>",
    "no list": b"<html/>",
    "nothing": b"",
}


@pytest.mark.parametrize("clear_on_success", ["False", "True"])
@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_a_listing_that_makes_no_sense(
    answer: bytes,
    clear_on_success: str,
    backend: AsyncStateBackend,
    moto: FakeS3,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a `StoreError` and nothing else, so that it fails no task that has succeeded."""
    monkeypatch.setenv("AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS", clear_on_success)
    moto.intercept = lambda request: ("200 OK", XML, answer) if request.method == "GET" else None
    if clear_on_success == "True":
        backend.clear(task)
    else:
        with pytest.raises(StoreError, match=rf"s3://state/s3/v1/task/{task.dag_id}.*NotS3Error"):
            backend.clear(task)


def test_a_refusal_without_a_key(backend: AsyncStateBackend, moto: FakeS3, task: TaskScope) -> None:
    answer = b"<DeleteResult><Error><Code>InternalError</Code></Error></DeleteResult>"
    moto.intercept = lambda request: ("200 OK", XML, answer) if request.method == "POST" else None
    with pytest.raises(StoreError, match="NotS3Error"):
        backend.delete(task, "key")


def test_an_object_of_more_than_any_value_is_not_read(
    backend: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    fault = faults.respond("200 OK", {"Content-Length": str(300 * 1024 * 1024)}, b"[")
    with moto.failing(fault, method="GET"), pytest.raises(CorruptObjectError, match="has 314572800 bytes"):
        backend.get(task, "key")


def test_both_ways_are_taken(backend: AsyncStateBackend, moto: FakeS3, task: TaskScope, request: Any) -> None:
    backend.set(task, "key", "1")
    assert went_directly(moto.requests[-1]) == ("directly" in request.node.name)


# What is no store's fault.


@pytest.mark.anyio
async def test_closing_while_another_url_is_opened(s3_settings: SettingsOf, task: TaskScope) -> None:
    urls = tuple(f"s3://state/trusted-{number}" for number in range(20))
    async with AsyncStateBackend(s3_settings(trusted_urls=urls)) as backend:
        ref = await backend.aserialize_task_state_store_to_ref(value=1, key="key", scope=task)
        name = ref.removeprefix("s3://state/s3/")
        reads = [backend.adeserialize_task_state_store_from_ref(f"{url}/{name}") for url in urls]
        outcomes = await asyncio.gather(*reads, *(backend.aclose() for _ in range(20)))
        assert outcomes == [None] * 40


def test_a_backend_that_is_dropped_leaves_no_connection(task: TaskScope) -> None:
    with fake_s3(keep_alive=True) as server:
        for _ in range(5):
            AsyncStateBackend(Settings(url="s3://state/p", endpoint_url=server.url)).set(task, "key", "1")
        gc.collect()
        server.wait_until_idle(60)
