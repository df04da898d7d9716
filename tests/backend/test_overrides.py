"""What a subclass overrides counts, however Airflow and our accessors call it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings


class Encrypting(AsyncStateBackend):
    """Overrides what Airflow documents: the synchronous hooks."""

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        return super().serialize_task_state_store_to_ref(value=f"encrypted {value}", key=key, scope=scope)

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        return str(super().deserialize_task_state_store_from_ref(stored)).removeprefix("encrypted ")


class AsyncEncrypting(AsyncStateBackend):
    """Overrides coroutines alone."""

    async def aserialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        return await super().aserialize_task_state_store_to_ref(value=f"encrypted {value}", key=key, scope=scope)

    async def adeserialize_task_state_store_from_ref(self, stored: str) -> Any:
        found = await super().adeserialize_task_state_store_from_ref(stored)
        return str(found).removeprefix("encrypted ")


class Both(Encrypting, AsyncEncrypting):
    """Overrides each of a pair, and so each once."""


class ThroughMixin(Encrypting):
    """Inherits what another subclass overrides."""


@pytest.fixture(params=[Encrypting, AsyncEncrypting, Both, ThroughMixin])
def backend(request: pytest.FixtureRequest) -> Iterator[AsyncStateBackend]:
    with request.param(Settings(url="memory://overrides")) as backend:
        yield backend


def blocking(coroutine: Callable[..., Any], **given: Any) -> Any:
    backend = coroutine.__self__  # type: ignore[attr-defined]
    return getattr(backend, coroutine.__name__[1:])(**given)


def awaiting(coroutine: Callable[..., Any], **given: Any) -> Any:
    return asyncio.run(coroutine(**given))


@pytest.mark.parametrize("get", [blocking, awaiting])
@pytest.mark.parametrize("set_", [blocking, awaiting])
def test_both_ways_call_what_is_overridden_once(
    backend: AsyncStateBackend, set_: Callable[..., Any], get: Callable[..., Any], task: TaskScope
) -> None:
    ref = set_(backend.aserialize_task_state_store_to_ref, value="value", key="key", scope=task)
    assert AsyncStateBackend(Settings(url="memory://overrides")).deserialize_task_state_store_from_ref(ref) == (
        "encrypted value"
    )
    assert get(backend.adeserialize_task_state_store_from_ref, stored=ref) == "value"


class Counting(AsyncStateBackend):
    """Overrides every synchronous method."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.called: list[str] = []


def _counting(name: str) -> Callable[..., Any]:
    def method(self: Counting, *args: Any, **kwargs: Any) -> Any:
        self.called.append(name)
        return getattr(super(Counting, self), name)(*args, **kwargs)

    return method


HOOKS = {
    "get": ("key",),
    "set": ("key", "1"),
    "delete": ("key",),
    "clear": (),
}
for _name in HOOKS:
    setattr(Counting, _name, _counting(_name))


@pytest.mark.parametrize("name", HOOKS)
def test_the_servers_side_too(name: str, task: TaskScope) -> None:
    backend = Counting(Settings(url="memory://overrides"))
    asyncio.run(getattr(backend, f"a{name}")(task, *HOOKS[name]))
    getattr(backend, name)(task, *HOOKS[name])
    assert backend.called == [name, name]


@pytest.mark.anyio
async def test_an_override_that_blocks_blocks_no_loop(task: TaskScope) -> None:
    """It runs in a thread, where it may wait for what the loop does."""
    loop = asyncio.get_running_loop()

    class Waiting(AsyncStateBackend):
        def get(self, scope: Any, key: str, *, session: Any = None) -> str | None:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
            return super().get(scope, key)

    assert await Waiting(Settings(url="memory://overrides")).aget(task, "key") is None
