"""The one retry loop: an operation of a store is tried until its time is over.

Airflow tries a *task* again, not an operation, and a task that could not store the id of its job submits the job once
more. So no number of failures ends an operation unless the user asks for that, and no failure of the past shortens the
next operation, as botocore's standard mode would have it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Final, Protocol, TypeVar

import anyio

T = TypeVar("T")

#: Seconds that the first pause takes at most, after an error and after a request to slow down; each further one may
#: take twice as long as the one before, up to the longest.
FIRST_PAUSE: Final = 0.1
FIRST_THROTTLED_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 5.0
#: Seconds that a pause takes at least after a request to slow down.
LEAST_THROTTLED_PAUSE: Final = 0.1
#: With less time left than this, another request could not be answered.
LEAST_TIME: Final = 0.05


class Kinds(Protocol):
    """What the errors of a kind of store mean for the loop. A store's module of errors has these functions."""

    def is_retryable(self, e: Exception, /) -> bool:
        """Tell whether the same request may succeed later."""

    def is_timeout(self, e: Exception, /) -> bool:
        """Tell whether the store did not answer in time."""

    def is_throttled(self, e: Exception, /) -> bool:
        """Tell whether the store asks to slow down."""

    def retry_after(self, e: Exception, /) -> str:
        """Return the ``Retry-After`` header of the answer, or an empty string."""


@dataclass
class Attempts:
    """What an operation has sent so far.

    Attributes:
        sent: the requests, first and repeated ones.
        last: the error that the latest failed request ended with.
        began: when the operation began, by `time.monotonic`.
    """

    sent: int = 0
    last: Exception | None = field(default=None, repr=False)
    began: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.sent} attempt{'s' * (self.sent != 1)} in {time.monotonic() - self.began:.1f} s"


#: Those of the operation that runs.
attempts: ContextVar[Attempts] = ContextVar("async_state_attempts")


def count_attempt(**_: object) -> None:
    """Count a request that is about to be sent. Also a handler for botocore's event ``before-send``."""
    attempts.get(Attempts()).sent += 1


async def until(
    deadline: float, send: Callable[[], Awaitable[T]], attempts: Attempts, max_attempts: int, kinds: Kinds
) -> T:
    """Call ``send`` until it succeeds, and return its result.

    Args:
        deadline: by `anyio.current_time`; no pause goes beyond it. It does not interrupt a call of ``send``.
        send: sends one request, and counts it.
        attempts: the operation's count, in which ``send`` counts.
        max_attempts: the most requests; 0 for any number.
        kinds: tells what an error of ``send`` means.

    Raises:
        Exception: what ``send`` raised, where trying again cannot help, or where time or attempts are used up.
    """
    failures = 0
    while True:
        try:
            return await send()
        except Exception as e:
            attempts.last = e
            remaining = deadline - anyio.current_time()
            used_up = remaining < LEAST_TIME or (max_attempts and attempts.sent >= max_attempts)
            if used_up or not kinds.is_retryable(e):
                raise
            await anyio.sleep(pause(e, failures, remaining, kinds))
        failures += 1


@contextmanager
def limit(seconds: float, made: Attempts, kinds: Kinds) -> Iterator[float]:
    """Cancel the block after ``seconds``, and raise the last error of its attempts; yield when that is.

    Raises:
        TimeoutError: no attempt was answered, or the last one was not answered in time.
        Exception: what the last attempt ended with.
    """
    with anyio.move_on_after(seconds) as scope:
        yield scope.deadline
    if scope.cancelled_caught:
        if made.last is None or kinds.is_timeout(made.last):
            raise TimeoutError(f"no answer within {max(round(seconds, 2), 0):g} s")
        raise made.last


def pause(error: Exception, failures: int, remaining: float, kinds: Kinds) -> float:
    """Return how many seconds to wait after ``error``, which ``failures`` others came before.

    The pause is drawn at random between (nearly) nothing and a bound that doubles each time ("full jitter"), so that
    many processes do not come back at once. Where the store says when to come back (``Retry-After``), that is added.
    The pause always ends before ``remaining`` seconds are over, so that one more request is sent.
    """
    throttled = kinds.is_throttled(error)
    bound = (FIRST_THROTTLED_PAUSE if throttled else FIRST_PAUSE) * 2.0 ** min(failures, 16)
    drawn = random.uniform(LEAST_THROTTLED_PAUSE if throttled else 0, min(bound, LONGEST_PAUSE))  # noqa: S311
    # The last pause ends early enough for another request.
    return min(_seconds(kinds.retry_after(error)) + drawn, remaining * 0.9)


def _seconds(retry_after: str) -> float:
    """Return the seconds that a ``Retry-After`` header asks to wait: a number, or a date (RFC 9110, 10.2.3)."""
    if not retry_after:
        return 0.0
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
