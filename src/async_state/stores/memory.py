"""``memory://name``: a dict in this process, for tests. Other processes see nothing of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from async_state.errors import StoreError
from async_state.stores.base import Tagged

_OBJECTS: dict[str, dict[str, bytes]] = {}


class MemoryStore:
    """Objects in a dict, which all stores of this URL in the process share.

    Args:
        url: Any URL.
    """

    delete_limit = 1000

    def __init__(self, url: str) -> None:
        self._objects = _OBJECTS.setdefault(url, {})

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        return self._objects.get(name)

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        self._objects[name] = body

    async def get_tagged(self, name: str, *, timeout: float) -> Tagged | None:
        body = self._objects.get(name)
        return None if body is None else Tagged(body, None)

    async def put_if_unchanged(
        self, name: str, body: bytes, content_encoding: str, seen: Tagged | None, *, timeout: float
    ) -> bool:
        # Nobody else runs on the I/O thread meanwhile, and a write makes another bytes object.
        if self._objects.get(name) is not (seen.body if seen else None):
            return False
        self._objects[name] = body
        return True

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        for name in names:
            self._objects.pop(name, None)
        return {}

    async def list(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[str], None]:
        found = sorted(name for name in self._objects if name.startswith(prefix))
        for start in range(0, len(found), self.delete_limit):
            yield found[start : start + self.delete_limit]

    async def aclose(self) -> None:
        """Nothing to release: the objects live as long as the process."""
