"""Airflow plugin: prepares the processes that run tasks and triggers, where `AsyncStateBackend` is their backend.

Airflow loads plugins in the scheduler and in the triggerer before these fork, and in a task's process before the task.
Loading this one therefore imports nothing else of ours unless ``[workers] state_store_backend`` names a backend, and no
AWS library even then.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin
from pluggy import HookimplMarker

log = logging.getLogger(__name__)

hookimpl = HookimplMarker("airflow")


class _Listener:
    """Told by Airflow that a component starts."""

    @hookimpl
    def on_starting(self, component: object) -> None:
        """In a scheduler or triggerer, import and parse once what each process forked from it would need."""
        # A task's process is told too, but may never use its state.
        if type(component).__name__ != "TaskRunnerMarker" and (settings := _configured()) is not None:
            from async_state.stores import prepare

            try:
                prepare(settings)
            except Exception as e:
                # The component and its tasks can do without; what they can't, the first operation tells.
                log.warning("Nothing was prepared for tasks' state in %s: %s: %s", settings.url, type(e).__name__, e)


class AsyncStatePlugin(AirflowPlugin):
    """Lets the SDK's accessors await where they do not yet, and prepares processes that fork."""

    name = "async_state"
    listeners = [_Listener()]  # noqa: RUF012

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        """Called by Airflow once in each process that loads plugins."""
        settings = _configured()
        if settings is not None and settings.patch_accessors:
            from async_state import patches

            log.debug("Awaiting methods given to %s", ", ".join(patches.install()) or "none: the SDK has its own")


def _configured() -> Any:
    """Return the settings of the worker's backend if it is ours, else ``None``."""
    from airflow.sdk.configuration import conf

    name = conf.get("workers", "state_store_backend", fallback="")
    if not name:
        return None
    from airflow.sdk._shared.module_loading import import_string

    from async_state.backend import AsyncStateBackend
    from async_state.settings import Settings

    try:
        backend = import_string(name)
        return Settings.from_conf(conf) if issubclass(backend, AsyncStateBackend) else None
    except ImportError as e:
        # Airflow says so itself, if it still can't be imported where it is first used: it may be next to the DAGs.
        log.debug("[workers] state_store_backend = %s can't be imported yet: %s", name, e)
        return None
    except Exception as e:
        # Told here, where the component starts, and again with the first operation, by the backend itself.
        log.error("[workers] state_store_backend = %s can't be used: %s", name, e)
        return None
