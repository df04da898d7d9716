"""``sweep``: show or delete the objects to which no row of Airflow's database refers."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Final

from async_state import compat, connection, threads
from async_state.cli.runner import DONE, FAILED, UsageError
from async_state.connection import Connection
from async_state.errors import StoreError
from async_state.settings import Settings
from async_state.stores import open_store
from async_state.stores.base import Entry, Store
from async_state.sweep import ledger as ledgers
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
_SHOWN: Final = 20


async def run(args: argparse.Namespace) -> int:
    """Find the orphans, show them, and delete them if asked to."""
    if sum(map(bool, (args.refs, args.database, args.api_url))) != 1:
        raise UsageError("sweep needs one source of references: --refs FILE, --database or --api-url URL")
    grace, limit = _duration(args.grace), _percentage(args.max_orphans)
    conf = compat.airflow_conf()
    settings = Settings.from_conf(conf)
    source: Source
    if args.refs:
        source = SnapshotSource(args.refs, settings)
    elif args.database:
        source = DatabaseSource(settings, conf)
    else:
        source = RestSource(args.api_url, settings, conf)
    conn_id = settings.aws_conn_id
    store = open_store(settings.url, settings, await connection.aget(conn_id) if conn_id else Connection())
    try:
        with ledgers.opened() as ledger, _reporting(args.report, settings.url) as report:
            found = await survey.find(store, ledger, source, settings, grace, _progress("objects listed"))
            _end_progress()
            return await _act(args, settings, store, ledger, found, limit, report)
    finally:
        await store.aclose()


async def _act(
    args: argparse.Namespace,
    settings: Settings,
    store: Store,
    ledger: Ledger,
    found: Found,
    limit: float,
    report: Report,
) -> int:
    if args.output == "table":
        _show(ledger, found, settings.url)
    refusal = found.refusal(limit)
    if not args.delete:
        for entry in ledger.orphans():
            report(entry, "orphan", "")
        _print_counts(args.output, found, deleted=0)
        if refusal:
            _say(f"--delete would be refused: {refusal}.")
        return FAILED if found.orphans or refusal else DONE
    if refusal:
        _print_counts(args.output, found, deleted=0)
        raise RefusedError(f"Nothing was deleted: {refusal}")
    if found.orphans and not await _is_confirmed(args, found, settings.url):
        _print_counts(args.output, found, deleted=0)
        _say("Nothing was deleted.")
        return FAILED
    return await _delete(args, settings, store, ledger, found, report)


async def _delete(
    args: argparse.Namespace, settings: Settings, store: Store, ledger: Ledger, found: Found, report: Report
) -> int:
    reasons: list[str] = []
    progress, tried = _progress(f"of {found.orphans} orphans"), 0

    def done(entry: Entry, outcome: Outcome, reason: str) -> None:
        nonlocal tried
        tried += 1
        if outcome is Outcome.FAILED and not reasons:
            reasons.append(reason)
        report(entry, outcome.value, reason)
        progress(tried)

    outcomes = await remove_all(
        store, ledger.orphans(), concurrency=settings.max_concurrency, timeout=settings.timeout, done=done
    )
    _end_progress()
    _print_counts(args.output, found, deleted=outcomes[Outcome.DELETED])
    if outcomes[Outcome.CHANGED]:
        _say(f"{outcomes[Outcome.CHANGED]} of the orphans were written again since they were listed, and are kept.")
    if reasons:
        left = found.orphans - sum(outcomes.values()) + outcomes[Outcome.FAILED]
        raise StoreError(
            f"{left} of the orphans are left, as they could not be deleted. First cause: {reasons[0].rstrip('. ')}. "
            "The same command, run again, takes them up"
        )
    return DONE


@contextmanager
def _reporting(file: str | None, url: str) -> Iterator[Report]:
    """Open the report: a JSON line for each orphan, complete whenever the process is killed."""
    if file is None:
        yield lambda *_: None
        return
    try:
        lines = open(file, "a", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115 - as the shell means it
    except OSError as e:
        raise UsageError(f"--report {file} can't be written: {e.strerror}") from None
    with lines:

        def report(entry: Entry, outcome: str, reason: str) -> None:
            line = {"ref": f"{url}/{entry.name}", "bytes": entry.size, "modified": entry.modified.isoformat()}
            lines.write(json.dumps({**line, "outcome": outcome, **({"reason": reason} if reason else {})}) + "\n")

        yield report


def _show(ledger: Ledger, found: Found, url: str) -> None:
    """Print the first orphans."""
    if not found.orphans:
        _print(f"No orphans below {url}.\n")
        return
    _print(f"Orphans below {url}:\n")
    for entry in islice(ledger.orphans(), _SHOWN):
        _print(f"{entry.size:>13,} B  {entry.modified:%Y-%m-%d %H:%M:%S}  {entry.name}")
    if found.orphans > _SHOWN:
        _print(f"... and {found.orphans - _SHOWN:,} more (--report FILE lists them all)")
    _print("")


def _print_counts(output: str, found: Found, *, deleted: int) -> None:
    counts = {name: deleted if name == "deleted" else getattr(found, name) for name in _COUNTS}
    if output == "json":
        _print(json.dumps(counts))
    elif output == "table":
        for name, count in counts.items():
            _print(f"{name:<11}{count:>13,}")
    else:
        # One line each, which is YAML as well.
        for name, count in counts.items():
            _print(f"{name}: {count}" if output == "yaml" else f"{name} {count}")


async def _is_confirmed(args: argparse.Namespace, found: Found, url: str) -> bool:
    if args.yes or not sys.stdin.isatty():
        return True
    _say(f"Delete {found.orphans:,} objects, {found.bytes:,} bytes, below {url}? [y/N] ", end="")
    answer = await threads.call(sys.stdin.readline)
    return answer.strip().lower() in ("y", "yes")


def _progress(what: str) -> Callable[[int], None]:
    def progress(count: int) -> None:
        if sys.stderr.isatty():
            _say(f"\r{count:,} {what}", end="")

    return progress


def _end_progress() -> None:
    if sys.stderr.isatty():
        _say("")


def _duration(text: str) -> timedelta:
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if text == "0":
        return timedelta(0)
    if not parts or "".join(map("".join, parts)) != text:
        raise UsageError(f"--grace must be a time such as 24h, 90m, 7d or 1h30m, not {text!r}")
    try:
        return sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    except OverflowError:
        raise UsageError(f"--grace {text} is too long") from None


def _percentage(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?%", text) or not 0 <= float(text[:-1]) <= 100:
        raise UsageError(f"--max-orphans must be a percentage from 0% to 100%, such as 50%, not {text!r}")
    return float(text[:-1])


def _print(text: str) -> None:
    print(text)  # noqa: T201 - a command's output


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)  # noqa: T201
