"""Coroutines over Airflow's state accessors, for async tasks and for code that works on many keys at once.

::

    state = AsyncStateStore(context["task_state_store"])
    await state.aset("job_id", job_id)

The coroutines send the supervisor the same messages as the SDK's own accessors, in the same order: ``set`` writes to
the backend and then to the database, ``delete`` and ``clear`` do the reverse. Where the SDK's accessors await a
backend's coroutines themselves, the coroutines here call those accessors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from async_state import compat

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import JsonValue

T = TypeVar("T")

log = logging.getLogger(__name__)

#: How many operations on many keys run at once where the backend has no ``max_concurrency``.
_MAX_CONCURRENCY: Final = 24


class AsyncStateStore:
    """The state of one task or of one asset.

    Any number of the coroutines may be awaited at once. They raise the same errors as Airflow's accessors
    (`AirflowRuntimeError` for what the API server refuses), and the errors of the configured backend.

    Args:
        accessor: ``context["task_state_store"]``, ``context["asset_state_store"][ASSET]``, or
            ``context["asset_state_store"]`` in a task with exactly one asset.

    Raises:
        TypeError: ``accessor`` is something else.
        ValueError: ``accessor`` is ``context["asset_state_store"]`` in a task with several assets or none.
    """

    def __init__(self, accessor: Any) -> None:
        self._sdk = compat.state_of(accessor)

    async def aget(self, key: str, default: JsonValue = None) -> JsonValue:
        """Return the value of a key.

        Args:
            key: The key, of 1 to 512 characters.
            default: What is returned where there is no such key, and where the key's object is gone.

        Raises:
            AirflowRuntimeError: the API server refused the request.
            StoreError: the store failed.
        """
        if compat.sdk_awaits_hooks():
            value: JsonValue = await self._sdk.accessor.aget(key, default)
        else:
            value = await self._value(await compat.ask(self._sdk.get(key)), key)
        return default if value is None else value

    async def aset(self, key: str, value: JsonValue, *, retention: timedelta | None = None) -> None:
        """Write or overwrite the value of a key.

        Args:
            key: The key, of 1 to 512 characters.
            value: Any JSON value but ``None``.
            retention: How long a task's state is kept, as in the SDK's ``set``: ``None`` for
                ``[state_store] default_retention_days``, or ``NEVER_EXPIRE``.

        Raises:
            ValueError: ``value`` is ``None``.
            TypeError: ``retention`` is given for an asset's state, which does not expire.
            AirflowRuntimeError: the API server refused the request.
            StoreError: the store failed.
        """
        expiry = self._sdk.expiry(retention)
        if compat.sdk_awaits_hooks():
            await self._sdk.accessor.aset(key, value, **({} if retention is None else {"retention": retention}))
            return
        if value is None:
            raise ValueError("a state value must not be None; delete the key instead")
        stored = value
        if (backend := compat.worker_backend()) is not None:
            ref = await compat.call_hook(backend, self._sdk.serialize, value=value, key=key, scope=self._sdk.scope)
            stored = {compat.REF_MARKER: ref}
        await compat.ask(self._sdk.set(key, stored, **expiry))

    async def adelete(self, key: str) -> None:
        """Delete a key. Nothing happens if there is no such key.

        Args:
            key: The key, of 1 to 512 characters.

        Raises:
            AirflowRuntimeError: the API server refused the request.
            StoreError: the store failed; the database's row is deleted all the same.
        """
        await compat.ask(self._sdk.delete(key))
        if (backend := compat.worker_backend()) is not None:
            await compat.call_hook(backend, "delete", self._sdk.scope, key)

    async def aclear(self) -> None:
        """Delete all keys.

        Raises:
            AirflowRuntimeError: the API server refused the request.
            StoreError: the store failed; the database's rows are deleted all the same.
        """
        await compat.ask(self._sdk.clear())
        if (backend := compat.worker_backend()) is not None:
            await compat.call_hook(backend, "clear", self._sdk.scope)

    async def aget_many(self, keys: Iterable[str]) -> dict[str, JsonValue]:
        """Return the values of many keys. At most ``[async_state] max_concurrency`` are read at once.

        Args:
            keys: The keys. A key that is repeated is read once.

        Returns:
            The value of each key in the order of the keys, ``None`` where there is no such key.

        Raises:
            Exception: the first key that failed, in their order, raised it; the others were read all the same.
        """
        wanted = list(dict.fromkeys(keys))
        return dict(zip(wanted, await _all(self.aget, wanted), strict=True))

    async def aset_many(self, values: Mapping[str, JsonValue], *, retention: timedelta | None = None) -> None:
        """Write the values of many keys. At most ``[async_state] max_concurrency`` are written at once.

        Args:
            values: The value of each key.
            retention: As in `aset`, for all keys.

        Raises:
            Exception: the first key that failed, in their order, raised it; the others were written all the same.
        """

        async def set_(key: str) -> None:
            await self.aset(key, values[key], retention=retention)

        await _all(set_, values)

    async def adelete_many(self, keys: Iterable[str]) -> None:
        """Delete many keys. At most ``[async_state] max_concurrency`` are deleted at once.

        Args:
            keys: The keys. A key that is repeated is deleted once.

        Raises:
            Exception: the first key that failed, in their order, raised it; the others were deleted all the same.
        """
        await _all(self.adelete, dict.fromkeys(keys))

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


async def _all(operation: Callable[[str], Coroutine[Any, Any, T]], keys: Iterable[str]) -> list[T]:
    """Await the operation on all keys, whatever becomes of the others, and raise the first error.

    An operation's timeout counts from its call, so those that have to wait are not called yet.
    """
    settings = getattr(compat.worker_backend(), "_settings", None)
    slots = asyncio.Semaphore(getattr(settings, "max_concurrency", _MAX_CONCURRENCY))

    async def call(key: str) -> T:
        async with slots:
            return await operation(key)

    outcomes = await asyncio.gather(*map(call, keys), return_exceptions=True)
    results = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
