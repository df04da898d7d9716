"""JSON text in steps of about a millisecond, to any depth up to a fixed one.

The C functions of `json` hold the interpreter until they end, so that a large value stalls every event loop of the
process; and how deep they can recurse depends on the stack and on the version of Python. The generators here call them
for small parts only, yield after each, and go through the containers around those parts without recursion.

The texts are those of ``json.dumps(value, allow_nan=False)``, and the values are those of ``json.loads(text)``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any, Final, TypeAlias

#: How deep lists and dicts may be nested. (Airflow's own models, through pydantic, refuse 255 levels.)
MAX_DEPTH: Final = 200

#: What one call of a C function may take: characters, and the same number for so many nodes of a value.
_STEP: Final = 64 * 1024
_NODE_WEIGHT: Final = 16
#: The children of a container that are encoded together, if they are small.
_BATCH: Final = 64
#: Up to this depth, C functions recurse; deeper values are taken apart.
_C_DEPTH: Final = 16

_encode: Final = json.JSONEncoder(allow_nan=False).encode
_decode: Final = json.JSONDecoder().raw_decode
_SPACE: Final = re.compile(r"[ \t\n\r]*")
#: Two halves that JSON would join to one character.
_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_CLOSING: Final = {"[": "]", "{": "}"}

#: A generator that yields between its steps, and returns a text.
Encoding: TypeAlias = Generator[None, None, str]
#: A generator that yields between its steps, and returns a value.
Decoding: TypeAlias = Generator[None, None, Any]


class UnfaithfulError(ValueError):
    """The value would not come back from JSON as it went in."""


class TooDeepError(ValueError):
    """Lists and dicts are nested more than `MAX_DEPTH` levels deep."""

    def __init__(self) -> None:
        super().__init__(f"lists and dicts are nested more than {MAX_DEPTH} levels deep")


def encoding(value: Any, max_length: int) -> Encoding:
    """Return the steps that make JSON text of a value.

    Raises:
        UnfaithfulError: JSON would turn the value into another one.
        TooDeepError: The value is nested too deep, or holds itself.
        TypeError: The value holds an object that JSON does not know.
        ValueError: The value holds NaN or an infinity, or the text would have more than ``max_length`` characters.
    """
    if _is_small(value, MAX_DEPTH):
        return _encode(value)
    # A list around the value, so that the value is some container's child like any other.
    stack = [_Container([value])]
    pieces: list[str] = []
    # The end of the list around is no part of the text.
    length = -1
    while stack:
        container, room = stack[-1], MAX_DEPTH - len(stack) + 1
        piece, inner = container.encode_next(room)
        if inner is not None:
            if not room:
                raise TooDeepError
            stack.append(inner)
        elif piece is None:
            piece = container.closing
            stack.pop()
        pieces.append(piece or "")
        length += len(pieces[-1])
        if length > max_length:
            raise ValueError(f"its JSON text has more than {max_length} characters")
        yield
    return "".join(pieces[:-1])


class _Container:
    """A list or dict whose text is being made, in pieces."""

    def __init__(self, value: dict[Any, Any] | list[Any]) -> None:
        self._children: Iterator[Any]
        self._is_dict = isinstance(value, dict)
        # Of a subclass, JSON takes the items; it comes back as a plain container, which must be equal.
        plain: Any = dict(value.items()) if isinstance(value, dict) else list(value)
        if type(plain) is not type(value) and plain != value:
            raise UnfaithfulError
        self._children = iter(plain.items() if self._is_dict else plain)
        self._single: Iterator[Any] = iter(())
        self._separator = ""
        self.closing = "}" if self._is_dict else "]"

    def encode_next(self, room: int) -> tuple[str | None, _Container | None]:
        """Return the next piece of text, and the container that begins with it; ``None`` twice at the end.

        Args:
            room: How deep children may be nested.
        """
        for child in self._single:
            return self._encode_single(child, room)
        batch = list(islice(self._children, _BATCH))
        if not batch:
            return None, None
        part: Any = dict(batch) if self._is_dict else batch
        if _is_small(part, room + 1):
            return self._separated(_encode(part)[1:-1]), None
        self._single = iter(batch)
        return "", None

    def _encode_single(self, child: Any, room: int) -> tuple[str, _Container | None]:
        prefix = ""
        if self._is_dict:
            key, child = child
            if not isinstance(key, str):
                raise UnfaithfulError
            prefix = f"{_encode_scalar(key)}: "
        if isinstance(child, (dict, list)) and not _is_small(child, room):
            inner = _Container(child)
            return self._separated(prefix + ("{" if inner._is_dict else "[")), inner
        return self._separated(prefix + _encode_scalar(child)), None

    def _separated(self, piece: str) -> str:
        piece, self._separator = self._separator + piece, ", "
        return piece


def _encode_scalar(value: Any) -> str:
    text = _encode(value)
    if type(value) not in (int, float, bool, type(None), dict, list) and json.loads(text) != value:
        raise UnfaithfulError
    return text


def _is_small(value: Any, room: int) -> bool:
    """Tell whether a value is encoded in one step, surely comes back equal, and is at most ``room`` levels deep."""
    weight, levels, level = 0, min(room, _C_DEPTH), [value]
    while level:
        inner: list[Any] = []
        weight += len(level) * _NODE_WEIGHT
        for node in level:
            kind = type(node)
            if kind is str:
                weight += len(node)
                if not node.isascii() and _PAIR.search(node):
                    return False
            elif kind is list or kind is dict:
                if not levels or weight + len(inner) * _NODE_WEIGHT > _STEP or len(node) > _STEP // _NODE_WEIGHT:
                    return False
                if kind is list:
                    inner += node
                    continue
                for key in node:
                    if type(key) is not str or (not key.isascii() and _PAIR.search(key)):
                        return False
                    weight += len(key)
                inner += node.values()
            elif kind is not int and kind is not float and kind is not bool and node is not None:
                return False
        if weight > _STEP:
            return False
        level, levels = inner, levels - 1
    return True


def decoding(text: str) -> Decoding:
    """Return the steps that make a value of JSON text.

    Raises:
        TooDeepError: The value is nested too deep.
        ValueError: The text is not JSON.
    """
    if len(text) <= _STEP:
        try:
            value = json.loads(text)
        except RecursionError:
            pass
        else:
            _check_depth(value, text, MAX_DEPTH)
            return value
    parts = _Parts(text)
    at = _skip_space(text, 0)
    # A list around the value, so that the value is some container's child like any other.
    result: list[Any] = []
    stack: list[Any] = [result]
    keys: list[str] = [""]
    while True:
        room = MAX_DEPTH - len(stack) + 1
        container, key = stack[-1], keys[-1]
        opening = text[at : at + 1]
        if len(stack) > 1 and type(container) is list and (batch := parts.batch(at, room)):
            values, at = batch
            container += values
        elif part := parts.one(at, room):
            value, at = part
            _add(container, key, value)
        elif opening in _CLOSING:
            if not room:
                raise TooDeepError
            inner: Any = [] if opening == "[" else {}
            _add(container, key, inner)
            at = _skip_space(text, at + 1)
            stack.append(inner)
            keys.append("")
            if text[at : at + 1] != _CLOSING[opening]:
                if opening == "{":
                    keys[-1], at = _decode_key(text, at)
                yield
                continue
        else:
            # A string or a number that is longer than a step.
            value, at = _decode(text, at)
            _add(container, key, value)
        yield
        at = _skip_space(text, at)
        while len(stack) > 1 and text[at : at + 1] == ("]" if type(stack[-1]) is list else "}"):
            stack.pop()
            keys.pop()
            at = _skip_space(text, at + 1)
        if len(stack) == 1:
            if at != len(text):
                raise ValueError("extra data")
            return result[0]
        if text[at : at + 1] != ",":
            raise ValueError("a comma is missing")
        at = _skip_space(text, at + 1)
        if type(stack[-1]) is dict:
            keys[-1], at = _decode_key(text, at)


class _Parts:
    """Small values in a long text. The C function sees no more of it than a step may take."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._window, self._start = "", 0
        self._batch_from = 0

    def batch(self, at: int, room: int) -> tuple[list[Any], int] | None:
        """Return several elements of a list, the first of which begins at ``at``, and where they end."""
        text = self._text
        if at < self._batch_from:
            return None
        # Where an element of the same kind may begin; inside a string or an inner list, decoding fails.
        before, after = {"{": ("}", "{"), "[": ("]", "["), '"': ('"', '"')}.get(text[at : at + 1], ("", ""))
        end = text.rfind(f"{before}, {after}", at, at + _STEP) + len(before)
        if end > at:
            part = f"[{text[at:end]}]"
            try:
                # If it is decoded at all, the end is one of an element.
                values = json.loads(part)
            except (ValueError, RecursionError):
                pass
            else:
                _check_depth(values, part, room + 1)
                return values, end
        self._batch_from = at + _STEP
        return None

    def one(self, at: int, room: int) -> tuple[Any, int] | None:
        """Return the value that begins at ``at`` and where it ends; ``None`` if it is long, deep or not JSON."""
        if part := self._decode(at, room):
            return part
        self._window, self._start = self._text[at : at + _STEP], at
        return self._decode(at, room)

    def _decode(self, at: int, room: int) -> tuple[Any, int] | None:
        try:
            value, end = _decode(self._window, at - self._start)
        except (ValueError, RecursionError):
            return None
        # A number may go on beyond the window, which may end within its fraction or exponent.
        if self._window[end : end + 1] in ("", ".", "e", "E"):
            return None
        _check_depth(value, self._window[at - self._start : end], room)
        return value, self._start + end


def _check_depth(value: Any, text: str, room: int) -> None:
    """Raise `TooDeepError` if a value, made of that text, is more than ``room`` levels deep."""
    if text.count("[") + text.count("{") <= room:
        return
    level: list[Any] = [value]
    while level := [node for node in level if type(node) is list or type(node) is dict]:
        if not room:
            raise TooDeepError
        room -= 1
        level = [child for node in level for child in (node.values() if type(node) is dict else node)]


def _decode_key(text: str, at: int) -> tuple[str, int]:
    """Return the key that begins at ``at``, and where its value begins."""
    if text[at : at + 1] != '"':
        raise ValueError("a key is missing")
    key, at = _decode(text, at)
    at = _skip_space(text, at)
    if text[at : at + 1] != ":":
        raise ValueError("a colon is missing")
    return key, _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _add(container: Any, key: str, value: Any) -> None:
    if type(container) is list:
        container.append(value)
    else:
        container[key] = value
