"""State through an accessor: rows by the task's supervisor, values by the configured backend.

The coroutines send the supervisor the same messages as the SDK's own accessors, in the same order: ``set`` writes to
the backend and then to the database, ``delete`` and ``clear`` do the reverse. Where the SDK's accessors await a
backend's coroutines themselves, the coroutines here call those accessors. This module is not part of the public
interface.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from async_state import compat, updates

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import JsonValue

log = logging.getLogger(__name__)


class SupervisedState:
    """The state of one task or of one asset. `AsyncStateStore` says what its coroutines do.

    Args:
        accessor: Airflow's.
    """

    def __init__(self, accessor: Any) -> None:
        self._sdk = compat.state_of(accessor)
        self.scope = self._sdk.scope

    async def get(self, key: str, default: JsonValue) -> JsonValue:
        """As `AsyncStateStore.aget`."""
        if compat.sdk_awaits_hooks():
            value: JsonValue = await self._sdk.accessor.aget(key, default)
        else:
            value = await self._value(await compat.ask(self._sdk.get(key)), key)
        return default if value is None else value

    async def set(self, key: str, value: JsonValue, *, retention: timedelta | None) -> None:
        """As `AsyncStateStore.aset`."""
        expiry = self._sdk.expiry(retention)
        if compat.sdk_awaits_hooks():
            await self._sdk.accessor.aset(key, value, **({} if retention is None else {"retention": retention}))
            return
        if value is None:
            raise ValueError("a state value must not be None; delete the key instead")
        stored = value
        if (backend := compat.worker_backend()) is not None:
            ref = await compat.call_hook(backend, self._sdk.serialize, value=value, key=key, scope=self.scope)
            stored = {compat.REF_MARKER: ref}
        await compat.ask(self._sdk.set(key, stored, **expiry))

    async def delete(self, key: str) -> None:
        """As `AsyncStateStore.adelete`."""
        await compat.ask(self._sdk.delete(key))
        if (backend := compat.worker_backend()) is not None:
            await compat.call_hook(backend, "delete", self.scope, key)

    async def clear(self) -> None:
        """As `AsyncStateStore.aclear`."""
        await compat.ask(self._sdk.clear())
        if (backend := compat.worker_backend()) is not None:
            await compat.call_hook(backend, "clear", self.scope)

    async def update(self, key: str, function: Callable[[Any], JsonValue], default: JsonValue) -> JsonValue:
        """As `AsyncStateStore.aupdate`."""
        backend = compat.own_worker_backend()
        return await backend._update(self.scope, key, _Row(self, key), function, default)

    async def _value(self, response: Any, key: str) -> JsonValue:
        stored: JsonValue = self._sdk.stored(response)
        ref = stored.get(compat.REF_MARKER) if isinstance(stored, dict) else None
        backend = compat.worker_backend()
        if backend is None:
            if ref:
                log.warning(
                    "State key %r holds a reference, which is returned instead of its value: set [workers] "
                    "state_store_backend here as where the key was written",
                    key,
                )
            return stored
        if ref:
            value: JsonValue = await compat.call_hook(backend, self._sdk.deserialize, ref)
            return value
        if stored is not None:
            log.warning(
                "State key %r was not written through the configured backend; its row is returned as it is", key
            )
        return stored


class _Row:
    """A key's row, for `updates.update`."""

    def __init__(self, state: SupervisedState, key: str) -> None:
        self._state = state
        self._key = key
        self._ref = compat.own_worker_backend()._ref(state.scope, key)

    async def read(self) -> updates.Row:
        sdk = self._state._sdk
        response = await compat.ask(sdk.get(self._key))
        stored = sdk.stored(response)
        if isinstance(stored, dict) and stored.get(compat.REF_MARKER) == self._ref:
            return updates.Row(here=True)
        return updates.Row(here=False, value=await self._state._value(response, self._key))

    async def refer(self) -> None:
        sdk = self._state._sdk
        await compat.ask(sdk.set(self._key, {compat.REF_MARKER: self._ref}, **sdk.expiry(None)))
