"""State in tasks and triggers, beyond what Airflow's own accessors can: coroutines, many keys, updates.

::

    state = AsyncStateStore(context["task_state_store"])
    await state.aset("job_id", job_id)
    await state.aupdate("rows", lambda rows: rows + 10, default=0)

`StateStore` has the same for plain tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import greenback

from async_state import compat, iothread
from async_state.supervised import SupervisedState
from async_state.unsupervised import UnsupervisedState

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import JsonValue

T = TypeVar("T")

#: How many operations on many keys run at once where the backend has no ``max_concurrency``.
_MAX_CONCURRENCY: Final = 24


class AsyncStateStore:
    """The state of one task or of one asset.

    Any number of the coroutines may be awaited at once. They raise the same errors as Airflow's accessors
    (`AirflowRuntimeError` for what the API server refuses), and the errors of the configured backend.

    By scope, as in a trigger, there is no supervisor and so no access to the rows in Airflow's database: keys are read
    and replaced in the store. A key that a task has not set can't be made there, none can be deleted, and values that
    stay in the database (``inline_threshold``, ``outage_inline_threshold``) are not found.

    Args:
        state: ``context["task_state_store"]``, ``context["asset_state_store"][ASSET]``, or
            ``context["asset_state_store"]`` in a task with exactly one asset; or a ``TaskScope`` or ``AssetScope``.

    Raises:
        TypeError: ``state`` is something else.
        ValueError: ``state`` is ``context["asset_state_store"]`` in a task with several assets or none.
    """

    def __init__(self, state: Any) -> None:
        self._state = UnsupervisedState(state) if compat.is_scope(state) else SupervisedState(state)

    @classmethod
    def of_task(cls, *, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> AsyncStateStore:
        """Return the state of a task, by scope.

        Args:
            dag_id: The Dag's id.
            run_id: The run's id.
            task_id: The task's id.
            map_index: The index of a mapped task instance; -1 = not mapped.
        """
        return cls(compat.task_scope(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index))

    async def aget(self, key: str, default: JsonValue = None) -> JsonValue:
        """Return the value of a key.

        Args:
            key: The key, of 1 to 512 characters.
            default: What is returned where there is no such key, and where the key's object is gone.

        Raises:
            AirflowRuntimeError: The API server refused the request.
            StoreError: The store failed.
        """
        return await self._state.get(key, default)

    async def aset(self, key: str, value: JsonValue, *, retention: timedelta | None = None) -> None:
        """Write or overwrite the value of a key. By scope, only the value of a key that exists.

        Args:
            key: The key, of 1 to 512 characters.
            value: Any JSON value but ``None``.
            retention: How long a task's state is kept, as in the SDK's ``set``: ``None`` for
                ``[state_store] default_retention_days``, or ``NEVER_EXPIRE``.

        Raises:
            ValueError: ``value`` is ``None``.
            TypeError: ``retention`` is given for an asset's state, which does not expire, or by scope.
            MissingKeyError: By scope, there is no such key: set it in the task before it defers.
            AirflowRuntimeError: The API server refused the request.
            StoreError: The store failed.
        """
        await self._state.set(key, value, retention=retention)

    async def adelete(self, key: str) -> None:
        """Delete a key. Nothing happens if there is no such key.

        Args:
            key: The key, of 1 to 512 characters.

        Raises:
            TypeError: This is state by scope, whose rows can't be deleted.
            AirflowRuntimeError: The API server refused the request.
            StoreError: The store failed; the database's row is deleted all the same.
        """
        await self._state.delete(key)

    async def aclear(self) -> None:
        """Delete all keys.

        Raises:
            TypeError: This is state by scope, whose rows can't be deleted.
            AirflowRuntimeError: The API server refused the request.
            StoreError: The store failed; the database's rows are deleted all the same.
        """
        await self._state.clear()

    async def aupdate(self, key: str, function: Callable[[Any], JsonValue], default: JsonValue = None) -> JsonValue:
        """Replace the value of a key by what ``function`` makes of it, so that no update by another is lost.

        The value is read, and written only if nobody wrote it meanwhile; else all begins anew, until
        ``[async_state] timeout`` is over. Any number of tasks, threads and processes may update one key at once. A
        plain ``set`` knows nothing of it: it overwrites what was updated meanwhile, and the first ``set`` of a key that
        is updated at the same moment may be lost. The key's row keeps the retention that the last ``set`` has given it.

        Args:
            key: The key, of 1 to 512 characters.
            function: Takes the value and returns the new one, any JSON value but ``None``. It may be called several
                times, so it must have no other effect.
            default: What ``function`` takes where there is no value.

        Returns:
            The new value.

        Raises:
            ConditionsError: The store ignores the conditions of a write, as some that speak S3 do. Nothing is written.
            ConflictError: Others wrote the key again and again until the time was over.
            MissingKeyError: By scope, there is no such key.
            AirflowRuntimeError: The API server refused the request.
            StoreError: The store failed, or the backend is a subclass that stores values in its own way.
        """
        return await self._state.update(key, function, default)

    async def akeys(self) -> list[str]:
        """Return the keys that have an object in the store, by listing them there.

        Values that stay in Airflow's database are not listed, nor are keys that take more than 200 bytes in an object's
        name, which a warning counts.

        Raises:
            StoreError: The store failed.
        """
        return await compat.own_worker_backend()._keys(self._state.scope)

    async def aget_many(self, keys: Iterable[str]) -> dict[str, JsonValue]:
        """Return the values of many keys. At most ``[async_state] max_concurrency`` are read at once.

        Args:
            keys: The keys. A key that is repeated is read once.

        Returns:
            The value of each key in the order of the keys, ``None`` where there is no such key.

        Raises:
            Exception: The first key that failed, in their order, raised it; the others were read all the same.
        """
        wanted = list(dict.fromkeys(keys))
        return dict(zip(wanted, await _all(self.aget, wanted), strict=True))

    async def aset_many(self, values: Mapping[str, JsonValue], *, retention: timedelta | None = None) -> None:
        """Write the values of many keys. At most ``[async_state] max_concurrency`` are written at once.

        Args:
            values: The value of each key.
            retention: As in `aset`, for all keys.

        Raises:
            Exception: The first key that failed, in their order, raised it; the others were written all the same.
        """

        async def set_(key: str) -> None:
            await self.aset(key, values[key], retention=retention)

        await _all(set_, values)

    async def adelete_many(self, keys: Iterable[str]) -> None:
        """Delete many keys. At most ``[async_state] max_concurrency`` are deleted at once.

        Args:
            keys: The keys. A key that is repeated is deleted once.

        Raises:
            Exception: The first key that failed, in their order, raised it; the others were deleted all the same.
        """
        await _all(self.adelete, dict.fromkeys(keys))


class StateStore:
    """The same as `AsyncStateStore`, for plain tasks: its methods wait.

    The store works on many keys at once; the supervisor, which keeps the rows, answers one question after the other
    meanwhile.

    Args:
        state: As for `AsyncStateStore`, with the same errors.
    """

    def __init__(self, state: Any) -> None:
        self._state = AsyncStateStore(state)

    @classmethod
    def of_task(cls, *, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> StateStore:
        """Return the state of a task, by scope. As `AsyncStateStore.of_task`."""
        return cls(compat.task_scope(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index))

    def get(self, key: str, default: JsonValue = None) -> JsonValue:
        """Blocking version of `AsyncStateStore.aget`."""
        return iothread.run(self._state.aget, key, default)

    def set(self, key: str, value: JsonValue, *, retention: timedelta | None = None) -> None:
        """Blocking version of `AsyncStateStore.aset`."""
        return iothread.run(self._state.aset, key, value, retention=retention)

    def delete(self, key: str) -> None:
        """Blocking version of `AsyncStateStore.adelete`."""
        return iothread.run(self._state.adelete, key)

    def clear(self) -> None:
        """Blocking version of `AsyncStateStore.aclear`."""
        return iothread.run(self._state.aclear)

    def update(self, key: str, function: Callable[[Any], JsonValue], default: JsonValue = None) -> JsonValue:
        """Blocking version of `AsyncStateStore.aupdate`."""
        return iothread.run(self._state.aupdate, key, function, default)

    def keys(self) -> list[str]:
        """Blocking version of `AsyncStateStore.akeys`."""
        return iothread.run(self._state.akeys)

    def get_many(self, keys: Iterable[str]) -> dict[str, JsonValue]:
        """Blocking version of `AsyncStateStore.aget_many`."""
        return _run_at_once(self._state.aget_many, keys)

    def set_many(self, values: Mapping[str, JsonValue], *, retention: timedelta | None = None) -> None:
        """Blocking version of `AsyncStateStore.aset_many`."""
        return _run_at_once(self._state.aset_many, values, retention=retention)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Blocking version of `AsyncStateStore.adelete_many`."""
        return _run_at_once(self._state.adelete_many, keys)


def _run_at_once(function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
    """Wait for a coroutine that has many operations in flight, which needs an event loop: one for this call."""
    if iothread.awaits_in_place():
        return greenback.await_(function(*args, **kwargs))
    call = partial(anyio.run, partial(function, *args, **kwargs))
    with compat.plain_task():
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return call()
        # A synchronous call in a coroutine, which blocks its event loop as such calls do.
        outcome: list[T] = []
        error: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(call())
            except BaseException as e:
                error.append(e)

        thread = Thread(target=partial(copy_context().run, work), daemon=True)
        thread.start()
        thread.join()
        if error:
            raise error[0]
        return outcome[0]


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
