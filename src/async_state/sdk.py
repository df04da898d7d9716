"""What the SDK's accessors hold and ask the supervisor: all that is private of them, in one place.

Read off task-sdk 1.3 and 1.4, whose messages are the same.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

import anyio.to_thread
from airflow.sdk.state import AssetScope

from async_state import compat

#: What the SDK wraps a reference in, before it goes to the database.
REF_MARKER: Final = "__airflow_state_ref__"


def worker_backend() -> Any:
    """Return the worker's state-store backend, made once a process, or ``None`` if none is configured."""
    from airflow.sdk.execution_time.context import _get_worker_state_store_backend

    return _get_worker_state_store_backend()


def supervisor() -> Any:
    """Return this process's channel to its supervisor."""
    from airflow.sdk.execution_time import task_runner

    return task_runner.SUPERVISOR_COMMS


async def call_hook(backend: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Await the backend's coroutine for the hook ``name``, or the hook itself, in a thread, where it has none."""
    coroutine = getattr(backend, f"a{name}", None)
    if coroutine is not None:
        return await coroutine(*args, **kwargs)
    return await anyio.to_thread.run_sync(partial(getattr(backend, name), *args, **kwargs))


def state_of(accessor: Any) -> TaskState | AssetState:
    """Return what the SDK's accessor asks the supervisor.

    Raises:
        TypeError: ``accessor`` is none of the SDK's.
        ValueError: it is the accessor of several assets.
    """
    from airflow.sdk.execution_time import context

    if isinstance(accessor, context.TaskStateStoreAccessor):
        return TaskState(accessor)
    if isinstance(accessor, context.AssetStateStoreAccessors):
        accessor = accessor._single_accessor()
    if isinstance(accessor, context.AssetStateStoreAccessor):
        return AssetState(accessor)
    raise TypeError(
        f"expected context['task_state_store'] or context['asset_state_store'][ASSET], not {type(accessor).__name__}"
    )


class TaskState:
    """The messages of ``TaskStateStoreAccessor``, which in task-sdk 1.3 sends them synchronously only."""

    serialize: Final = "serialize_task_state_store_to_ref"
    deserialize: Final = "deserialize_task_state_store_from_ref"

    def __init__(self, accessor: Any) -> None:
        from airflow.sdk.execution_time import comms

        self.accessor = accessor
        self.scope = accessor._scope
        self._ti_id = accessor._ti_id
        self._comms = comms

    def get(self, key: str) -> Any:
        """Ask for what is stored under ``key``."""
        return self._comms.GetTaskStateStore(ti_id=self._ti_id, key=key)

    def set(self, key: str, stored: Any, *, expires_at: datetime | None) -> Any:
        """Ask to store ``stored`` under ``key``."""
        return self._comms.SetTaskStateStore(ti_id=self._ti_id, key=key, value=stored, expires_at=expires_at)

    def delete(self, key: str) -> Any:
        """Ask to delete ``key``."""
        return self._comms.DeleteTaskStateStore(ti_id=self._ti_id, key=key)

    def clear(self) -> Any:
        """Ask to delete every key."""
        return self._comms.ClearTaskStateStore(ti_id=self._ti_id)

    def stored(self, response: Any) -> Any:
        """Return what the answer to `get` holds, ``None`` if there is nothing under the key."""
        return _stored(response, self._comms.TaskStateStoreResult, "TASK_STORE_NOT_FOUND")

    @staticmethod
    def expiry(retention: timedelta | None) -> dict[str, Any]:
        """Return `set`'s arguments for ``retention``, resolved here and now as the SDK's ``set`` does."""
        from airflow.sdk.execution_time.context import NEVER_EXPIRE

        now = datetime.now(tz=timezone.utc)
        if retention is NEVER_EXPIRE:
            return {"expires_at": None}
        if retention is not None:
            return {"expires_at": now + retention}
        days = compat.airflow_conf().getint("state_store", "default_retention_days")
        if days < 0:
            raise ValueError(f"[state_store] default_retention_days must not be negative, and is {days}; 0 = for ever")
        return {"expires_at": now + timedelta(days=days) if days else None}


class AssetState:
    """The messages of ``AssetStateStoreAccessor``."""

    serialize: Final = "serialize_asset_state_store_to_ref"
    deserialize: Final = "deserialize_asset_state_store_from_ref"

    def __init__(self, accessor: Any) -> None:
        from airflow.sdk.execution_time import comms

        self.accessor = accessor
        self.scope = AssetScope(name=accessor._name, uri=accessor._uri)
        self._by, self._asset = (
            ("Name", {"name": accessor._name}) if accessor._name else ("Uri", {"uri": accessor._uri})
        )
        self._comms = comms

    def get(self, key: str) -> Any:
        """Ask for what is stored under ``key``."""
        return self._message("Get", key=key)

    def set(self, key: str, stored: Any) -> Any:
        """Ask to store ``stored`` under ``key``."""
        return self._message("Set", key=key, value=stored)

    def delete(self, key: str) -> Any:
        """Ask to delete ``key``."""
        return self._message("Delete", key=key)

    def clear(self) -> Any:
        """Ask to delete every key."""
        return self._message("Clear")

    def stored(self, response: Any) -> Any:
        """Return what the answer to `get` holds, ``None`` if there is nothing under the key."""
        return _stored(response, self._comms.AssetStateStoreResult, "ASSET_STORE_NOT_FOUND")

    @staticmethod
    def expiry(retention: timedelta | None) -> dict[str, Any]:
        """Return `set`'s arguments for ``retention``: none, and none may be given."""
        if retention is not None:
            raise TypeError("an asset's state does not expire: leave out retention")
        return {}

    def _message(self, verb: str, **fields: Any) -> Any:
        return getattr(self._comms, f"{verb}AssetStateStoreBy{self._by}")(**self._asset, **fields)


def _stored(response: Any, found: type, not_found: str) -> Any:
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    if isinstance(response, found):
        return response.value  # type: ignore[attr-defined]
    if isinstance(response, ErrorResponse) and response.error != ErrorType[not_found]:
        raise AirflowRuntimeError(response)
    return None
