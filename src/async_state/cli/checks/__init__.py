"""What the command ``check`` looks at: a module for each subject, which adds findings in the order of printing."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple


class Status(Enum):
    """Whether something is as it should be."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """One line of the command's output.

    Attributes:
        check: What was looked at; for programs, which may look for one, it stays the same.
        status: Whether it is as it should be.
        detail: What was found.
        advice: What to do, unless there is nothing to do or ``detail`` says it already.
        ms: How long it took, in milliseconds, where that matters.
    """

    check: str
    status: Status
    detail: str
    advice: str = ""
    ms: float | None = None


#: What the names of all values begin with, below the prefix: settings of a bucket matter that are about these.
KINDS: Final = ("v1/task/", "v1/asset/")

#: Takes the next finding.
Add = Callable[[Finding], None]


def ok(check: str, detail: str, *, ms: float | None = None) -> Finding:
    """Return a finding that needs nothing to be done."""
    return Finding(check, Status.OK, detail, ms=ms)


def warn(check: str, detail: str, advice: str = "") -> Finding:
    """Return a finding of something that works, but may surprise."""
    return Finding(check, Status.WARN, detail, advice)


def fail(check: str, detail: str, advice: str = "") -> Finding:
    """Return a finding of something that does not work."""
    return Finding(check, Status.FAIL, detail, advice)
