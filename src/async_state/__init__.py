"""Airflow's state store in an object store, without ever blocking an event loop.

Configure ``[workers] state_store_backend = async_state.AsyncStateBackend`` and ``[async_state] url``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_state.backend import AsyncStateBackend as AsyncStateBackend
    from async_state.errors import AsyncStateError as AsyncStateError
    from async_state.settings import Settings as Settings

__version__ = "0.1.0"

# Imported when asked for: every process that so much as scans its plugins imports this package.
_HOMES = {
    "AsyncStateBackend": "async_state.backend",
    "AsyncStateError": "async_state.errors",
    "Settings": "async_state.settings",
}

__all__ = ["AsyncStateBackend", "AsyncStateError", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
