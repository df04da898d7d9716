"""``delete``: the objects that the filters select.

Rows in Airflow's database that refer to them stay, and read as ``None`` until the next set.
"""

from __future__ import annotations

import argparse

from async_state import purge
from async_state.cli import context, filters
from async_state.cli.output import Progress, confirmed, note, number, result, size
from async_state.cli.runner import DONE, FAILED, UsageError


async def run(args: argparse.Namespace) -> int:
    """Count what is selected, ask, and delete it. Run again after a failure, it takes up the rest."""
    if filters.is_empty(args):
        raise UsageError("delete needs a filter, such as --dag-id or --asset-name, and never deletes everything")
    settings, selected = context.settings(), filters.selection(args)
    async with context.opened(settings) as store:
        count = total = 0
        with Progress("Counting") as progress:
            async for page in selected.entries(store, settings.timeout):
                count += len(page)
                total += sum(entry.size for entry, _ in page)
                progress.add(len(page))
        what = f"{number(count, 'object')} ({size(total)}) below {settings.url}"
        if not count or args.dry_run:
            result(f"Would delete {what}" if count else "No data found")
            return DONE
        if not await confirmed(f"Delete {what}? Rows that refer to them read as None afterwards.", yes=args.yes):
            note("Nothing was deleted.")
            return FAILED
        deleted = 0
        with Progress("Deleting", count) as progress:

            def selects(name: str) -> bool:
                nonlocal deleted
                if selected.place(name) is None:
                    return False
                deleted += 1
                progress.add(1)
                return True

            await purge.purge_prefix(
                store,
                selected.prefix,
                concurrency=settings.max_concurrency,
                timeout=settings.timeout,
                selects=selects,
            )
    result(f"Deleted {number(deleted, 'object')}")
    return DONE
