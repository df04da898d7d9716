"""Tokens of both clouds: asked for once, renewed before they end, and read anew when they are refused.

The clouds stand behind TLS here, as tokens are sent nowhere else, and take the tokens alone that the test's service has
given out: Google's for the credentials of a file, Azure's for a managed identity.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
import traceback
from collections.abc import Callable

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend
from async_state.errors import ConfigurationError, StoreCredentialsError
from async_state.stores import retry
from async_state.stores.cloud import tokens as kept
from async_state.testing import faults
from async_state.testing.faults import Request
from tests.cloud_tokens import GoogleTokens
from tests.programs.wire import PATIENCE
from tests.stores.cloud.clouds import Secured

BackendOf = Callable[..., AsyncStateBackend]

pytestmark = pytest.mark.usefixtures("quick")


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.anyio
async def test_one_token_serves_all(secured: Secured, opened: BackendOf, task: TaskScope) -> None:
    backend = opened(secured.settings())
    await asyncio.gather(*(backend.aset(task, f"k{number}", str(number)) for number in range(30)))
    assert await asyncio.gather(*(backend.aget(task, f"k{number}") for number in range(30))) == [
        str(number) for number in range(30)
    ]
    await backend.aclear(task)
    (token,) = secured.tokens.issued
    assert set(secured.authorizations()) == {f"Bearer {token}"}
    if isinstance(secured.tokens, GoogleTokens):
        assert set(secured.tokens.scopes) == {"https://www.googleapis.com/auth/devstorage.read_write"}


def test_a_token_is_renewed_before_it_ends(
    secured: Secured, opened: BackendOf, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While operations go on, even where the service that gives tokens has an outage."""
    monkeypatch.setattr(kept, "_PAUSE", 0.05)
    secured.tokens.lifetime = 200
    backend = opened(secured.settings())
    backend.set(task, "key", "1")
    (first,) = secured.tokens.issued
    with secured.tokens.failing(faults.reset_before_answer()) as failing:
        until(lambda: backend.get(task, "key") == "1" and failing.requests)
        assert list(secured.tokens.issued) == [first]
    secured.tokens.lifetime = 3600
    until(lambda: backend.get(task, "key") == "1" and len(secured.tokens.issued) == 2)
    second = list(secured.tokens.issued)[1]
    until(lambda: backend.get(task, "key") == "1" and secured.authorizations()[-1] == f"Bearer {second}")
    # No operation was refused.
    assert set(secured.authorizations()) == {f"Bearer {first}", f"Bearer {second}"}
    secured.cloud.server.requests.clear()
    backend.get(task, "key")
    assert secured.authorizations() == [f"Bearer {second}"]


def test_a_token_that_ends_soon_is_not_used(secured: Secured, opened: BackendOf, task: TaskScope) -> None:
    secured.tokens.lifetime = 5
    backend = opened(secured.settings())
    backend.set(task, "key", "1")
    secured.tokens.lifetime = 3600
    backend.set(task, "key", "2")
    first, second = secured.tokens.issued
    assert secured.authorizations() == [f"Bearer {first}", f"Bearer {second}"]


@pytest.mark.anyio
async def test_tokens_that_are_refused_together(secured: Secured, opened: BackendOf, task: TaskScope) -> None:
    """As after an identity's keys were replaced: the first to be refused asks anew for all, and none fails."""
    backend = opened(secured.settings())
    await backend.aset(task, "key", "1")
    secured.tokens.revoke()
    await asyncio.gather(*(backend.aset(task, f"k{number}", str(number)) for number in range(30)))
    assert await backend.aget(task, "k29") == "29"
    assert len(secured.tokens.issued) == 1


def test_tokens_that_stay_refused_are_an_error_at_once(secured: Secured, opened: BackendOf, task: TaskScope) -> None:
    backend = opened(secured.settings())
    with (
        secured.cloud.server.failing(secured.cloud.error(*secured.cloud.refused)),
        pytest.raises(StoreCredentialsError, match=r"(authError|AuthenticationFailed).*2 attempts") as caught,
    ):
        backend.set(task, "key", "1")
    assert not any(token in all_said(caught.value) for token in secured.tokens.issued)
    assert len(secured.tokens.issued) == 2
    backend.set(task, "key", "1")


def all_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_credentials_that_come_late(secured: Secured, opened: BackendOf, task: TaskScope) -> None:
    secured.found(False)
    with pytest.raises(StoreCredentialsError, match=r"no token of \w+'s was found.*_conn_id"):
        opened(secured.settings(timeout=1.5)).set(task, "key", "1")
    backend = opened(secured.settings())
    late = threading.Timer(0.2, secured.found, [True])
    late.start()
    backend.set(task, "key", "1")
    late.join()
    assert len(secured.tokens.issued) == 1


@pytest.mark.anyio
async def test_many_operations_without_credentials_are_told_of_them(
    secured: Secured, opened: BackendOf, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who wait for the first one's look-up do not make one each, one after the other."""
    for pause in "FIRST_PAUSE", "LONGEST_PAUSE":
        monkeypatch.setattr(retry, pause, 1)
    secured.found(False)
    backend = opened(secured.settings(timeout=3))
    told = await asyncio.gather(*(backend.aset(task, f"k{n}", "1") for n in range(20)), return_exceptions=True)
    assert {type(error) for error in told} == {StoreCredentialsError}


def test_a_service_that_gives_no_tokens(secured: Secured, opened: BackendOf, task: TaskScope) -> None:
    refused = faults.respond(
        "400 Bad Request",
        {"Content-Type": "application/json"},
        b'{"error":"invalid_grant","error_description":"the identity was deleted"}',
    )
    with (
        secured.tokens.failing(refused),
        pytest.raises(
            StoreCredentialsError, match=rf"{task.dag_id}.*(the identity was deleted|Token request error).*_conn_id"
        ),
    ):
        opened(secured.settings(timeout=2)).set(task, "key", "1")
    assert secured.cloud.server.requests == []


def test_a_batch_whose_token_was_revoked(secured: Secured, opened: BackendOf, task: TaskScope) -> None:
    backend = opened(secured.settings())
    for number in range(3):
        backend.set(task, f"k{number}", "1")
        backend.serialize_task_state_store_to_ref(value=1, key=f"k{number}", scope=task)

    def revoke(request: Request) -> None:
        if secured.cloud.word(request) == "list":
            secured.tokens.revoke()

    secured.cloud.asked()
    secured.cloud.server.intercept = revoke
    backend.clear(task)
    assert secured.cloud.asked() == ["list", "batch", "batch"]


def test_without_the_extra(
    secured: Secured, opened: BackendOf, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(secured.settings())
    extra = "gcs" if secured.cloud.scheme == "gs" else "azure"
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        return None if name in ("google.auth", "azure.identity") else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    operations: list[Callable[[], object]] = [
        lambda: backend.set(task, "key", "1"),
        lambda: backend.delete(task, "key"),
        lambda: backend.clear(task),
    ]
    for operation in operations:
        with pytest.raises(ConfigurationError, match=rf"pip install 'airflow-async-state\[{extra}\]'"):
            operation()
    assert secured.cloud.server.requests == []
