"""Coroutines over Airflow's state accessors, for async tasks and for whoever wants many keys at once.

::

    state = AsyncStateStore(context["task_state_store"])
    await state.aset("job_id", job_id)

They ask the supervisor as the SDK's own accessors do, and in their order: ``set`` writes to the backend and then to the
database, ``delete`` and ``clear`` the other way round. Where the SDK's accessors await a backend's coroutines
themselves, they hand over to those.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from async_state import compat, sdk

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import JsonValue

log = logging.getLogger(__name__)


class AsyncStateStore:
    """One task's or one asset's state.

    Parameters:
        accessor: ``context["task_state_store"]``, ``context["asset_state_store"][ASSET]``, or
            ``context["asset_state_store"]`` of a task with one asset.

    Raises:
        TypeError: ``accessor`` is something else.

    All methods raise what Airflow's accessors do (`AirflowRuntimeError` for what the API server refuses), and the
    configured backend's own errors. Any number of them may be awaited at once: the backend bounds its requests by
    ``[async_state] max_concurrency``, and the supervisor is asked one thing at a time.
    """

    def __init__(self, accessor: Any) -> None:
        self._sdk = sdk.state_of(accessor)

    async def aget(self, key: str, default: JsonValue = None) -> JsonValue:
        """Return the value, or ``default`` where there is none, or where a reference's object is gone."""
        if compat.sdk_awaits_hooks():
            value: JsonValue = await self._sdk.accessor.aget(key, default)
        else:
            value = await self._value(await self._ask(self._sdk.get(key)), key)
        return default if value is None else value

    async def aset(self, key: str, value: JsonValue, *, retention: timedelta | None = None) -> None:
        """Write or overwrite the value.

        Parameters:
            key: 1 to 512 characters.
            value: any JSON value but ``None``.
            retention: as in the SDK's ``set``, ``NEVER_EXPIRE`` included. For a task's state only.

        Raises:
            ValueError: ``value`` is ``None``.
            TypeError: ``retention`` is given for an asset's state, which does not expire.
        """
        expiry = self._sdk.expiry(retention)
        if compat.sdk_awaits_hooks():
            await self._sdk.accessor.aset(key, value, **({} if retention is None else {"retention": retention}))
            return
        if value is None:
            raise ValueError("a state value must not be None; delete the key instead")
        stored = value
        if (backend := sdk.worker_backend()) is not None:
            ref = await sdk.call_hook(backend, self._sdk.serialize, value=value, key=key, scope=self._sdk.scope)
            stored = {sdk.REF_MARKER: ref}
        await self._ask(self._sdk.set(key, stored, **expiry))

    async def adelete(self, key: str) -> None:
        """Delete the key; no-op if there is none."""
        await self._ask(self._sdk.delete(key))
        if (backend := sdk.worker_backend()) is not None:
            await backend.adelete(self._sdk.scope, key)

    async def aclear(self) -> None:
        """Delete all keys."""
        await self._ask(self._sdk.clear())
        if (backend := sdk.worker_backend()) is not None:
            await backend.aclear(self._sdk.scope)

    async def aget_many(self, keys: Iterable[str]) -> dict[str, JsonValue]:
        """Return each key's value, ``None`` where there is none. The requests overlap."""
        wanted = list(dict.fromkeys(keys))
        return dict(zip(wanted, await _all(self.aget(key) for key in wanted), strict=True))

    async def aset_many(self, values: Mapping[str, JsonValue], *, retention: timedelta | None = None) -> None:
        """Write each key's value. The requests overlap; where some fail, the others are made all the same.

        Raises:
            Exception: what the first of those that failed raised.
        """
        await _all(self.aset(key, value, retention=retention) for key, value in values.items())

    async def adelete_many(self, keys: Iterable[str]) -> None:
        """Delete each key. The requests overlap; errors as in `aset_many`."""
        await _all(self.adelete(key) for key in dict.fromkeys(keys))

    @staticmethod
    async def _ask(message: Any) -> Any:
        return await sdk.supervisor().asend(message)

    async def _value(self, response: Any, key: str) -> JsonValue:
        stored: JsonValue = self._sdk.stored(response)
        backend = sdk.worker_backend()
        if backend is None or stored is None:
            return stored
        if isinstance(stored, dict) and (ref := stored.get(sdk.REF_MARKER)):
            value: JsonValue = await sdk.call_hook(backend, self._sdk.deserialize, ref)
            return value
        log.warning("State key %r was not written through the configured backend; its raw value is returned", key)
        return stored


async def _all(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Await all, whatever becomes of the others, and raise the first error."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes
