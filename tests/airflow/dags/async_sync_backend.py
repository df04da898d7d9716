"""A backend that knows nothing of coroutines where values are concerned, as common-io's is."""

from __future__ import annotations

import json
import threading
from typing import Any, ClassVar

from airflow.sdk.state import BaseStoreBackend

#: Values by reference, in this process.
VALUES: dict[str, str] = {}


class SyncBackend(BaseStoreBackend):
    """Keeps values in a dict, and the names of the threads that it was called on."""

    THREADS: ClassVar[set[str]] = set()

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        self.THREADS.add(threading.current_thread().name)
        VALUES[f"{scope}/{key}"] = json.dumps(value)
        return f"{scope}/{key}"

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        self.THREADS.add(threading.current_thread().name)
        return json.loads(VALUES.get(stored, "null"))

    serialize_asset_state_store_to_ref = serialize_task_state_store_to_ref
    deserialize_asset_state_store_from_ref = deserialize_task_state_store_from_ref

    async def adelete(self, scope: Any, key: str, *, session: Any = None) -> None:
        VALUES.pop(f"{scope}/{key}", None)

    async def aclear(self, scope: Any, *, all_map_indices: bool = False, session: Any = None) -> None:
        for ref in [ref for ref in VALUES if ref.startswith(f"{scope}/")]:
            del VALUES[ref]

    # The worker calls none of these in an async task.

    def get(self, scope: Any, key: str, *, session: Any = None) -> str | None:
        raise NotImplementedError

    def set(self, scope: Any, key: str, value: str, *, expires_at: Any = None, session: Any = None) -> None:
        raise NotImplementedError

    def delete(self, scope: Any, key: str, *, session: Any = None) -> None:
        raise NotImplementedError

    def clear(self, scope: Any, *, all_map_indices: bool = False, session: Any = None) -> None:
        raise NotImplementedError

    async def aget(self, scope: Any, key: str, *, session: Any = None) -> str | None:
        raise NotImplementedError

    async def aset(self, scope: Any, key: str, value: str, *, expires_at: Any = None, session: Any = None) -> None:
        raise NotImplementedError
