"""Lets the suite's sessions of botocore share what each would find out for itself: a third of opening a store.

Most tests of S3 open a store anew, as a process does. For each of a session's hundred handlers, botocore looks up two
things that never change. Both functions are private: where they are not as they were, tests take the longer way.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

_NAMES: Final[dict[str, str]] = {}


def remember() -> None:
    """Let all later sessions of this process share both."""
    hooks: Any = importlib.import_module("botocore.hooks")
    known = getattr(hooks, "accepts_kwargs", None)
    find_name = getattr(getattr(hooks, "EventAliaser", None), "_alias_event_name", None)
    if known is None or known is _accepts_kwargs or find_name is None:
        return

    def name_of(self: Any, event_name: str) -> Any:
        if event_name not in _NAMES:
            _NAMES[event_name] = find_name(self, event_name)
        return _NAMES[event_name]

    hooks.EventAliaser._alias_event_name = name_of
    hooks.accepts_kwargs = _accepts_kwargs


def _accepts_kwargs(function: Callable[..., object]) -> bool:
    """Tell whether a handler takes any keyword, without a description of all of its parameters."""
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return bool(inspect.getfullargspec(function).varkw)
