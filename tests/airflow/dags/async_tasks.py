"""State in ``async def`` tasks: see tests/airflow/test_accessors.py, which compares what each task returns."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import Any

import greenback
from airflow.sdk import DAG, Asset, Connection, get_current_context, task
from airflow.sdk.execution_time.comms import CommsDecoder
from airflow.sdk.execution_time.context import NEVER_EXPIRE, AssetStateStoreAccessor

from async_state import AsyncStateBackend, compat
from async_state.accessors import AsyncStateStore
from async_state.testing.loops import standstill

ORDERS = Asset(name="orders", uri="s3://orders/daily")
RETURNS = Asset(name="returns", uri="s3://returns/daily")
OVERLAPPING = 8
FALSY: dict[str, Any] = {"zero": 0, "false": False, "text": "", "list": [], "dict": {}}

#: What this process has asked its supervisor: when, what, of which key, on which thread.
ASKED: list[list[Any]] = []
#: What was asked by a call that blocks the thread of a running loop.
BLOCKED: list[str] = []

make_frame, send = CommsDecoder._make_frame, CommsDecoder.send


def recorded(self: Any, msg: Any) -> Any:
    ASKED.append([time.monotonic(), type(msg).__name__, getattr(msg, "key", None), threading.current_thread().name])
    return make_frame(self, msg)


def sent(self: Any, msg: Any) -> Any:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        BLOCKED.append(type(msg).__name__)
    return send(self, msg)


CommsDecoder._make_frame = recorded  # type: ignore[method-assign]
CommsDecoder.send = sent  # type: ignore[method-assign]


def accessor(of: str) -> Any:
    """Return the SDK's accessor of this task's state, or of its assets'."""
    return get_current_context()[of]  # type: ignore[literal-required]


async def error_of(call: Awaitable[Any]) -> list[str]:
    """Return the names of the classes of what the call raises, up to ``Exception``."""
    try:
        await call
    except Exception as e:
        names = [kind.__name__ for kind in type(e).__mro__]
        return names[: names.index("Exception")]
    return []


async def operations(state: Any) -> dict[str, Any]:
    """Return what the four operations of an accessor, or of `AsyncStateStore`, give."""
    found = {"missing": await state.aget("k"), "default": await state.aget("k", {"a": "default"})}
    await state.aset("k", "first")
    await state.aset("k", [1, {"nested": None}])
    found["value"] = await state.aget("k", "default")
    await state.adelete("k")
    await state.adelete("k")
    found["deleted"] = await state.aget("k", "default")
    await state.aset("one", 1)
    await state.aset("two", 2)
    await state.aclear()
    found["cleared"] = [await state.aget("one"), await state.aget("two", "default")]
    found["None"] = await error_of(state.aset("k", None))
    found["refused"] = await state.aget("k", "default")
    await state.aset("kept", {"value": "kept"})
    found["kept"] = await state.aget("kept")
    return found


async def many(state: AsyncStateStore) -> dict[str, Any]:
    """Return what the operations on many keys give, and those that only `AsyncStateStore` refuses."""
    await state.aset_many(FALSY)
    found: dict[str, Any] = {"read": await state.aget_many([*FALSY, "missing", "zero"])}
    await state.adelete_many([*FALSY, "missing"])
    found["all deleted"] = await state.aget_many(FALSY)
    found["some"] = await error_of(state.aset_many({"k1": 1, "k2": None, "k3": 3}))
    found["the others"] = await state.aget_many(["k1", "k2", "k3"])
    found["too long"] = await error_of(state.aset("k" * 513, 1))
    nobodys = AsyncStateStore(AssetStateStoreAccessor(name="nobody's"))
    for name, call in ("aget", nobodys.aget("k")), ("aset", nobodys.aset("k", 1)), ("adelete", nobodys.adelete("k")):
        found[f"nobody's {name}"] = await error_of(call)
    if isinstance(backend := compat.worker_backend(), AsyncStateBackend):
        await state.aset("gone", "gone")
        await backend.adelete(state._state.scope, "gone")
        found["gone"] = [await state.aget("gone"), await state.aget("gone", "default")]
        found["denied"] = await error_of(state.aset("denied", 1))
    return found


@task(multiple_outputs=False)
async def task_state() -> dict[str, Any]:
    state = AsyncStateStore(accessor("task_state_store"))
    found = {**await operations(state), **await many(state)}
    await state.aset("hours", 1, retention=timedelta(hours=6))
    await state.aset_many({"never": 1}, retention=NEVER_EXPIRE)
    found["asked"] = ASKED
    return found


@task(multiple_outputs=False, outlets=[ORDERS, RETURNS])
async def asset_state() -> dict[str, Any]:
    of_assets = accessor("asset_state_store")
    orders, returns = AsyncStateStore(of_assets[ORDERS]), AsyncStateStore(of_assets[RETURNS])
    await returns.aset("kept", "returns")
    found = {**await operations(orders), **await many(orders)}
    found["returns"] = await returns.aget_many(["kept", "one"])
    found["retention"] = await error_of(orders.aset("k", 1, retention=timedelta(1)))
    for key, other in ("several", of_assets), ("no accessor", object()):
        try:
            AsyncStateStore(other)
        except (TypeError, ValueError) as e:
            found[key] = f"{type(e).__name__}: {e}"
    found["asked"] = ASKED
    # What a backend without coroutines was called on.
    found["threads"] = sorted(getattr(compat.worker_backend(), "THREADS", ()))
    return found


@task(multiple_outputs=False, inlets=[ORDERS])
async def single_asset() -> dict[str, Any]:
    found = await operations(AsyncStateStore(accessor("asset_state_store")))
    found["without sugar"] = await AsyncStateStore(accessor("asset_state_store")[ORDERS]).aget("kept")
    return found


@task(multiple_outputs=False, outlets=[ORDERS])
async def ordered() -> dict[str, Any]:
    for state in AsyncStateStore(accessor("task_state_store")), AsyncStateStore(accessor("asset_state_store")):
        await state.aset("k", 1)
        await state.adelete("k")
        await state.aset("k", 1)
        await state.aclear()
    return {"asked": ASKED}


@task(multiple_outputs=False)
async def undeletable() -> dict[str, Any]:
    """The store deletes nothing."""
    state = AsyncStateStore(accessor("task_state_store"))
    await state.aset_many({"one": 1, "two": 2, "three": 3})
    found: dict[str, Any] = {"delete": await error_of(state.adelete("one"))}
    found["after delete"] = await state.aget_many(["one", "two", "three"])
    found["clear"] = await error_of(state.aclear())
    found["after clear"] = await state.aget_many(["two", "three"])
    return found


@task(multiple_outputs=False)
async def sdk_task_state() -> dict[str, Any]:
    state = accessor("task_state_store")
    found = await operations(state)
    await state.aset("hours", 1, retention=timedelta(hours=6))
    await state.aset("never", 1, retention=NEVER_EXPIRE)
    return found


@task(multiple_outputs=False, outlets=[ORDERS])
async def sdk_asset_state() -> dict[str, Any]:
    return await operations(accessor("asset_state_store"))


async def timed(*calls: Awaitable[Any]) -> dict[str, float]:
    """Await the calls at once; return how long it took, and for how long at most the loop stood still meanwhile."""
    began = time.monotonic()
    async with standstill() as found:
        await asyncio.gather(*calls)
    return {"seconds": time.monotonic() - began, "gap": found.seconds}


@task(multiple_outputs=False, outlets=[ORDERS])
async def overlap() -> dict[str, Any]:
    """Every request for a key that begins with ``slow`` takes the store half a second."""
    orders = accessor("asset_state_store")[ORDERS]
    await orders.aset("first", 0)
    keys = [f"slow-{i}" for i in range(OVERLAPPING)]
    found: dict[str, Any] = {"aset": await timed(*(orders.aset(key, key) for key in keys))}

    async def get(key: str) -> None:
        assert await orders.aget(key) == key

    # Where the SDK calls the hooks on the loop, this is what helps.
    found["aget"] = await timed(*(greenback.with_portal_run(get, key) for key in keys))
    return found


@contextlib.asynccontextmanager
async def asking() -> AsyncIterator[None]:
    """Enter the block while a question to the supervisor is in flight, up to the block's first suspension."""
    question = asyncio.create_task(Connection.async_get("other"))
    while not compat.supervisor()._thread_lock.locked():
        await asyncio.sleep(0)
    yield
    assert (await question).login == "other"


def report(**found: Any) -> dict[str, Any]:
    """Return what was found, and what the supervisor was asked, on which threads."""
    questions = {what for _, what, *_ in ASKED}
    threads = {thread for *_, thread in ASKED}
    return {**found, "questions": sorted(questions), "threads": sorted(threads), "blocked": BLOCKED}


@task(multiple_outputs=False, outlets=[ORDERS])
async def connected_async() -> dict[str, Any]:
    """The first use of the connection, with a question in flight; and then everything at once."""
    orders = accessor("asset_state_store")[ORDERS]
    await greenback.ensure_portal()
    async with asking():
        await orders.aset("first", 1)
    at_once = [Connection.async_get("other"), orders.aset("a", 1), orders.aset("b", 2), orders.aget("first")]
    _, _, _, first, *_ = await asyncio.gather(*at_once, *(Connection.async_get("other") for _ in range(3)))
    return report(values=[first, await orders.aget("a"), await orders.aget("b")])


@task(multiple_outputs=False, outlets=[ORDERS])
async def connected_without_portal() -> dict[str, Any]:
    orders = accessor("asset_state_store")[ORDERS]
    message = ""
    async with asking():
        try:
            await orders.aset("refused", 1)
        except ValueError as e:
            message = f"{type(e).__name__}: {e}"
    # What the message says to do instead.
    async with asking():
        await AsyncStateStore(orders).aset("awaited", 2)
    return report(values=[await orders.aget("refused"), await orders.aget("awaited")], message=message)


@task(multiple_outputs=False, outlets=[ORDERS])
def connected_sync() -> dict[str, Any]:
    state = accessor("task_state_store")
    orders = accessor("asset_state_store")[ORDERS]
    state.set("k", 1)
    orders.set("k", 2)
    return report(values=[state.get("k"), orders.get("k")])


with DAG("async_store", schedule=None):
    task_state()
    # Both write to the same asset.
    asset_state() >> single_asset()

with DAG("async_ordered", schedule=None):
    ordered()

with DAG("async_undeletable", schedule=None):
    undeletable()

with DAG("async_accessors", schedule=None):
    sdk_task_state()
    sdk_asset_state()
    overlap()

with DAG("async_asset_accessors", schedule=None):
    sdk_asset_state()
    overlap()

with DAG("async_connection", schedule=None):
    connected_async()
    connected_without_portal()
    connected_sync()
