"""What a command prints: rows and records on standard output, everything else on standard error.

The four formats are those of Airflow's own ``--output``. They are written here, and not by the libraries that Airflow
uses, since those hold all rows in memory, and a worker has only some of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple, Protocol

from async_state import threads
from async_state.cli import stdout
from async_state.cli.runner import UsageError

#: So many rows decide how wide the columns of a table are.
_FIRST_ROWS: Final = 100
#: A longer cell pushes the rest of its row to the right, instead of widening the column for all rows.
_MAX_WIDTH: Final = 48
#: Progress is written at most so often, in seconds.
_INTERVAL: Final = 0.1

_EMPTY: Final = "No data found"


class Column(NamedTuple):
    """A column of rows, or a line of a record.

    Attributes:
        name: The row's key: the name in ``json`` and ``yaml``, and the heading of ``plain``.
        title: The heading of a ``table``; empty for the name.
        show: Makes a value readable in a ``table``. All other formats have the exact value. It never gets ``None``.
    """

    name: str
    title: str = ""
    show: Callable[[Any], str] = str


Row = Mapping[str, Any]


@contextlib.contextmanager
def rows(form: str, columns: Sequence[Column]) -> Iterator[Callable[[Row], None]]:
    """Print rows on standard output, each as it comes, in constant memory.

    Args:
        form: ``table``, ``json``, ``yaml`` or ``plain``.
        columns: What to print of a row, in this order.

    Yields:
        A function that takes the next row. Without any row, the output says so. Where the block raises, the output
        stays incomplete, so that nobody takes a part of a JSON array for the whole.
    """
    writer = _WRITERS[form](columns)
    yield writer.add
    writer.close()


def print_rows(form: str, columns: Sequence[Column], found: Iterable[Row]) -> None:
    """Print the rows on standard output, as `rows` does."""
    with rows(form, columns) as add:
        for row in found:
            add(row)


def print_record(form: str, columns: Sequence[Column], row: Row) -> None:
    """Print one row on standard output: as one object of ``json`` or ``yaml``, or with a line for each column."""
    if form == "json":
        stdout.write(json.dumps(_exact(columns, row), indent=2, default=_plain_value) + "\n")
    elif form == "yaml":
        stdout.write(_yaml(_exact(columns, row)))
    else:
        titles = [column.title or column.name if form == "table" else column.name for column in columns]
        wide = max(map(len, titles))
        separator = " | " if form == "table" else "  "
        for column, title in zip(columns, titles, strict=True):
            shown = _readable(column, row) if form == "table" else _one_word(column, row)
            stdout.write(f"{title:{wide}}{separator}{shown}".rstrip() + "\n")


def result(text: str) -> None:
    """Print a line of the command's result on standard output."""
    stdout.write(text + "\n")


def note(text: str, *, end: str = "\n") -> None:
    """Print what is no result on standard error."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


async def confirmed(question: str, *, yes: bool) -> bool:
    """Ask on standard error, and read the answer from standard input.

    Args:
        question: One sentence that ends in a question mark.
        yes: Whether ``--yes`` was given, so that nobody is asked.

    Returns:
        Whether the answer is ``y`` or ``yes``.

    Raises:
        UsageError: Standard input is at its end, as in a cron job.
    """
    if yes:
        return True
    note(f"{question} [y/N] ", end="")
    # Neither on the event loop nor through Python's own buffer, whose lock would keep an interrupted process from
    # ending.
    answer = await threads.call(os.read, sys.stdin.fileno(), 1024)
    if not answer:
        note("")
        raise UsageError(
            "Nobody answers on standard input. Add --yes to confirm, or --dry-run to see what is selected."
        )
    return answer.decode(errors="replace").strip().lower() in ("y", "yes")


def is_terminal() -> bool:
    """Return whether somebody can be asked: standard input and standard error are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


class Progress:
    """How far a command is, in one line of standard error that is written over; nothing unless that is a terminal.

    It is a context manager, which removes the line at its end.

    Args:
        doing: What the command does, such as ``Deleting``.
        total: How many objects there are, if that is known.
    """

    def __init__(self, doing: str, total: int | None = None) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._began = self._shown = time.monotonic()
        self._visible = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._visible:
            note("\r\x1b[K", end="")

    def add(self, count: int) -> None:
        """Count ``count`` more objects as done."""
        self._done += count
        now = time.monotonic()
        if self._visible and now - self._shown >= _INTERVAL:
            self._shown = now
            note(f"\r{self.line(now - self._began)}\x1b[K", end="")

    def line(self, seconds: float) -> str:
        """Return the line as it is ``seconds`` after the beginning."""
        pace = self._done / seconds if seconds > 0 else 0.0
        if not self._total:
            return f"{self._doing} {number(self._done, 'object')}, {pace:,.0f}/s"
        left = max(self._total - self._done, 0) / pace if pace else 0.0
        share = min(self._done / self._total, 1.0)
        return (
            f"{self._doing} {self._done:,} of {number(self._total, 'object')} ({share:.0%}), {pace:,.0f}/s, "
            f"{duration(left)} left"
        )


def number(count: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 object`` or ``12,000 objects``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def size(count: int) -> str:
    """Return a number of bytes as people say it, such as ``1.2 MB``."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        # What would be rounded to 1000.0 is one of the next unit.
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:,.1f} PB"


def age(moment: datetime) -> str:
    """Return how long ago the moment is, such as ``3 d``."""
    return duration((datetime.now(timezone.utc) - moment).total_seconds())


def duration(seconds: float) -> str:
    """Return a duration in its largest whole unit, such as ``5 min``; a negative one is none."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(int(seconds), 0)} s"


def printable(text: str) -> str:
    """Return the text with what can't be printed escaped: an identifier must not steer a terminal or add a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Writer(Protocol):
    def __init__(self, columns: Sequence[Column]) -> None: ...

    def add(self, row: Row) -> None: ...

    def close(self) -> None: ...


class _Json:
    """One array, with a line for each row."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._before = "[\n"

    def add(self, row: Row) -> None:
        stdout.write(self._before + json.dumps(_exact(self._columns, row), default=_plain_value))
        self._before = ",\n"

    def close(self) -> None:
        stdout.write("[]\n" if self._before == "[\n" else "\n]\n")


class _Yaml:
    """One sequence, with a mapping for each row."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._empty = True

    def add(self, row: Row) -> None:
        stdout.write(_yaml([_exact(self._columns, row)]))
        self._empty = False

    def close(self) -> None:
        if self._empty:
            stdout.write("[]\n")


class _Table:
    """Columns that the first rows make wide enough, for people."""

    separator = " | "

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._first: list[list[str]] = []
        self._widths: list[int] = []

    def add(self, row: Row) -> None:
        cells = self.cells(row)
        if self._widths:
            self._line(cells)
            return
        self._first.append(cells)
        if len(self._first) == _FIRST_ROWS:
            self._begin()

    def close(self) -> None:
        if not self._widths:
            if self._first:
                self._begin()
            else:
                stdout.write(_EMPTY + "\n")

    def cells(self, row: Row) -> list[str]:
        return [_readable(column, row) for column in self._columns]

    def heading(self) -> list[str]:
        return [column.title or column.name for column in self._columns]

    def rule(self, widths: Sequence[int]) -> None:
        stdout.write("=+=".join("=" * width for width in widths) + "\n")

    def _begin(self) -> None:
        heading = self.heading()
        self._widths = [
            max(len(title), min(max(map(_width, cells)), _MAX_WIDTH))
            for title, cells in zip(heading, zip(*self._first, strict=True), strict=True)
        ]
        self._line(heading)
        self.rule(self._widths)
        for cells in self._first:
            self._line(cells)
        self._first = []

    def _line(self, cells: Sequence[str]) -> None:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(cells, self._widths, strict=True))
        stdout.write(self.separator.join(padded).rstrip() + "\n")


class _Plain(_Table):
    """The columns of a table with exact values and without lines, for programs that split at blanks."""

    separator = "  "

    def cells(self, row: Row) -> list[str]:
        return [_one_word(column, row) for column in self._columns]

    def heading(self) -> list[str]:
        return [column.name for column in self._columns]

    def rule(self, widths: Sequence[int]) -> None:
        pass


_WRITERS: Final[Mapping[str, type[_Writer]]] = {"table": _Table, "json": _Json, "yaml": _Yaml, "plain": _Plain}


def _exact(columns: Sequence[Column], row: Row) -> dict[str, Any]:
    return {column.name: row[column.name] for column in columns}


def _readable(column: Column, row: Row) -> str:
    value = row[column.name]
    return "" if value is None else printable(column.show(value))


def _one_word(column: Column, row: Row) -> str:
    value = row[column.name]
    if isinstance(value, datetime):
        return value.isoformat()
    # An empty cell would move those to its right, for who splits at blanks.
    return "-" if value in (None, "") else printable(str(value))


def _plain_value(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no format for {type(value).__name__}")


def _yaml(value: Any) -> str:
    try:
        import yaml
    except ImportError:
        raise UsageError("--output yaml needs PyYAML, which apache-airflow-core brings; use --output json") from None
    plain = json.loads(json.dumps(value, default=_plain_value))
    # As quick as libyaml where PyYAML was built with it.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(plain, Dumper=dumper, sort_keys=False, allow_unicode=True))


def _width(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
