"""The references in the value of a row.

A worker's row holds ``{"__airflow_state_ref__": "<URL>"}``. Through the UI, the REST API and SQL, anybody can store
anything, so whatever looks like the URL of an object of ours counts as a reference to it, wherever in the value it is:
an object that is kept in vain costs a few bytes, and one that is deleted in error costs a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from async_state.keys import Side, parse_name

if TYPE_CHECKING:
    from async_state.settings import Settings

#: The key under which the SDK stores a reference.
MARKER: Final = "__airflow_state_ref__"

_NAME: Final = r"/[A-Za-z0-9_.:%~@/-]+"
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: How many a name has: a task's and an asset's.
_SEGMENTS: Final = (8, 6)


def of_sweep(settings: Settings) -> References:
    """Return what finds the references to objects below ``settings.url``.

    Objects of a moved URL were copied below the present one, where they have the same names; those of a trusted one
    stay where they are.
    """
    return References((settings.url, *settings.moved_urls), elsewhere=settings.trusted_urls)


class References:
    """Finds references below some base URLs.

    Args:
        bases: The base URLs.
        elsewhere: Base URLs whose objects are known to be others.
    """

    def __init__(self, bases: Iterable[str], *, elsewhere: Iterable[str] = ()) -> None:
        self._bases = tuple(f"{base}/" for base in bases)
        self._known = (*self._bases, *(f"{base}/" for base in elsewhere))
        self._pattern = re.compile("|".join(f"{re.escape(base[:-1])}{_NAME}" for base in self._bases))

    def find(self, text: object) -> set[str]:
        """Return every reference in a row's value: below the base URLs, and below others after the SDK's marker.

        Args:
            text: JSON text, as the database has it; or whatever else stands there.
        """
        if isinstance(text, (bytes, bytearray, memoryview)):
            text = bytes(text).decode(errors="replace")
        if not isinstance(text, str):
            return self.find_in(text)
        try:
            return self.find_in(json.loads(text))
        # Also too deep, or with an integer that is too long. JSON may escape a slash by a backslash.
        except (ValueError, RecursionError):
            return self.find_in(text) | self.find_in(text.replace("\\", ""))

    def find_in(self, value: Any) -> set[str]:
        """Return every reference in a parsed value. As `find`."""
        found: set[str] = set()
        for text, is_marked in _texts(value):
            found.update(self._pattern.findall(text))
            if is_marked and _URL.match(text):
                found.add(text)
        return found

    def names(self, refs: Iterable[str]) -> Iterator[str]:
        """Yield the object name of each reference that is below one of the base URLs."""
        for ref in refs:
            for base in self._bases:
                if ref.startswith(base):
                    yield ref[len(base) :]

    def unknown(self, refs: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield the object name and the base URL of each reference below a base URL of which nothing is known here.

        Its objects may have moved, and this machine has not been told.
        """
        for ref in refs:
            if ref.startswith(self._known):
                continue
            for segments in _SEGMENTS:
                base, *name = ref.rsplit("/", segments)
                place = parse_name("/".join(name))
                if place is not None and place.side is Side.WORKER:
                    yield "/".join(name), base


def _texts(value: Any) -> Iterator[tuple[str, bool]]:
    """Yield each string in a JSON value, and whether the SDK's marker stands before it."""
    left: list[tuple[Any, bool]] = [(value, False)]
    while left:
        item, is_marked = left.pop()
        if isinstance(item, str):
            yield item, is_marked
        elif isinstance(item, dict):
            left += [(key, False) for key in item]
            left += [(inner, key == MARKER) for key, inner in item.items()]
        elif isinstance(item, list):
            left += [(inner, False) for inner in item]
