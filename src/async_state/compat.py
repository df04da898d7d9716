"""The one place that knows which Airflow is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.state import BaseStoreBackend

if TYPE_CHECKING:
    StoreBackend = BaseStoreBackend
else:
    # The API server checks for a second copy of the class, airflow-core's own; where core is not installed, nothing
    # does.
    try:
        from airflow._shared.state import BaseStoreBackend as CoreStoreBackend
    except ImportError:
        StoreBackend = BaseStoreBackend
    else:
        # One copy may become an alias of the other.
        _bases = tuple(dict.fromkeys((BaseStoreBackend, CoreStoreBackend)))
        StoreBackend = type("StoreBackend", _bases, {"__doc__": BaseStoreBackend.__doc__})


def airflow_conf() -> Any:
    """Return Airflow's configuration, which the SDK reads the same way in every component."""
    from airflow.sdk.configuration import conf

    return conf


def clear_on_success() -> bool:
    """Tell whether a task's success clears its state, ``[state_store] clear_on_success``."""
    return bool(airflow_conf().getboolean("state_store", "clear_on_success", fallback=False))


def sdk_awaits_hooks() -> bool:
    """Tell whether the SDK's own accessors await a backend's ``aserialize_…`` and ``adeserialize_…``.

    No release does yet; the names are those that apache/airflow#72129 proposes.
    """
    return hasattr(BaseStoreBackend, "aserialize_task_state_store_to_ref")
