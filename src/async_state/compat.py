"""All that this package knows of Airflow's versions and of the SDK's private names.

The messages to the supervisor are read off task-sdk 1.3 and 1.4, where they are the same. This module is not part of
the public interface.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
from airflow.sdk.state import AssetScope, BaseStoreBackend, TaskScope

from async_state import iothread
from async_state.errors import ConfigurationError

if TYPE_CHECKING:
    from async_state.backend import AsyncStateBackend

    StoreBackend = BaseStoreBackend
else:
    # The API server requires a subclass of airflow-core's own copy of the class. A worker may have no airflow-core.
    try:
        from airflow._shared.state import BaseStoreBackend as CoreStoreBackend
    except ImportError:
        StoreBackend = BaseStoreBackend
    else:
        # One copy may become an alias of the other.
        _bases = tuple(dict.fromkeys((BaseStoreBackend, CoreStoreBackend)))
        StoreBackend = type("StoreBackend", _bases, {"__doc__": BaseStoreBackend.__doc__})

#: The SDK wraps a reference in a dict with this key before it sends the reference to the database.
REF_MARKER: Final = "__airflow_state_ref__"

_in_plain_task: ContextVar[bool] = ContextVar("async_state_in_plain_task", default=False)

_ACCESSORS: Final = ("TaskStateStoreAccessor", "AssetStateStoreAccessor", "AssetStateStoreAccessors")


def airflow_conf() -> Any:
    """Return Airflow's configuration, which the SDK reads in the same way in every component."""
    from airflow.sdk.configuration import conf

    return conf


def clear_on_success() -> bool:
    """Return whether a task's success clears its state (``[state_store] clear_on_success``)."""
    return bool(airflow_conf().getboolean("state_store", "clear_on_success", fallback=False))


def before_commands(callback: Callable[..., None]) -> None:
    """Have Airflow's command line call ``callback`` in its own process before it runs a command.

    Airflow passes keyword arguments, of which ``full_command`` is the command line, and logs what the callback raises.
    """
    from airflow.utils.cli_action_loggers import register_pre_exec_callback

    register_pre_exec_callback(callback)  # type: ignore[no-untyped-call]


def load_plugins() -> tuple[set[str], dict[str, str]]:
    """Have Airflow load its plugins, as each component does, and return their names and the errors of others."""
    from airflow.sdk.plugins_manager import _get_plugins

    plugins, errors = _get_plugins()
    return {str(plugin.name) for plugin in plugins}, errors


def sdk_awaits_hooks() -> bool:
    """Return whether the SDK's own accessors await a backend's ``aserialize_…`` and ``adeserialize_…``.

    No release does so yet. apache/airflow#72129 proposes these names.
    """
    return hasattr(BaseStoreBackend, "aserialize_task_state_store_to_ref")


def accessor_classes() -> tuple[Any, ...]:
    """Return the SDK's accessor classes: of a task, of one asset, and of all assets of a task."""
    from airflow.sdk.execution_time import context

    return tuple(getattr(context, name) for name in _ACCESSORS)


def worker_backend() -> Any:
    """Return the worker's state-store backend, of which a process has one, or ``None`` if none is configured."""
    from airflow.sdk.execution_time.context import _get_worker_state_store_backend

    return _get_worker_state_store_backend()


def configured_backend() -> Any:
    """Return what ``[workers] state_store_backend`` names, without making one, or ``None`` if the option is empty.

    Raises:
        ImportError: It can't be imported.
    """
    from airflow.sdk._shared.module_loading import import_string

    name = airflow_conf().get("workers", "state_store_backend", fallback="")
    return import_string(name) if name else None


def own_worker_backend() -> AsyncStateBackend:
    """Return the worker's state-store backend if it is this package's.

    Raises:
        ConfigurationError: It is another one, or there is none.
    """
    from async_state.backend import AsyncStateBackend

    backend = worker_backend()
    if isinstance(backend, AsyncStateBackend):
        return backend
    found = "is not set" if backend is None else f"is {type(backend).__module__}.{type(backend).__name__}"
    raise ConfigurationError(
        f"[workers] state_store_backend {found}: for state by scope, for keys and for update, it must be "
        "async_state.AsyncStateBackend, in this component as well"
    )


def supervisor() -> Any:
    """Return this process's channel to its supervisor."""
    from airflow.sdk.execution_time import task_runner

    return task_runner.SUPERVISOR_COMMS


async def ask(message: Any) -> Any:
    """Send the message to the supervisor and return the response."""
    channel = supervisor()
    asend = getattr(channel, "asend", None)
    if asend is None or iothread.blocks():
        # The in-process supervisor of `dag.test()` has `send` alone. It is not called in a thread: while it works, it
        # removes itself from `task_runner`, and whatever else runs on this loop meanwhile would find no supervisor.
        return channel.send(message)
    if _in_plain_task.get():
        return await anyio.to_thread.run_sync(channel.send, message)
    return await asend(message)


@contextlib.contextmanager
def plain_task() -> Iterator[None]:
    """Have `ask` leave the channel's ``asend`` alone in the block, which runs on an event loop that ends with it.

    The channel has an asyncio lock, which belongs to the first event loop that has to wait for it.
    """
    token = _in_plain_task.set(True)
    try:
        yield
    finally:
        _in_plain_task.reset(token)


async def call_hook(backend: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Await the backend's coroutine for the hook ``name``. Without one, call the hook, in a thread beside a loop."""
    coroutine = getattr(backend, f"a{name}", None)
    if coroutine is not None:
        return await coroutine(*args, **kwargs)
    hook = partial(getattr(backend, name), *args, **kwargs)
    return hook() if iothread.blocks() else await anyio.to_thread.run_sync(hook)


def is_scope(state: object) -> bool:
    """Tell a scope from an accessor."""
    return isinstance(state, TaskScope | AssetScope)


def task_scope(*, dag_id: str, run_id: str, task_id: str, map_index: int, region_id: Any = None) -> TaskScope:
    """Return the scope of a task; ``region_id`` is part of it from task-sdk 1.4 on."""
    more = {} if region_id is None else {"region_id": region_id}
    return TaskScope(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index, **more)


def state_of(accessor: Any) -> TaskState | AssetState:
    """Return the messages that the accessor sends to the supervisor.

    The accessor is recognised by its attributes, since a later SDK may bring classes that are not known here.

    Raises:
        TypeError: ``accessor`` is not an accessor of a task's or an asset's state.
        ValueError: ``accessor`` stands for several assets.
    """
    if hasattr(accessor, "_single_accessor"):
        accessor = accessor._single_accessor()
    if hasattr(accessor, "_ti_id") and hasattr(accessor, "_scope"):
        return TaskState(accessor)
    if hasattr(accessor, "_name") and hasattr(accessor, "_uri"):
        return AssetState(accessor)
    raise TypeError(
        f"expected context['task_state_store'] or context['asset_state_store'][ASSET], not {type(accessor).__name__}"
    )


class TaskState:
    """The messages of a task's accessor, whose class in task-sdk 1.3 has no coroutines."""

    serialize: Final = "serialize_task_state_store_to_ref"
    deserialize: Final = "deserialize_task_state_store_from_ref"

    def __init__(self, accessor: Any) -> None:
        from airflow.sdk.execution_time import comms

        self.accessor = accessor
        self.scope = accessor._scope
        self._ti_id = accessor._ti_id
        self._comms = comms

    def get(self, key: str) -> Any:
        """Return the message that asks for the key's row."""
        return self._comms.GetTaskStateStore(ti_id=self._ti_id, key=key)

    def set(self, key: str, stored: Any, *, expires_at: datetime | None) -> Any:
        """Return the message that writes the key's row."""
        return self._comms.SetTaskStateStore(ti_id=self._ti_id, key=key, value=stored, expires_at=expires_at)

    def delete(self, key: str) -> Any:
        """Return the message that deletes the key's row."""
        return self._comms.DeleteTaskStateStore(ti_id=self._ti_id, key=key)

    def clear(self) -> Any:
        """Return the message that deletes all rows."""
        return self._comms.ClearTaskStateStore(ti_id=self._ti_id)

    def stored(self, response: Any) -> Any:
        """Return the row that the response to `get` holds, or ``None`` if there is none.

        Raises:
            AirflowRuntimeError: the response is another error than that there is no such key.
        """
        return _stored(response, self._comms.TaskStateStoreResult, "TASK_STORE_NOT_FOUND")

    @staticmethod
    def expiry(retention: timedelta | None) -> dict[str, Any]:
        """Return the arguments of `set` for ``retention``, computed from the present time as the SDK does."""
        from airflow.sdk.execution_time.context import NEVER_EXPIRE

        now = datetime.now(tz=timezone.utc)
        if retention is NEVER_EXPIRE:
            return {"expires_at": None}
        if retention is not None:
            return {"expires_at": now + retention}
        days = airflow_conf().getint("state_store", "default_retention_days")
        if days < 0:
            raise ValueError(
                f"[state_store] default_retention_days must not be negative, but is {days}; 0 means that state never "
                "expires"
            )
        return {"expires_at": now + timedelta(days=days) if days else None}


class AssetState:
    """The messages of an asset's accessor."""

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
        """Return the message that asks for the key's row."""
        return self._message("Get", key=key)

    def set(self, key: str, stored: Any) -> Any:
        """Return the message that writes the key's row."""
        return self._message("Set", key=key, value=stored)

    def delete(self, key: str) -> Any:
        """Return the message that deletes the key's row."""
        return self._message("Delete", key=key)

    def clear(self) -> Any:
        """Return the message that deletes all rows."""
        return self._message("Clear")

    def stored(self, response: Any) -> Any:
        """Return the row that the response to `get` holds, or ``None``. Errors are as in `TaskState.stored`."""
        return _stored(response, self._comms.AssetStateStoreResult, "ASSET_STORE_NOT_FOUND")

    @staticmethod
    def expiry(retention: timedelta | None) -> dict[str, Any]:
        """Return no arguments, and refuse a ``retention``."""
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
