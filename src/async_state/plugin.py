"""The Airflow plugin: patches the SDK's accessors, and prepares the scheduler and the triggerer.

Airflow loads plugins in the scheduler and in the triggerer before these fork, and in each task's process before the
task. Unless ``[workers] state_store_backend`` is set, loading this one imports next to nothing of this package, and it
never imports a cloud's library. This module is not part of the public interface.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin
from pluggy import HookimplMarker

from async_state import components

log = logging.getLogger(__name__)

hookimpl = HookimplMarker("airflow")


class _Listener:
    """Airflow tells it that a component starts."""

    @hookimpl
    def on_starting(self, component: object) -> None:
        """Prepare a scheduler or a triggerer."""
        # A task's process is told too, but may never use its state.
        if type(component).__name__ != "TaskRunnerMarker" and (settings := components.configured()) is not None:
            components.prepare(settings)


class AsyncStatePlugin(AirflowPlugin):
    """Patches the accessors of the SDK where these would block an event loop, and prepares processes that fork."""

    name = "async_state"
    listeners = [_Listener()]  # noqa: RUF012

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        """Patch the accessors. Airflow calls this once in each process that loads plugins."""
        settings = components.configured()
        if settings is not None and settings.patch_accessors:
            from async_state import patches

            log.debug("Patched accessors: %s", ", ".join(patches.install()) or "none, as the SDK awaits by itself")
