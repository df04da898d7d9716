"""Replacement methods for the SDK's accessors, until the SDK does what apache/airflow#72129 asks.

In ``airflow.sdk.execution_time.context``, up to task-sdk 1.4's pre-releases, ``aget`` and ``aset`` call a backend's
synchronous hooks on the event loop. In task-sdk 1.3 ``TaskStateStoreAccessor`` has no ``aget``, ``aset``, ``adelete``
and ``aclear`` at all, and up to 1.3.1 the accessors of assets have none either. All four need a supervisor with
``asend``, which that of ``dag.test()`` does not have. The replacements are one line over `AsyncStateStore` each. They
are not installed where the SDK awaits a backend's coroutines itself.

This module is not part of the public interface.
"""

from __future__ import annotations

from typing import Any

from async_state import compat
from async_state.accessors import AsyncStateStore


async def _aget(self: Any, key: str, default: Any = None) -> Any:
    """Return the value for ``key``, or ``default`` if there is none, without blocking the event loop."""
    return await AsyncStateStore(self).aget(key, default)


async def _aset_task(self: Any, key: str, value: Any, *, retention: Any = None) -> None:
    """Write or overwrite the value for ``key`` without blocking the event loop."""
    await AsyncStateStore(self).aset(key, value, retention=retention)


async def _aset_asset(self: Any, key: str, value: Any) -> None:
    """Write or overwrite the value for ``key`` without blocking the event loop."""
    await AsyncStateStore(self).aset(key, value)


async def _adelete(self: Any, key: str) -> None:
    """Delete ``key`` without blocking the event loop. Nothing happens if there is no such key."""
    await AsyncStateStore(self).adelete(key)


async def _aclear(self: Any) -> None:
    """Delete all keys without blocking the event loop."""
    await AsyncStateStore(self).aclear()


def install() -> list[str]:
    """Replace the coroutines of the SDK's accessors, add those that are missing, and return the names of both."""
    if compat.sdk_awaits_hooks():
        return []
    of_task, of_asset, of_assets = compat.accessor_classes()
    changed = []
    for accessor, aset, replaced in (
        (of_task, _aset_task, True),
        (of_asset, _aset_asset, True),
        # It delegates to the accessor of its only asset.
        (of_assets, _aset_asset, False),
    ):
        for name, method in ("aget", _aget), ("aset", aset), ("adelete", _adelete), ("aclear", _aclear):
            if replaced or not hasattr(accessor, name):
                setattr(accessor, name, method)
                changed.append(f"{accessor.__name__}.{name}")
    return changed


def are_installed() -> bool:
    """Tell whether `install` has replaced the coroutines in this process."""
    of_task, of_asset, _ = compat.accessor_classes()
    return all(getattr(accessor, "aget", None) is _aget for accessor in (of_task, of_asset))
