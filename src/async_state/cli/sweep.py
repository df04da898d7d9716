"""``sweep``: show or delete the objects to which no row of Airflow's database refers."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Final

from async_state import compat, temporary
from async_state.cli import context
from async_state.cli.output import (
    Column,
    Progress,
    age,
    confirmed,
    is_terminal,
    note,
    number,
    print_record,
    print_rows,
    result,
    size,
)
from async_state.cli.runner import DONE, FAILED, UsageError
from async_state.errors import StoreError
from async_state.settings import Settings
from async_state.stores.base import Entry, Store
from async_state.sweep import survey
from async_state.sweep.errors import RefusedError
from async_state.sweep.ledger import Ledger
from async_state.sweep.remove import Outcome, remove_all
from async_state.sweep.sources import DatabaseSource, RestSource, SnapshotSource, Source
from async_state.sweep.survey import Found

#: Is called with an orphan, what became of it, and why.
Report = Callable[[Entry, str, str], None]

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_COUNTS: Final = ("objects", "referenced", "too_young", "in_doubt", "foreign", "orphans", "deleted", "bytes")
#: The name last, as it is longer than any column.
_ORPHAN: Final = (Column("size", show=size), Column("modified", "age", show=age), Column("name", "orphan"))
#: So many orphans are shown; ``--report`` has them all.
_SHOWN: Final = 20


async def run(args: argparse.Namespace) -> int:
    """Find the orphans, show them, and delete them if asked to."""
    settings = context.settings()
    source = _source(args, settings)
    grace, limit = _duration(args.grace), _percentage(args.max_orphans)
    async with context.opened(settings) as store:
        with temporary.database() as database, _reporting(args.report, settings.url) as report:
            ledger = Ledger(database)
            with Progress("Listing") as progress:
                found = await survey.find(store, ledger, source, settings, grace, progress.add)
            if args.output == "table" and found.orphans:
                print_rows("table", _ORPHAN, (entry._asdict() for entry in islice(ledger.orphans(), _SHOWN)))
                result(f"and {found.orphans - _SHOWN:,} more\n" if found.orphans > _SHOWN else "")
            if args.delete:
                return await _delete(args, settings, store, ledger, found, limit, report)
            for entry in ledger.orphans():
                report(entry, "orphan", "")
    _print_counts(args.output, found, deleted=0)
    _note_unknown_base(found, settings)
    refusal = found.refusal(limit)
    if refusal:
        note(f"--delete would be refused: {refusal}.")
    return FAILED if found.orphans or refusal else DONE


async def _delete(
    args: argparse.Namespace,
    settings: Settings,
    store: Store,
    ledger: Ledger,
    found: Found,
    limit: float,
    report: Report,
) -> int:
    refusal = found.refusal(limit)
    if refusal:
        _print_counts(args.output, found, deleted=0)
        raise RefusedError(f"Nothing was deleted: {refusal}.")
    question = f"Delete {number(found.orphans, 'object')} ({size(found.bytes)}) below {settings.url}?"
    if found.orphans and not await confirmed(question, yes=args.yes or not is_terminal()):
        _print_counts(args.output, found, deleted=0)
        note("Nothing was deleted.")
        return FAILED
    reasons: list[str] = []
    with Progress("Deleting", found.orphans) as progress:

        def done(entry: Entry, outcome: Outcome, reason: str) -> None:
            if outcome is Outcome.FAILED:
                reasons[:] = reasons or [reason]
            report(entry, outcome.value, reason)
            progress.add(1)

        outcomes = await remove_all(
            store, ledger.orphans(), concurrency=settings.max_concurrency, timeout=settings.timeout, done=done
        )
    _print_counts(args.output, found, deleted=outcomes[Outcome.DELETED])
    _note_unknown_base(found, settings)
    if changed := outcomes[Outcome.CHANGED]:
        note(f"Kept: {number(changed, 'object')} that somebody has written again since they were listed.")
    if reasons:
        left = found.orphans - sum(outcomes.values()) + outcomes[Outcome.FAILED]
        raise StoreError(
            f"{number(left, 'orphan')} could not be deleted. First cause: {reasons[0].rstrip('. ')}. The same command, "
            "run again, takes up the rest."
        )
    return DONE


def _source(args: argparse.Namespace, settings: Settings) -> Source:
    if sum(map(bool, (args.refs, args.database, args.api_url))) != 1:
        raise UsageError("sweep needs one source of references: --refs FILE, --database or --api-url URL")
    if args.refs:
        return SnapshotSource(args.refs, settings)
    if args.database:
        return DatabaseSource(settings, compat.airflow_conf())
    return RestSource(args.api_url, settings, compat.airflow_conf())


@contextmanager
def _reporting(file: str | None, url: str) -> Iterator[Report]:
    """Open the report, which gets a JSON line for each orphan. What a sweep that was killed has written stays."""
    if file is None:
        yield lambda *_: None
        return
    try:
        lines = open(file, "a", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115 - as the shell means it
    except OSError as e:
        raise UsageError(f"--report {file} can't be written: {e.strerror}") from None
    with lines:

        def report(entry: Entry, outcome: str, reason: str) -> None:
            line = {
                "ref": f"{url}/{entry.name}",
                "bytes": entry.size,
                "modified": entry.modified.isoformat(),
                "outcome": outcome,
            }
            lines.write(json.dumps(line | ({"reason": reason} if reason else {})) + "\n")

        yield report


def _note_unknown_base(found: Found, settings: Settings) -> None:
    if found.unknown_base:
        note(
            f"In doubt: rows refer to objects of the same names below {found.unknown_base}, which is in no option "
            f"here. If its objects were copied below {settings.url}, add it to [async_state] moved_urls, and otherwise "
            "to trusted_urls."
        )


def _print_counts(output: str, found: Found, *, deleted: int) -> None:
    counts = {**found._asdict(), "deleted": deleted}
    columns = [Column(name, show=size if name == "bytes" else "{:,}".format) for name in _COUNTS]
    print_record(output, columns, counts)


def _duration(text: str) -> timedelta:
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if text == "0":
        return timedelta(0)
    if not parts or "".join(map("".join, parts)) != text:
        raise UsageError(f"--grace must be a time such as 24h, 90m, 7d or 1h30m, not {text!r}")
    try:
        return sum((timedelta(**{_UNITS[unit]: float(count)}) for count, unit in parts), timedelta())
    except OverflowError:
        raise UsageError(f"--grace {text} is too long") from None


def _percentage(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?%", text) or float(text[:-1]) > 100:
        raise UsageError(f"--max-orphans must be a percentage from 0% to 100%, such as 50%, not {text!r}")
    return float(text[:-1])
