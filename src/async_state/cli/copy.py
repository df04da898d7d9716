"""``copy``: copy every object of ours below another base URL."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from async_state import temporary, urls
from async_state.cli import context, output
from async_state.cli.runner import DONE, FAILED, UsageError
from async_state.copying import Copying, Survey
from async_state.errors import StoreError
from async_state.settings import Settings

#: So many objects that could not be copied are named.
_SHOWN: Final = 20


async def run(args: argparse.Namespace) -> int:
    """Show what there is to copy, copy it if that is confirmed, and count."""
    settings = context.settings()
    target_url = _target(args.to, settings.url)
    of_target = _settings_of_target(settings, target_url)
    async with context.opened(settings) as source, context.opened(of_target, target_url) as target:
        with temporary.database() as database:
            copy = Copying(
                source,
                settings.url,
                target,
                concurrency=settings.max_concurrency,
                timeout=settings.timeout,
                database=database,
            )
            with output.Progress("Comparing") as progress:
                found = await copy.survey(progress.add)
            _show(found, settings.url, target_url)
            if args.dry_run:
                return DONE
            if not found.pending:
                output.result(f"Every object of {settings.url} is below {target_url}.")
                return DONE
            if not await output.confirmed(f"Copy {output.number(found.pending, 'object')}?", yes=args.yes):
                output.note("Nothing was copied.")
                return FAILED
            with output.Progress("Copying", found.pending) as progress:
                failed = await copy.copy(progress.add)
            output.result(f"Copied {output.number(found.pending - len(failed) - copy.kept, 'object')}.")
            if copy.kept:
                were, are = ("was", "is") if copy.kept == 1 else ("were", "are")
                output.result(
                    f"{output.number(copy.kept, 'object')} {were} written below the target meanwhile, and {are} kept "
                    "there."
                )
            _check(failed, await copy.missing(), settings.url, target_url)
    return DONE


def _target(to: str, source: str) -> str:
    """Return the base URL to copy to.

    Raises:
        UsageError: It is no base URL, or below the source, or above it.
    """
    try:
        target = urls.check_base(to)
    except ValueError as e:
        raise UsageError(f"--to {e}") from None
    ours, theirs = _place(source), _place(target)
    if ours == theirs:
        raise UsageError(f"--to is [async_state] url itself: {source}")
    if f"{ours}/".startswith(f"{theirs}/") or f"{theirs}/".startswith(f"{ours}/"):
        raise UsageError(
            f"--to {target} and [async_state] url {source} are one below the other, so that the objects of one would "
            "lie among those of the other: choose another bucket, or a prefix beside the old one"
        )
    return target


def _settings_of_target(settings: Settings, target: str) -> Settings:
    """Return how to reach the target. A directory has no address, so that ``endpoint_url`` is the target's then."""
    if settings.url.startswith("file://"):
        return dataclasses.replace(settings, url=target, trusted_urls=(), moved_urls=())
    return settings


def _place(url: str) -> str:
    """Return the base URL in a form in which each place has one name."""
    if not url.startswith("file://"):
        return url
    return Path(unquote(urlsplit(url).path)).resolve().as_uri()


def _show(found: Survey, source: str, target: str) -> None:
    there = found.objects - found.pending - found.newer
    output.result(f"{source} has {output.number(found.objects, 'object')} of async_state.")
    output.result(f"{output.number(found.pending, 'object')} ({output.size(found.pending_bytes)}) to copy to {target}.")
    if there:
        output.result(f"{output.number(there, 'object')} there already.")
    if found.newer:
        output.result(f"{output.number(found.newer, 'object')} written later below the target, and kept there.")
    if found.foreign:
        output.result(f"{output.number(found.foreign, 'object')} not of async_state, and not copied.")


def _check(failed: dict[str, str], missing: int, source: str, target: str) -> None:
    """Raise an error if something is not copied.

    Raises:
        StoreError: It is so.
    """
    for name, reason in list(failed.items())[:_SHOWN]:
        output.note(f"{source}/{name} is not copied: {reason}.")
    if failed:
        raise StoreError(f"{output.number(len(failed), 'object')} could not be copied; all others are below {target}")
    if missing:
        raise StoreError(
            f"{output.number(missing, 'object')} of {source} changed while this command ran: run it again, the last "
            "time when no component writes there any more"
        )
    output.result(f"Every object of {source} is below {target}.")
