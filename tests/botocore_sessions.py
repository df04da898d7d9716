"""What makes sessions and clients of botocore, which most tests of S3 open anew, cost the suite a third less.

What they do is the same: botocore finds out two things for each of a session's hundred handlers, and they never change.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

_NAMES: Final[dict[str, str]] = {}


def remember() -> None:
    """Let all sessions of this process share what each would find out for itself."""
    hooks: Any = importlib.import_module("botocore.hooks")
    if hooks.accepts_kwargs is _accepts_kwargs:
        return
    find_name = hooks.EventAliaser._alias_event_name

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
