"""Airflow's simple auth manager, with a DAG that only the administrator may read, and a user who may read none."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

HIDDEN = "hidden"
NOBODY = "nobody"


class Hiding(SimpleAuthManager):  # type: ignore[misc]
    """For the API server of the tests."""

    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        is_hidden = details is not None and details.id == HIDDEN and user.role.upper() != "ADMIN"
        if is_hidden or user.username == NOBODY:
            return False
        return bool(super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details))
