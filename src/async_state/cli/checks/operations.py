"""Each operation, once, with objects that are made for that and deleted in the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable
from datetime import datetime, timezone
from typing import Any, TypeVar

from async_state import keys
from async_state.cli.checks import Add, Finding, fail, ok, warn
from async_state.errors import AsyncStateError, ConditionsError
from async_state.stores.base import Store

T = TypeVar("T")

#: From so many seconds on, a clock is wrong: S3 and Azure refuse what was signed 15 minutes ago.
_SKEW = 60


class Probe:
    """The operations of a store, each with its time.

    Args:
        store: Open.
        url: Its base URL, for messages.
        timeout: Seconds for each operation.
        add: Takes the findings.
    """

    def __init__(self, store: Store, url: str, timeout: float, add: Add) -> None:
        self._store = store
        self._url = url
        self._timeout = timeout
        self._add = add
        self._left: set[str] = set()

    async def check(self) -> bool:
        """Do each operation. After one that fails, the others are left out.

        Returns:
            Whether all succeeded.
        """
        try:
            await self._operations()
            await self._conditions()
        except _FailedError as e:
            self._add(e.finding)
            return False
        finally:
            if self._left:
                with contextlib.suppress(AsyncStateError):
                    await self._store.delete(sorted(self._left), timeout=self._timeout)
        return True

    async def _operations(self) -> None:
        name, store = self._name(), self._store
        before = datetime.now(timezone.utc)
        body = b'"async_state"'
        _, ms = await self._timed("put", store.put(name, body, "", timeout=self._timeout))
        self._add(ok("put", f"{self._url}/{name}", ms=ms))
        after = datetime.now(timezone.utc)
        found, ms = await self._timed("get", store.get(name, timeout=self._timeout))
        if found != body:
            raise _FailedError(fail("get", f"{self._url}/{name} is not what was put there a moment before"))
        self._add(ok("get", "what was put", ms=ms))
        listed, ms = await self._timed("list", self._list())
        if name not in listed:
            raise _FailedError(fail("list", f"{self._url}/{name} is not listed, though it is there"))
        self._add(ok("list", "what was put", ms=ms))
        details, _ = await self._timed("clock", store.head(name, timeout=self._timeout))
        if details is not None:
            self._add(_clock(details.entry.modified, before, after))
        _, ms = await self._timed("delete", self._delete(name))
        found, _ = await self._timed("delete", store.get(name, timeout=self._timeout))
        if found is not None:
            raise _FailedError(fail("delete", f"{self._url}/{name} is still there"))
        self._add(ok("delete", "what was put", ms=ms))
        names = [self._name(), self._name()]
        for each in names:
            await self._timed("bulk delete", store.put(each, body, "", timeout=self._timeout))
        _, ms = await self._timed("bulk delete", self._delete(*names))
        self._add(ok("bulk delete", "two objects in one request, where the store has such a request", ms=ms))

    async def _conditions(self) -> None:
        name, store = self._name(), self._store
        try:
            await store.put_if_unchanged(name, b"1 ", "", None, timeout=self._timeout)
        except ConditionsError as e:
            self._add(warn("conditional writes", str(e), "Do without update and aupdate, or use another store"))
        except AsyncStateError as e:
            raise _FailedError(fail("conditional writes", str(e))) from None
        else:
            self._add(ok("conditional writes", "obeyed: update and aupdate work"))
        await self._timed("conditional deletes", store.put(name, b"2 ", "", timeout=self._timeout))
        seen, _ = await self._timed("conditional deletes", store.head(name, timeout=self._timeout))
        await self._timed("conditional deletes", store.put(name, b"3 ", "", timeout=self._timeout))
        if seen is None:
            raise _FailedError(fail("conditional deletes", f"{self._url}/{name} was put, and is not there"))
        gone, _ = await self._timed("conditional deletes", store.delete_unchanged(seen, timeout=self._timeout))
        if gone:
            self._add(
                warn(
                    "conditional deletes",
                    "ignored: a sweep could delete what is written between its last look and its deletion",
                    "Sweep with a --grace that is longer than any task runs",
                )
            )
        else:
            self._add(ok("conditional deletes", "obeyed: a sweep spares what is written meanwhile"))

    def _name(self) -> str:
        name = keys.probe_name()
        self._left.add(name)
        return name

    async def _list(self) -> set[str]:
        pages = self._store.entries(keys.PROBES, timeout=self._timeout)
        return {entry.name async for page in pages for entry in page}

    async def _delete(self, *names: str) -> None:
        for error in (await self._store.delete(names, timeout=self._timeout)).values():
            raise error
        self._left.difference_update(names)

    async def _timed(self, check: str, awaitable: Awaitable[T]) -> tuple[T, float]:
        """Await the operation, and return its result and its milliseconds.

        Raises:
            _FailedError: It failed.
        """
        start = time.monotonic()
        try:
            result = await awaitable
        except AsyncStateError as e:
            raise _FailedError(fail(check, str(e))) from None
        return result, round((time.monotonic() - start) * 1000, 1)


class _FailedError(Exception):
    """Ends the checks with a finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding: Any = finding


def _clock(modified: datetime, before: datetime, after: datetime) -> Finding:
    # The store's clock has whole seconds.
    early, late = (before - modified).total_seconds() - 1, (modified - after).total_seconds()
    skew = max(early, late, 0.0)
    if skew < _SKEW:
        return ok("clock", f"{skew:.0f} s apart from the store's")
    which = "behind" if late > early else "ahead of"
    return warn(
        "clock",
        f"this machine's clock is {skew:,.0f} s {which} the store's; clouds refuse what was signed 900 s ago, and a "
        "sweep's --grace counts wrongly",
        "Synchronise the clocks, by NTP say",
    )
