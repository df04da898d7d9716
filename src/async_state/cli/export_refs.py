"""``export-refs``: every reference in Airflow's database, for ``sweep --refs`` on a machine that can't read it."""

from __future__ import annotations

import argparse
import logging
import sys
from datetime import datetime, timezone

from async_state import compat, threads
from async_state.settings import Settings
from async_state.sweep import database, snapshot
from async_state.sweep.references import References, exported_bases

log = logging.getLogger(__name__)


async def run(args: argparse.Namespace) -> int:
    """Write the snapshot to standard output."""
    await threads.call(_export)
    return 0


def _export() -> None:
    conf = compat.airflow_conf()
    settings = Settings.from_conf(conf)
    if database.check_backend(conf):
        log.warning(
            "[state_store] backend keeps the rows below %s, so that the database has none that are newer. The sweep "
            "reads those rows itself",
            settings.url,
        )
    # Before the first row is read: what is written later is younger than the snapshot.
    header = snapshot.Header(datetime.now(timezone.utc), settings.url)
    refs = database.references(References(exported_bases(settings)))
    for line in snapshot.lines(header, refs):
        sys.stdout.write(f"{line}\n")
