"""Atomic update of a key: read it, apply a function, write only if nobody wrote meanwhile, and else begin anew.

A key is a row in Airflow's database and an object in the store, and nothing changes both at once. So this order keeps
every update:

1. The object is read, and then the row.
2. Where the row does not refer to the object, the object's value does not count, such as one whose row was deleted. The
   object is emptied (JSON ``null``, which is no value) if it still is what was read, then the row is written, and all
   begins anew. No update is in the object by then: each is made after its row was seen.
3. Where the row does refer to it, the function is applied, and the object is replaced if it still is what was read.

A value elsewhere, in the row itself say, is moved to the object instead of emptying it. If the row is deleted at that
moment, the value comes back, as with a plain ``set``: Airflow has no way to write a row on a condition.

A writer that is killed between two steps leaves an object without a row, or an empty one, which is read as no value.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from async_state import codec, iothread
from async_state.errors import ConflictError, InvalidValueError
from async_state.objects import Objects

if TYPE_CHECKING:
    from pydantic import JsonValue

#: Seconds that the pause after the first conflict takes at most; each further one may take twice as long, up to the
#: longest.
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0


class Row(NamedTuple):
    """What the key's row says.

    Attributes:
        here: Whether it refers to the key's object.
        value: The value elsewhere, if it is there: in the row itself, or in an earlier place; else ``None``.
    """

    here: bool
    value: JsonValue = None


class Rows(Protocol):
    """The key's row in Airflow's database."""

    async def read(self) -> Row:
        """Return what the row says."""

    async def refer(self) -> None:
        """Have the row refer to the key's object."""


async def update(
    objects: Objects,
    name: str,
    rows: Rows,
    function: Callable[[Any], JsonValue],
    default: JsonValue,
    timeout: float,
) -> JsonValue:
    """Replace the value of a key by what ``function`` makes of it, and return that.

    Args:
        objects: Where the object lies.
        name: The object's.
        rows: The key's row.
        function: Takes the value, or ``default`` where there is none. It is called again after each conflict.
        default: What stands for no value.
        timeout: Seconds for all attempts together.

    Raises:
        InvalidValueError: ``function`` returned ``None``, or what is not JSON.
        ConditionsError: The store ignores conditions.
        ConflictError: Others wrote the key again and again until the time was over.
        StoreError: The store failed.
    """
    # It holds a slot for each of its requests only, and none while the supervisor is asked.
    with objects.operation("update") as operation:
        operation.until = time.monotonic() + timeout
        for conflicts in count():
            async with objects.slot():
                found = await objects.read_tagged(name, operation)
            text, seen = found or (None, None)
            value = None if text is None else await _load(text)
            row = await rows.read()
            if row.here:
                value = function(default if value is None else value)
                if value is None:
                    raise InvalidValueError("the function of an update must not return None; delete the key instead")
                text = await _dump(value)
            else:
                elsewhere = await _dump(row.value)
                if text is not None and await _dump(value) == elsewhere:
                    await rows.refer()
                    continue
                text = elsewhere
            async with objects.slot():
                written = await objects.write_if_unchanged(name, text, seen, operation)
            if written and row.here:
                return value
            if written:
                await rows.refer()
            else:
                pause = _pause(conflicts)
                if time.monotonic() + pause >= operation.until:
                    break
                await objects.pause(pause)
        raise ConflictError(
            f"could not update {name} within {timeout:g} s: others wrote it {conflicts + 1} times before this one did. "
            "Raise [async_state] timeout, or have fewer tasks update one key"
        )


def _pause(conflicts: int) -> float:
    """Return how many seconds to wait after a conflict: at random, so that not all that met come back at once."""
    return random.uniform(0, min(_FIRST_PAUSE * 2.0 ** min(conflicts, 16), _LONGEST_PAUSE))  # noqa: S311


async def _load(text: str) -> JsonValue:
    value: JsonValue = codec.load(text) if iothread.blocks() else await codec.aload(text)
    return value


async def _dump(value: JsonValue) -> str:
    if value is None:
        return "null"
    return codec.dump(value) if iothread.blocks() else await codec.adump(value)
