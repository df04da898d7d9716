"""A token of access, kept until it ends and renewed before that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from async_state.errors import ConfigurationError
from async_state.settings import is_installed
from async_state.stores.cloud.errors import TokenError

log = logging.getLogger(__name__)

#: With fewer seconds left, a token is not used any more.
_LEAST: Final = 10.0
#: With fewer seconds left, a new one is asked for while the old one is still used. Google's and Azure's services hand
#: out the same token until some minutes before its end.
_EARLY: Final = 240.0
#: Seconds between two such questions.
_PAUSE: Final = 15.0


def check_installed(module: str, url: str, extra: str) -> None:
    """Raise `ConfigurationError` if the library that gives tokens is not installed, without importing it."""
    if not is_installed(module):
        raise ConfigurationError(
            f"[async_state] url: {url} needs the extra: pip install 'airflow-async-state[{extra}]'"
        )


class Token(NamedTuple):
    """A bearer's token, and when it ends, in seconds since 1970."""

    value: str
    ends: float


class Tokens:
    """The tokens of one store. Lives on the I/O thread.

    Args:
        fetch: Asks for a token, and may block; it is called on a thread of its own.
    """

    def __init__(self, fetch: Callable[[], Token]) -> None:
        self._fetch = fetch
        self._token: Token | None = None
        self._asking = asyncio.Lock()
        self._failure: tuple[float, TokenError] | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._renewed = 0.0

    async def get(self) -> str:
        """Return a token that has not ended.

        Raises:
            TokenError: There is none.
        """
        token = self._token
        if token is None or _left(token) < _LEAST:
            return (await self._ask()).value
        is_renewing = self._renewal is not None and not self._renewal.done()
        if _left(token) < _EARLY and time.monotonic() - self._renewed > _PAUSE and not is_renewing:
            self._renewed = time.monotonic()
            self._renewal = asyncio.create_task(self._renew())
        return token.value

    async def aclose(self) -> None:
        """Give up a renewal that is under way."""
        if self._renewal is not None:
            self._renewal.cancel()

    async def _ask(self) -> Token:
        began = time.monotonic()
        async with self._asking:
            token = self._token
            # Another operation may have asked meanwhile, and what it was told counts for all that have waited.
            if token is not None and _left(token) >= _LEAST:
                return token
            if self._failure is not None and self._failure[0] > began:
                raise TokenError(str(self._failure[1]), passes=self._failure[1].passes)
            try:
                token = self._token = await self._fetched()
            except TokenError as e:
                self._failure = time.monotonic(), e
                raise
            return token

    async def _renew(self) -> None:
        try:
            self._token = await self._fetched()
        except TokenError as e:
            # The old one is good for minutes, and then the operation that needs one reports the failure.
            log.debug("A token could not be renewed yet: %s", e)

    async def _fetched(self) -> Token:
        # Not by `threads.call`: forks wait for what the I/O loop's executor does, and this may import modules, which a
        # fork in the middle would leave locked in the new process.
        return await asyncio.get_running_loop().run_in_executor(None, self._fetch)


def _left(token: Token) -> float:
    return token.ends - time.time()
