"""A database for what a command has to remember of a million objects: a temporary file of SQLite's."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Final

from async_state.errors import AsyncStateError

# Nothing is ever committed: the file goes with the process, and one transaction is the quickest.
_SETTINGS: Final = """
PRAGMA temp_store = FILE;
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
"""


class TemporaryFileError(AsyncStateError, OSError):
    """SQLite can't write its temporary file."""


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Open an empty database for the block. Threads may use it by turns.

    SQLite calls this a temporary database: a file in the directory of temporary files that has no name any more. So it
    goes with the process, even if that is killed. It is not made before some megabytes are in it.

    Yields:
        The connection.

    Raises:
        TemporaryFileError: In the block, no directory of temporary files could be written, or it was full.
    """
    with contextlib.closing(sqlite3.connect("", check_same_thread=False)) as connection:
        connection.executescript(_SETTINGS)
        try:
            yield connection
        except sqlite3.OperationalError as e:
            raise TemporaryFileError(
                f"SQLite could not write its temporary file: {e}. Set TMPDIR to a directory that can be written, "
                "with room for some hundred bytes for each object and each reference, and run the command again"
            ) from e
