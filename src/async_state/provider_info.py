"""The entry point ``apache_airflow_provider``, by which Airflow learns of the options and of the commands.

This module is not part of the public interface.
"""

from __future__ import annotations

from typing import Any

from async_state.settings import SECTION, options

#: All releases, the latest first.
VERSIONS = ["0.1.0"]


def get_provider_info() -> dict[str, Any]:
    """Return the provider info in the form that Airflow's providers manager expects."""
    return {
        "package-name": "airflow-async-state",
        "name": "Async State",
        "description": "Task and asset state in an object store, without blocking an event loop.",
        "versions": VERSIONS,
        "cli": ["async_state.components.commands"],
        "config": {
            SECTION: {
                "description": "The state-store backend async_state.AsyncStateBackend.",
                "options": {
                    option.name: {
                        "description": option.description,
                        "version_added": "0.1.0",
                        "type": option.type,
                        "example": option.example,
                        "default": option.default,
                    }
                    for option in options()
                },
            }
        },
    }
