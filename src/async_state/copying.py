"""list -> compare -> copy -> verify -> count: what ``airflow async-state copy`` is. All of it runs on the I/O thread.

What is below the target already is skipped, so a copy that was interrupted goes on where it was. What differs there and
was written later is kept: a task has set the key again below the target. So is what is written there while the copy
runs: each object is copied over what was seen, and nothing else. What has to be remembered of a million objects lies in
a SQLite file, since two stores may list in different orders.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

import anyio

from async_state import codec, keys
from async_state.errors import CorruptObjectError, StoreError
from async_state.ownership import NAME as OWNER
from async_state.stores.base import CHECKSUM, Details, Entry, Store, checksum

T = TypeVar("T")

#: An object that is written again while it is copied is copied again, at most so often.
_ATTEMPTS: Final = 5
#: Objects of at least this size are read and put one at a time, since each is in memory as a whole.
_LARGE_BYTES: Final = 8 * 1024 * 1024

_SCHEMA: Final = "CREATE TABLE pending (name TEXT PRIMARY KEY) WITHOUT ROWID"


@dataclass
class Survey:
    """What there is to copy.

    Attributes:
        objects: How many objects of ours are below the source.
        pending: How many of them have to be copied.
        pending_bytes: The bytes of those.
        newer: How many differ at the target and were written later there. They are not copied.
        foreign: How many objects below the source are not ours. They are not copied.
    """

    objects: int = 0
    pending: int = 0
    pending_bytes: int = 0
    newer: int = 0
    foreign: int = 0


class Copying:
    """One copy of all objects of ours.

    Args:
        source: Where they are.
        source_url: Its base URL.
        target: Where they go.
        concurrency: The most objects that are compared or copied at once.
        timeout: Seconds for each request.
        database: As `temporary.database` opens it.
    """

    def __init__(
        self,
        source: Store,
        source_url: str,
        target: Store,
        *,
        concurrency: int,
        timeout: float,
        database: sqlite3.Connection,
    ) -> None:
        self._source = source
        self._source_url = source_url
        self._target = target
        self._concurrency = concurrency
        self._timeout = timeout
        self._database = database
        self._one_large = anyio.Lock()
        database.executescript(_SCHEMA)
        self._at_source = _Entries(database, "source")
        self._at_target = _Entries(database, "target")
        #: How many objects were written below the target since the survey, and are kept there.
        self.kept = 0

    async def survey(self, progress: Callable[[int], None]) -> Survey:
        """Compare the objects below the source with those below the target, and remember which have to be copied.

        Args:
            progress: Is called after each page, with the number of its objects.

        Raises:
            StoreError: One of the stores failed.
        """
        found = Survey()

        async def compare(entry: Entry) -> None:
            self._at_source.add([entry])
            there = self._at_target.get(entry.name)
            if there is not None and await self._is_same(entry, there):
                return
            if there is not None and _is_newer(there, entry):
                found.newer += 1
                return
            found.pending += 1
            found.pending_bytes += entry.size
            self._database.execute("INSERT OR IGNORE INTO pending VALUES (?)", (entry.name,))

        await self._list_target()
        async with contextlib.aclosing(self._source.entries("", timeout=self._timeout)) as pages:
            async for page in pages:
                ours = [entry for entry in page if keys.parse_name(entry.name)]
                found.objects += len(ours)
                found.foreign += sum(entry.name != OWNER for entry in page) - len(ours)
                await self._each(ours, compare)
                progress(len(ours))
        return found

    async def copy(self, progress: Callable[[int], None]) -> dict[str, str]:
        """Copy what the survey has found, and compare each copy with its original.

        Args:
            progress: Is called after each object, with 1.

        Returns:
            Why an object is not copied, by its name.

        Raises:
            StoreError: One of the stores failed. What was copied is copied, and a new survey finds the rest.
        """
        failed: dict[str, str] = {}

        async def copy(row: tuple[str]) -> None:
            (name,) = row
            try:
                await self._copy(name)
            except CorruptObjectError as e:
                failed[name] = str(e)
            progress(1)

        await self._each(self._database.execute("SELECT name FROM pending"), copy)
        return failed

    async def missing(self) -> int:
        """List both places anew, and count the objects of ours below the source that are not below the target.

        One that was written since it was compared or copied counts as well.

        Raises:
            StoreError: One of the stores failed.
        """
        missing = 0
        await self._list_target()
        async with contextlib.aclosing(self._source.entries("", timeout=self._timeout)) as pages:
            async for page in pages:
                for entry in page:
                    if keys.parse_name(entry.name):
                        is_there = self._at_target.get(entry.name) is not None
                        missing += not is_there or self._at_source.get(entry.name) != entry
        return missing

    async def _list_target(self) -> None:
        self._at_target.clear()
        async with contextlib.aclosing(self._target.entries("", timeout=self._timeout)) as pages:
            async for page in pages:
                self._at_target.add(entry for entry in page if keys.parse_name(entry.name))

    async def _copy(self, name: str) -> None:
        entry = self._at_source.get(name)
        if entry is None:
            return
        surveyed = self._at_target.get(name)
        for _ in range(_ATTEMPTS):
            seen = await self._target.head(name, timeout=self._timeout)
            # A task may have set the key below the target since the survey.
            if seen is not None and not _is_still(surveyed, seen.entry):
                self.kept += 1
                return
            if not await self._target.copy_from(self._source_url, name, seen, timeout=self._timeout):
                await self._read_and_put(entry, seen)
            copy = await self._target.head(name, timeout=self._timeout)
            if copy is not None and _has_etag_of(entry, copy.entry):
                return
            original = await self._source.head(name, timeout=self._timeout)
            if original is None:
                return
            if copy is not None and await self._has_content_of(original, copy):
                self._at_source.add([original.entry])
                return
            # It was set again meanwhile, on one of the two sides. If that was the source's, it will be counted.
            if copy is not None and not _is_still(surveyed, copy.entry) and await self._is_whole(copy.entry):
                self.kept += original.entry == entry
                return
            surveyed = copy and copy.entry
        raise CorruptObjectError("its copy was never the same")

    async def _read_and_put(self, entry: Entry, seen: Details | None) -> None:
        async with self._one_large if entry.size >= _LARGE_BYTES else contextlib.nullcontext():
            body = await self._source.get(entry.name, timeout=self._timeout)
            if body is not None:
                encoding = codec.content_encoding(body)
                await self._target.put_over(entry.name, body, encoding, seen, timeout=self._timeout)

    async def _is_whole(self, copy: Entry) -> bool:
        """Tell whether what is below the target is what somebody has written there, and no copy that went wrong."""
        async with self._one_large if copy.size >= _LARGE_BYTES else contextlib.nullcontext():
            with contextlib.suppress(CorruptObjectError):
                return await self._target.get(copy.name, timeout=self._timeout) is not None
            return False

    async def _is_same(self, entry: Entry, copy: Entry) -> bool:
        if _has_etag_of(entry, copy):
            return True
        original = await self._source.head(entry.name, timeout=self._timeout)
        found = await self._target.head(entry.name, timeout=self._timeout)
        return original is not None and found is not None and await self._has_content_of(original, found)

    async def _has_content_of(self, original: Details, copy: Details) -> bool:
        """Compare checksums: with KMS, and in another kind of store, a copy has another ETag."""
        if original.entry.size != copy.entry.size:
            return False
        checksums = [await self._checksum(self._source, original), await self._checksum(self._target, copy)]
        return checksums[0] == checksums[1] != ""

    async def _checksum(self, store: Store, details: Details) -> str:
        if CHECKSUM in details.metadata:
            return details.metadata[CHECKSUM]
        with contextlib.suppress(CorruptObjectError):
            body = await store.get(details.entry.name, timeout=self._timeout)
            return "" if body is None else checksum(body)
        return ""

    async def _each(self, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
        """Do the work for all items, so many at once, until the store fails for one."""
        failures: list[StoreError] = []
        slots = anyio.Semaphore(self._concurrency)

        async def run(item: T) -> None:
            try:
                await work(item)
            except StoreError as e:
                failures.append(e)
            finally:
                slots.release()

        async with anyio.create_task_group() as group:
            for item in items:
                await slots.acquire()
                if failures:
                    break
                group.start_soon(run, item)
        if failures:
            raise failures[0]


class _Entries:
    """The entries of a listing, by name, in a table of the database."""

    def __init__(self, database: sqlite3.Connection, table: str) -> None:
        self._database = database
        self._select = f"SELECT * FROM {table} WHERE name = ?"  # noqa: S608 - two names of this module
        self._insert = f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)"  # noqa: S608
        self._delete = f"DELETE FROM {table}"  # noqa: S608
        database.execute(
            f"CREATE TABLE {table} (name TEXT PRIMARY KEY, size INTEGER, modified TEXT, etag TEXT) WITHOUT ROWID"
        )

    def add(self, entries: Iterable[Entry]) -> None:
        rows = [(name, size, modified.isoformat(), etag) for name, size, modified, etag in entries]
        self._database.executemany(self._insert, rows)

    def get(self, name: str) -> Entry | None:
        row = self._database.execute(self._select, (name,)).fetchone()
        return row and Entry(row[0], row[1], datetime.fromisoformat(row[2]), row[3])

    def clear(self) -> None:
        self._database.execute(self._delete)


def _has_etag_of(entry: Entry, other: Entry) -> bool:
    return entry.size == other.size and entry.etag == other.etag != ""


def _is_still(entry: Entry | None, other: Entry) -> bool:
    """Tell whether nobody has written the object meanwhile. Of a copy, not every store says one time of its write."""
    if entry is None or (entry.size, entry.etag) != (other.size, other.etag):
        return False
    return entry.etag != "" or entry.modified == other.modified


def _is_newer(entry: Entry, other: Entry) -> bool:
    """Tell whether an object was written after the other one. Stores say when to the second; in doubt, it was not."""
    return entry.modified.replace(microsecond=0) > other.modified.replace(microsecond=0)
