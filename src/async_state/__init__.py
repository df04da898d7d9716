"""Airflow's state store in an object store, without ever blocking an event loop.

Configure ``[workers] state_store_backend = async_state.AsyncStateBackend`` and ``[async_state] url``.

The names in ``__all__`` and the package `async_state.testing` are the public interface. All other modules and names may
change in any release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_state.accessors import AsyncStateStore as AsyncStateStore
    from async_state.accessors import StateStore as StateStore
    from async_state.backend import AsyncStateBackend as AsyncStateBackend
    from async_state.errors import AsyncStateError as AsyncStateError
    from async_state.errors import ConditionsError as ConditionsError
    from async_state.errors import ConfigurationError as ConfigurationError
    from async_state.errors import ConflictError as ConflictError
    from async_state.errors import CorruptObjectError as CorruptObjectError
    from async_state.errors import InvalidKeyError as InvalidKeyError
    from async_state.errors import InvalidScopeError as InvalidScopeError
    from async_state.errors import InvalidValueError as InvalidValueError
    from async_state.errors import MissingKeyError as MissingKeyError
    from async_state.errors import MissingObjectError as MissingObjectError
    from async_state.errors import PurgeError as PurgeError
    from async_state.errors import StoreAccessError as StoreAccessError
    from async_state.errors import StoreCredentialsError as StoreCredentialsError
    from async_state.errors import StoreError as StoreError
    from async_state.errors import StoreTimeoutError as StoreTimeoutError
    from async_state.errors import StoreUnavailableError as StoreUnavailableError
    from async_state.errors import UntrustedRefError as UntrustedRefError
    from async_state.settings import Settings as Settings
    from async_state.triggers import task_state as task_state

__version__ = "0.1.0"

__all__ = [
    "AsyncStateBackend",
    "AsyncStateStore",
    "StateStore",
    "task_state",
    "Settings",
    "AsyncStateError",
    "ConditionsError",
    "ConfigurationError",
    "ConflictError",
    "CorruptObjectError",
    "InvalidKeyError",
    "InvalidScopeError",
    "InvalidValueError",
    "MissingKeyError",
    "MissingObjectError",
    "PurgeError",
    "StoreAccessError",
    "StoreCredentialsError",
    "StoreError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "UntrustedRefError",
    "__version__",
]

# A module is imported when one of its names is asked for: every process that loads Airflow's plugins imports this
# package, whether it uses the backend or not.
_MODULES = {
    "AsyncStateBackend": "backend",
    "AsyncStateStore": "accessors",
    "StateStore": "accessors",
    "Settings": "settings",
    "task_state": "triggers",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
