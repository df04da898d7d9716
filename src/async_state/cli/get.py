"""``get``: one key, by its reference or by filters, with its value only if that is asked for."""

from __future__ import annotations

import argparse
import json
from typing import Final

from async_state import codec, keys
from async_state.cli import context, filters
from async_state.cli.listing import COLUMNS, row
from async_state.cli.output import Column, note, print_record
from async_state.cli.runner import DONE, FAILED, UsageError
from async_state.keys import Side
from async_state.settings import Settings
from async_state.stores.base import Store

_SHOWN: Final = 5


async def run(args: argparse.Namespace) -> int:
    """Print the object's metadata."""
    settings = context.settings()
    if args.ref and not filters.is_empty(args):
        raise UsageError("get takes a reference or filters, not both")
    if not args.ref and filters.is_empty(args):
        raise UsageError("get needs a reference, or filters such as --dag-id and --key")
    base, name = settings.locate(args.ref) if args.ref else (settings.url, "")
    async with context.opened(settings, base) as store:
        name = name or await _only_one(args, store, settings)
        place = keys.parse_name(name)
        details = await store.head(name, timeout=settings.timeout) if name else None
        if details is None or place is None:
            note(f"There is no object {base}/{name}" if name else "No key is selected")
            return FAILED
        found = row(base, details.entry, place, details.content_encoding or "none")
        columns = [*COLUMNS, Column("ref"), Column("etag"), Column("version"), Column("expires_at")]
        found |= {"etag": details.entry.etag, "version": details.version or None, "expires_at": None}
        if args.show_value or place.side is Side.SERVER:
            body = await store.get(name, timeout=settings.timeout)
            if body is None:
                note(f"There is no object {base}/{name} any more")
                return FAILED
            stored = await codec.aunpack(body)
            found["expires_at"] = stored.expires_at
            if args.show_value:
                found["value"] = json.loads(stored.text)
                columns.append(Column("value", show=json.dumps))
    if args.output == "table":
        # What says nothing of this key.
        columns = [column for column in columns if found[column.name] is not None]
    print_record(args.output, columns, found)
    return DONE


async def _only_one(args: argparse.Namespace, store: Store, settings: Settings) -> str:
    """Return the name of the selected object, or an empty string if there is none.

    Raises:
        UsageError: There are several.
    """
    names: list[str] = []
    async for page in filters.selection(args).entries(store, settings.timeout):
        names += [entry.name for entry, _ in page]
        if len(names) > _SHOWN:
            break
    if len(names) > 1:
        shown = "".join(f"\n  {settings.url}/{name}" for name in names[:_SHOWN])
        more = "\n  ..." if len(names) > _SHOWN else ""
        raise UsageError(f"The filters select several keys; get takes one of them:{shown}{more}")
    return names[0] if names else ""
