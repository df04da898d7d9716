"""What the command ``check`` asks about a bucket or container, beside the operations of a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from async_state.stores.cloud import http
from async_state.stores.cloud.errors import CloudError, TokenError, is_missing_place
from async_state.stores.cloud.http import Http
from async_state.stores.cloud.place import Place, Requests
from async_state.stores.retry import Attempts, attempts, count_attempt
from async_state.stores.tls import Tls, encryption_of


@dataclass(frozen=True)
class Answer:
    """What the cloud says of settings.

    Attributes:
        found: The settings, in the cloud's own words; empty where it does not tell.
        refused: Why it does not tell, or an empty string.
        is_denied: Whether these credentials may not ask.
        is_missing: Whether there is no such bucket or container.
    """

    found: Mapping[str, Any]
    refused: str = ""
    is_denied: bool = False
    is_missing: bool = False


class Diagnosis:
    """A bucket or container that is open, and what there is to know of it.

    Args:
        place: Where it is.
        http: Open connections to it.
        requests: What is sent over them.
        timeout: Seconds for each question.
    """

    def __init__(self, place: Place, http: Http, requests: Requests, timeout: float) -> None:
        self._place = place
        self._http = http
        self._requests = requests
        self._timeout = timeout

    @property
    def is_proxied(self) -> bool:
        """Whether requests go through a proxy."""
        return self._http.proxy is not None

    async def authorize(self) -> None:
        """Find what shows who sends a request: where it is a token, ask for one.

        Raises:
            AsyncStateError: There is nothing, or the library that asks for tokens is missing.
        """
        place, made = self._place, attempts.get()
        with place.errors.map_exceptions(f"find credentials for {place.url}", place.where, made):
            count_attempt()
            with anyio.move_on_after(self._timeout) as scope:
                await self._requests.authorize()
            if scope.cancelled_caught:
                raise TokenError(f"no token within {self._timeout:g} s", passes=True)

    async def tls(self) -> Tls | None:
        """Connect to the endpoint, and return its encryption; ``None`` for one without.

        Raises:
            StoreError: There is no connection, or its certificate is not accepted.
        """
        place, made = self._place, attempts.get()
        with place.errors.map_exceptions(f"connect to {place.endpoint}", place.where, made):
            count_attempt()
            return await encryption_of(place.endpoint, http.tls_context, place.connect_timeout)

    async def bucket(self) -> Answer:
        """Return what the cloud tells of the bucket or container."""
        return await self._answer(self._requests.bucket())

    async def service(self) -> Answer:
        """Return what the cloud tells of the account that the container is in."""
        return await self._answer(self._requests.service())

    async def _answer(self, asked: Awaitable[Mapping[str, Any]]) -> Answer:
        try:
            with anyio.fail_after(self._timeout):
                return Answer(await asked)
        except CloudError as e:
            is_denied = e.status in (401, 403) and not self._place.errors.is_of_credentials(e)
            return Answer({}, e.code or f"HTTP {e.status}", is_denied=is_denied, is_missing=is_missing_place(e))
        # It is not worth the check that one of these fails in any other way.
        except Exception as e:
            return Answer({}, type(e).__name__)


@asynccontextmanager
async def diagnosis(place: Place, timeout: float) -> AsyncIterator[Diagnosis]:
    """Open connections for the block.

    Args:
        place: Where the bucket or container is.
        timeout: Seconds for each question about it.

    Raises:
        AsyncStateError: The place can't be used as it is configured.
    """
    token = attempts.set(Attempts())
    try:
        async with (
            http.connections(
                place.endpoint, limit=1, connect_timeout=place.connect_timeout, read_timeout=place.read_timeout
            ) as connections,
            place.requests(connections) as requests,
        ):
            yield Diagnosis(place, connections, requests, timeout)
    finally:
        attempts.reset(token)
