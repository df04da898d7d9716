"""What a sweep has to remember of a million objects, in a database.

Names are compared by their bytes, as the stores list them, so that a page of a listing is a range of every table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timezone
from enum import Enum
from itertools import islice
from typing import Final

from async_state.stores.base import Entry
from async_state.sweep.references import References

_PAGE: Final = 1000
_SCHEMA: Final = """
PRAGMA cache_size = -32768;
CREATE TABLE refs (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE unknown (name TEXT PRIMARY KEY, base TEXT) WITHOUT ROWID;
CREATE TABLE rows (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE assets (prefix TEXT, id INTEGER, PRIMARY KEY (prefix, id)) WITHOUT ROWID;
CREATE TABLE shown (prefix TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE objects (
    name TEXT PRIMARY KEY, size INTEGER, modified REAL, etag TEXT, verdict TEXT
) WITHOUT ROWID;
"""


class Verdict(str, Enum):
    """What an object is."""

    #: A row refers to it, or it is a row itself.
    REFERENCED = "referenced"
    #: No row refers to it, but one may by now: it is younger than the grace period.
    TOO_YOUNG = "too_young"
    #: No row is seen to refer to it, but not every row that might can be seen.
    IN_DOUBT = "in_doubt"
    #: Its name is not exactly one of ours.
    FOREIGN = "foreign"
    #: No row refers to it.
    ORPHAN = "orphan"


class Ledger:
    """References, rows in the store, and the objects to which no reference was seen when they were listed.

    Args:
        connection: To an empty database, such as `temporary.database` opens.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.executescript(_SCHEMA)

    def add_refs(self, references: References, refs: Iterable[str]) -> None:
        """Remember to which names rows refer.

        Args:
            references: Tells them.
            refs: What the rows have.
        """
        left = iter(refs)
        while batch := list(islice(left, _PAGE)):
            names = [(name,) for name in references.names(batch)]
            self._db.executemany("INSERT OR IGNORE INTO refs VALUES (?)", names)
            self._db.executemany("INSERT OR IGNORE INTO unknown VALUES (?, ?)", references.unknown(batch))

    def has_refs(self) -> bool:
        """Tell whether any row refers to any name."""
        return bool(self._db.execute("SELECT EXISTS (SELECT 1 FROM refs)").fetchone()[0])

    def referenced(self, names: Collection[str]) -> set[str]:
        """Return those of the names, which follow each other in a listing, to which a row refers."""
        if not names:
            return set()
        within = (min(names), max(names))
        found = self._db.execute("SELECT name FROM refs WHERE name BETWEEN ? AND ?", within)
        return {name for (name,) in found if name in names}

    def add_rows(self, names: Iterable[str]) -> None:
        """Remember objects that are rows, written by the API server's side."""
        self._db.executemany("INSERT OR IGNORE INTO rows VALUES (?)", [(name,) for name in names])

    def rows(self) -> Iterator[str]:
        """Yield the names of the objects that are rows."""
        return self._each("SELECT name FROM rows WHERE name > ? ORDER BY name LIMIT ?")

    def add_asset(self, asset: int, prefixes: Iterable[str]) -> None:
        """Remember the id of an asset, by the prefixes that names of its objects may have."""
        self._db.executemany("INSERT OR IGNORE INTO assets VALUES (?, ?)", [(prefix, asset) for prefix in prefixes])

    def assets(self, prefix: str) -> list[int]:
        """Return the ids of the assets whose objects' names may have the prefix."""
        return [found for (found,) in self._db.execute("SELECT id FROM assets WHERE prefix = ?", (prefix,))]

    def add_objects(self, entries: Iterable[tuple[Entry, Verdict]]) -> None:
        """Remember objects, each with what it is as far as is known."""
        self._db.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)",
            [(e.name, e.size, e.modified.timestamp(), e.etag, verdict.value) for e, verdict in entries],
        )

    def next_object(self, after: str) -> str | None:
        """Return the first name of an object after ``after``."""
        found = self._db.execute("SELECT name FROM objects WHERE name > ? ORDER BY name LIMIT 1", (after,)).fetchone()
        return found[0] if found else None

    def doubt(self, prefix: str) -> None:
        """Take the orphans whose names start with ``prefix``, which ends in ``/``, for doubtful."""
        self._db.execute(
            "UPDATE objects SET verdict = ? WHERE name >= ? AND name < ? AND verdict = ?",
            (Verdict.IN_DOUBT.value, prefix, after(prefix), Verdict.ORPHAN.value),
        )

    def add_shown(self, prefix: str) -> None:
        """Remember the prefix of a scope of which all rows were shown."""
        self._db.execute("INSERT OR IGNORE INTO shown VALUES (?)", (prefix,))

    def doubt_shown(self) -> None:
        """Take the orphans of the scopes of which all rows were shown for doubtful."""
        for prefix in self._each("SELECT prefix FROM shown WHERE prefix > ? ORDER BY prefix LIMIT ?"):
            self.doubt(prefix)

    def apply_refs(self) -> None:
        """Take for referenced what rows refer to that were read after it was listed."""
        self._db.execute(
            "UPDATE objects SET verdict = ? WHERE EXISTS (SELECT 1 FROM refs WHERE refs.name = objects.name)",
            (Verdict.REFERENCED.value,),
        )

    def doubt_unknown(self) -> str:
        """Take the orphans for doubtful to whose names rows refer below base URLs that nobody knows here.

        Returns:
            One of these base URLs, or an empty string.
        """
        query = (
            "SELECT base FROM unknown JOIN objects USING (name) WHERE verdict = ? LIMIT 1",
            (Verdict.ORPHAN.value,),
        )
        found = self._db.execute(*query).fetchone()
        self._db.execute(
            "UPDATE objects SET verdict = ? WHERE verdict = ? AND name IN (SELECT name FROM unknown)",
            (Verdict.IN_DOUBT.value, Verdict.ORPHAN.value),
        )
        return found[0] if found else ""

    def orphans(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the orphans, whose names start with ``prefix``, in the order of their names."""
        last, end = prefix, after(prefix) if prefix else "\U0010ffff"
        while page := self._db.execute(
            "SELECT name, size, modified, etag FROM objects "
            "WHERE name > ? AND name < ? AND verdict = ? ORDER BY name LIMIT ?",
            (last, end, Verdict.ORPHAN.value, _PAGE),
        ).fetchall():
            for name, size, modified, etag in page:
                yield Entry(name, size, datetime.fromtimestamp(modified, timezone.utc), etag)
                last = name

    def _each(self, query: str) -> Iterator[str]:
        last = ""
        while page := self._db.execute(query, (last, _PAGE)).fetchall():
            for (last,) in page:
                yield last

    def counts(self) -> dict[Verdict, tuple[int, int]]:
        """Return the number of objects, and their bytes, of each verdict."""
        found = self._db.execute("SELECT verdict, count(*), total(size) FROM objects GROUP BY verdict")
        return {Verdict(verdict): (count, int(size)) for verdict, count, size in found}


def after(prefix: str) -> str:
    """Return the first name that is greater than all names with the prefix, which ends in ``/``."""
    return prefix[:-1] + chr(ord("/") + 1)
