"""``export-refs``: every reference in Airflow's database, for ``sweep --refs`` on a machine that can't read it."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone

from async_state import compat, threads
from async_state.cli import context, output
from async_state.sweep import database, snapshot
from async_state.sweep.references import References


async def run(args: argparse.Namespace) -> int:
    """Write the snapshot to standard output."""
    await threads.call(_export)
    return 0


def _export() -> None:
    settings = context.settings()
    if database.check_backend(compat.airflow_conf()):
        output.note(
            f"[state_store] backend keeps the rows below {settings.url}: the sweep finds them there. Older rows may be "
            "in the database"
        )
    # Before the first row is read: what is written later is younger than the snapshot.
    header = snapshot.Header(datetime.now(timezone.utc), settings.url)
    refs = database.references(References(settings.bases))
    for line in snapshot.lines(header, refs):
        output.result(line)
