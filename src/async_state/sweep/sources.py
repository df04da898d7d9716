"""Where a sweep learns which objects rows refer to: a snapshot, Airflow's database, or its REST API."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import IO, Any, Final, Protocol

from async_state import threads
from async_state.errors import ConfigurationError
from async_state.settings import Settings
from async_state.sweep import database, rest, snapshot
from async_state.sweep.errors import SnapshotError, SourceError
from async_state.sweep.ledger import Ledger
from async_state.sweep.references import of_sweep

#: So many scopes are asked for at once: a part of the connections to the database that one API server has, 15.
_REST_CONCURRENCY: Final = 6
#: As a file's name: standard input.
STDIN: Final = "-"


class Source(Protocol):
    """Says to which objects rows refer, before and after the store is listed."""

    async def read(self, ledger: Ledger) -> datetime:
        """Put references into the ledger, and return a time before which none of the rows was read.

        Raises:
            SnapshotError, SourceError: The references are not complete.
        """

    async def resolve(self, ledger: Ledger, *, has_rows: bool) -> None:
        """Look at the orphans that are left, and take those for doubtful of which the source can't tell.

        Args:
            ledger: Has the objects.
            has_rows: Whether the store has rows that the API server's side keeps there.

        Raises:
            SourceError: The source fails.
        """


class SnapshotSource(Source):
    """What ``export-refs`` has written.

    Args:
        file: Its path, or ``-`` for standard input.
        settings: Of the base URL.
    """

    def __init__(self, file: str, settings: Settings) -> None:
        self._file = file
        self._settings = settings

    async def read(self, ledger: Ledger) -> datetime:  # noqa: D102
        return await threads.call(self._read, ledger)

    async def resolve(self, ledger: Ledger, *, has_rows: bool) -> None:
        """A snapshot is complete."""

    def _read(self, ledger: Ledger) -> datetime:
        try:
            with _opened(self._file) as lines:
                header, refs = snapshot.read(lines, self._settings.url, self._settings.moved_urls)
                ledger.add_refs(of_sweep(self._settings), refs)
        except OSError as e:
            raise SnapshotError(f"the snapshot {self._file} can't be read: {e.strerror}. Nothing was deleted") from e
        return header.taken_at


class DatabaseSource(Source):
    """Airflow's database, where this machine may read it.

    Args:
        settings: Of the base URL.
        conf: Airflow's configuration.
    """

    def __init__(self, settings: Settings, conf: Any) -> None:
        self._settings = settings
        self._conf = conf

    async def read(self, ledger: Ledger) -> datetime:  # noqa: D102
        taken_at = datetime.now(timezone.utc)
        await threads.call(self._read, ledger)
        return taken_at

    async def resolve(self, ledger: Ledger, *, has_rows: bool) -> None:
        """The database is complete."""

    def _read(self, ledger: Ledger) -> None:
        database.check_backend(self._conf)
        references = of_sweep(self._settings)
        ledger.add_refs(references, database.references(references))


class RestSource(Source):
    """Airflow's REST API.

    Args:
        url: Of the API server.
        settings: Of the base URL.
        conf: Airflow's configuration on this machine, which may say that rows are not in the database.

    Raises:
        ConfigurationError: There is no token in the environment.
    """

    def __init__(self, url: str, settings: Settings, conf: Any) -> None:
        self._url = url
        self._settings = settings
        self._conf = conf
        self._token = next(filter(None, map(os.environ.get, rest.TOKENS)), "")
        if not self._token:
            raise ConfigurationError(
                f"--api-url needs a token of Airflow's REST API in the environment variable {rest.TOKENS[0]}"
            )

    async def read(self, ledger: Ledger) -> datetime:  # noqa: D102
        taken_at = datetime.now(timezone.utc)
        # Before the store is listed, which takes minutes.
        async with self._opened(ledger) as api:
            await api.check()
        return taken_at

    async def resolve(self, ledger: Ledger, *, has_rows: bool) -> None:  # noqa: D102
        async with self._opened(ledger) as api:
            elsewhere = has_rows or await threads.call(self._are_rows_elsewhere)
            await api.resolve(concurrency=_REST_CONCURRENCY, rows_elsewhere=elsewhere)

    @contextlib.asynccontextmanager
    async def _opened(self, ledger: Ledger) -> Any:
        async with rest.opened(self._url, self._token, self._settings.timeout) as client:
            yield rest.Rest(client, ledger, of_sweep(self._settings))

    def _are_rows_elsewhere(self) -> bool:
        try:
            return database.check_backend(self._conf)
        except SourceError:
            return True


@contextlib.contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == STDIN:
        yield sys.stdin.buffer
    else:
        with open(file, "rb") as lines:  # noqa: PTH123 - as the shell means it
            yield lines
