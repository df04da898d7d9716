"""State by scope: the objects alone, without an accessor and without a supervisor, as in a trigger.

Names depend on scope and key alone, so a key's object is found without its row. Rows can't be written here: what has
one may be replaced, and nothing else. This module is not part of the public interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from async_state import compat, updates
from async_state.errors import MissingKeyError

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import JsonValue


class UnsupervisedState:
    """The state of one scope. `AsyncStateStore` says what its coroutines do.

    Args:
        scope: A task's or an asset's.
    """

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def get(self, key: str, default: JsonValue) -> JsonValue:
        """As `AsyncStateStore.aget`."""
        value = await compat.own_worker_backend()._read(self.scope, key)
        return default if value is None else value

    async def set(self, key: str, value: JsonValue, *, retention: timedelta | None) -> None:
        """As `AsyncStateStore.aset`."""
        if retention is not None:
            raise TypeError("state by scope keeps the retention that the task gave it: leave out retention")
        if value is None:
            raise ValueError("a state value must not be None; delete the key instead")
        backend = compat.own_worker_backend()
        if not await backend._exists(self.scope, key):
            raise _missing(self.scope, key)
        await backend._replace(self.scope, key, value)

    async def delete(self, key: str) -> None:
        """As `AsyncStateStore.adelete`."""
        raise _no_rows("delete")

    async def clear(self) -> None:
        """As `AsyncStateStore.aclear`."""
        raise _no_rows("clear")

    async def update(self, key: str, function: Callable[[Any], JsonValue], default: JsonValue) -> JsonValue:
        """As `AsyncStateStore.aupdate`."""
        backend = compat.own_worker_backend()
        return await backend._update(self.scope, key, _Existing(self.scope, key), function, default)


class _Existing:
    """The row of a key whose object exists, for `updates.update`."""

    def __init__(self, scope: Any, key: str) -> None:
        self._scope = scope
        self._key = key

    async def read(self) -> updates.Row:
        if not await compat.own_worker_backend()._exists(self._scope, self._key):
            raise _missing(self._scope, self._key)
        return updates.Row(here=True)

    async def refer(self) -> None:
        raise AssertionError("its row refers to it")


def _missing(scope: Any, key: str) -> MissingKeyError:
    return MissingKeyError(
        f"{scope!r} has no state under the key {key!r}, and none can be made here, as only a task can write the row in "
        "Airflow's database: set the key in the task before it defers. With [async_state] inline_threshold, a small "
        "value stays in the database and is not found here"
    )


def _no_rows(verb: str) -> TypeError:
    return TypeError(f"state by scope can't {verb}: the rows are in Airflow's database; {verb} in the task")
