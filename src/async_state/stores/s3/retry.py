"""The one retry loop of S3: an operation is tried until its time is over.

Airflow tries a *task* again, not an operation, and a task that could not store the id of its job submits the job once
more. So no number of failures ends an operation unless the user asks for that, and no failure of the past shortens the
next operation, as botocore's standard mode would have it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import anyio

from async_state.stores.s3.errors import is_retryable, is_throttled, retry_after
from async_state.stores.s3.operations import Attempts

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


async def until(deadline: float, send: Callable[[], Awaitable[T]], attempts: Attempts, max_attempts: int) -> T:
    """Call ``send`` until it succeeds, and return its result.

    Args:
        deadline: by `anyio.current_time`; no pause goes beyond it. It does not interrupt a call of ``send``.
        send: sends one request, and counts it.
        attempts: the operation's count, in which ``send`` counts.
        max_attempts: the most requests; 0 for any number.

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
            if not is_retryable(e) or remaining < LEAST_TIME or (max_attempts and attempts.sent >= max_attempts):
                raise
            await anyio.sleep(pause(e, failures, remaining))
        failures += 1


def pause(error: Exception, failures: int, remaining: float) -> float:
    """Return how many seconds to wait after ``error``, which ``failures`` others came before.

    The pause is drawn at random between (nearly) nothing and a bound that doubles each time ("full jitter"), so that
    many processes do not come back at once. Where the store says when to come back (``Retry-After``), that is added.
    The pause always ends before ``remaining`` seconds are over, so that one more request is sent.
    """
    throttled = is_throttled(error)
    bound = (FIRST_THROTTLED_PAUSE if throttled else FIRST_PAUSE) * 2.0 ** min(failures, 16)
    drawn = random.uniform(LEAST_THROTTLED_PAUSE if throttled else 0, min(bound, LONGEST_PAUSE))  # noqa: S311
    # The last pause ends early enough for another request.
    return min(_seconds(retry_after(error)) + drawn, remaining * 0.9)


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
