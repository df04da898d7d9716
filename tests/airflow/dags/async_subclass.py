"""Workers' backends that are subclasses of ours."""

from __future__ import annotations

import base64
from typing import Any

from async_state import AsyncStateBackend


class Subclass(AsyncStateBackend):
    """Nothing else."""


def _hidden(value: Any) -> str:
    # Stands for encryption: what is stored is another text than the value.
    return base64.b64encode(repr(value).encode()).decode()


class Encrypting(AsyncStateBackend):
    """Overrides the synchronous hooks alone, which are the contract that Airflow documents."""

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        return super().serialize_task_state_store_to_ref(value=_hidden(value), key=key, scope=scope)

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        hidden = super().deserialize_task_state_store_from_ref(stored)
        return None if hidden is None else base64.b64decode(str(hidden)).decode().strip("'")

    def serialize_asset_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        return super().serialize_asset_state_store_to_ref(value=_hidden(value), key=key, scope=scope)

    def deserialize_asset_state_store_from_ref(self, stored: str) -> Any:
        hidden = super().deserialize_asset_state_store_from_ref(stored)
        return None if hidden is None else base64.b64decode(str(hidden)).decode().strip("'")

    def delete(self, scope: Any, key: str, *, session: Any = None) -> None:
        super().delete(scope, key)
        DELETED.append(key)

    def clear(self, scope: Any, *, all_map_indices: bool = False, session: Any = None) -> None:
        super().clear(scope, all_map_indices=all_map_indices)
        DELETED.append("all")


#: What was deleted through the overridden methods, in this process.
DELETED: list[str] = []
