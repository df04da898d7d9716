"""``memory://name``: a dict in this process, for tests. Other processes see nothing of it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from async_state.errors import StoreError
from async_state.stores.base import Details, Entry, Tagged

_numbers = itertools.count()


class _Object(NamedTuple):
    body: bytes
    details: Details


_OBJECTS: dict[str, dict[str, _Object]] = {}


class MemoryStore:
    """Objects in a dict, which all stores of this URL in the process share.

    Args:
        url: Any URL.
    """

    delete_limit = 1000

    def __init__(self, url: str) -> None:
        self._objects = _OBJECTS.setdefault(url, {})

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        found = self._objects.get(name)
        return found and found.body

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        entry = Entry(name, len(body), datetime.now(timezone.utc), str(next(_numbers)))
        self._objects[name] = _Object(body, Details(entry, content_encoding, {}, ""))

    async def get_tagged(self, name: str, *, timeout: float) -> Tagged | None:
        found = self._objects.get(name)
        return found and Tagged(found.body, found)

    async def put_if_unchanged(
        self, name: str, body: bytes, content_encoding: str, seen: Tagged | None, *, timeout: float
    ) -> bool:
        # Nobody else runs on the I/O thread meanwhile.
        if self._objects.get(name) is not (seen.tag if seen else None):
            return False
        await self.put(name, body, content_encoding, timeout=timeout)
        return True

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        for name in names:
            self._objects.pop(name, None)
        return {}

    async def entries(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[Entry], None]:
        found = sorted(found.details.entry for name, found in self._objects.items() if name.startswith(prefix))
        for start in range(0, len(found), self.delete_limit):
            yield found[start : start + self.delete_limit]

    async def head(self, name: str, *, timeout: float) -> Details | None:
        found = self._objects.get(name)
        return found and found.details

    async def delete_unchanged(self, seen: Details, *, timeout: float) -> bool:
        name = seen.entry.name
        if name in self._objects and self._objects[name].details != seen:
            return False
        self._objects.pop(name, None)
        return True

    async def copy_from(self, base_url: str, name: str, seen: Details | None, *, timeout: float) -> bool:
        return False

    async def put_over(
        self, name: str, body: bytes, content_encoding: str, seen: Details | None, *, timeout: float
    ) -> None:
        if await self.head(name, timeout=timeout) == seen:
            await self.put(name, body, content_encoding, timeout=timeout)

    async def aclose(self) -> None:
        """Nothing to release: the objects live as long as the process."""
