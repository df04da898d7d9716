"""Stands in for what apache/airflow#72129 asks of the SDK: accessors that await a backend's coroutines.

``airflow.sdk.execution_time.context``, up to task-sdk 1.4's pre-releases: ``AssetStateStoreAccessor.aget`` and ``aset``
(in 1.4 the task accessor's too) call a backend's synchronous hooks on the event loop, in ``_extract_get_response`` and
``_build_set_message``. In 1.3 ``TaskStateStoreAccessor`` has no ``aget``, ``aset``, ``adelete`` and ``aclear``, nor, up
to 1.3.1, have those of assets. They get methods that are one line over `AsyncStateStore`, unless the SDK awaits the
hooks itself.
"""

from __future__ import annotations

from typing import Any

from async_state import compat
from async_state.accessors import AsyncStateStore


async def _aget(self: Any, key: str, default: Any = None) -> Any:
    """Return the value for ``key``, or ``default``; awaits the backend's coroutine."""
    return await AsyncStateStore(self).aget(key, default)


async def _aset_task(self: Any, key: str, value: Any, *, retention: Any = None) -> None:
    """Write or overwrite the value for ``key``; awaits the backend's coroutine."""
    await AsyncStateStore(self).aset(key, value, retention=retention)


async def _aset_asset(self: Any, key: str, value: Any) -> None:
    """Write or overwrite the value for ``key``; awaits the backend's coroutine."""
    await AsyncStateStore(self).aset(key, value)


async def _adelete(self: Any, key: str) -> None:
    """Delete ``key``; awaits the backend's coroutine."""
    await AsyncStateStore(self).adelete(key)


async def _aclear(self: Any) -> None:
    """Delete all keys; awaits the backend's coroutine."""
    await AsyncStateStore(self).aclear()


def install() -> list[str]:
    """Give the SDK's accessors awaiting methods where theirs block or are missing, and return which."""
    from airflow.sdk.execution_time import context

    if compat.sdk_awaits_hooks():
        return []
    given = []
    for accessor, aset, blocks in (
        (context.TaskStateStoreAccessor, _aset_task, True),
        (context.AssetStateStoreAccessor, _aset_asset, True),
        # Hands over to the accessor of its only asset.
        (context.AssetStateStoreAccessors, _aset_asset, False),
    ):
        for name, method in ("aget", _aget), ("aset", aset), ("adelete", _adelete), ("aclear", _aclear):
            if (blocks and name in ("aget", "aset")) or not hasattr(accessor, name):
                setattr(accessor, name, method)
                given.append(f"{accessor.__name__}.{name}")
    return given
