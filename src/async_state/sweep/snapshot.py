"""The format in which ``export-refs`` writes references and ``sweep --refs`` reads them: JSON lines.

The first line is ``{"async_state_refs": 1, "taken_at": "<ISO 8601>", "url": "<base>"}``, each further one a reference
as a JSON string, and the last one ``{"count": N}``, by which a reader knows that nothing is missing. Before the first
line there may be others, which are not read: Airflow's command line logs to standard output, as it does on Python 3.14
whichever command is run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from async_state.sweep.errors import SnapshotError

_VERSION: Final = 1
_AGAIN: Final = "Nothing was deleted. Run `airflow async-state export-refs` again, and look at its exit code"


class Header(NamedTuple):
    """What the first line says.

    Attributes:
        taken_at: When the snapshot was begun: no row is older than what was read then.
        url: The base URL of the objects.
    """

    taken_at: datetime
    url: str


def lines(header: Header, refs: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a snapshot, without their ends."""
    head = {"async_state_refs": _VERSION, "taken_at": header.taken_at.isoformat(), "url": header.url}
    yield json.dumps(head)
    count = 0
    for ref in refs:
        yield json.dumps(ref)
        count += 1
    yield json.dumps({"count": count})


def read(lines: Iterable[bytes | str], url: str, moved_urls: Sequence[str] = ()) -> tuple[Header, Iterator[str]]:
    """Return the header of a snapshot, and its references.

    The references are read one by one. Whoever reads them has the whole snapshot only when the iterator ends without
    an error.

    Args:
        lines: The snapshot's lines.
        url: The base URL whose objects are to be swept.
        moved_urls: Base URLs whose objects were copied below ``url``.

    Raises:
        SnapshotError: The snapshot is empty, is of another URL, or is none. The iterator raises it where lines are
            missing or too many.
    """
    rest = enumerate(lines, start=1)
    header = _header(rest)
    if header.url.rstrip("/") in moved_urls:
        # Whoever took it did not look for the present URL, so that some references below that may be missing.
        raise SnapshotError(
            f"the snapshot is of {header.url}, whose objects have moved below {url}: where it was taken, [async_state] "
            "url is still the old one. Nothing was deleted. Set url and moved_urls there as they are here, and run "
            "`airflow async-state export-refs` again"
        )
    if header.url.rstrip("/") != url:
        raise SnapshotError(
            f"the snapshot is of {header.url}, and this is the sweep of {url}: its references say nothing about these "
            "objects. Nothing was deleted. Set [async_state] url to the same value where export-refs and sweep run"
        )
    return header, _refs(rest)


def _header(lines: Iterator[tuple[int, bytes | str]]) -> Header:
    for number, line in lines:
        head = _object(line, number)
        if "async_state_refs" not in head:
            continue
        if head["async_state_refs"] != _VERSION or isinstance(head["async_state_refs"], bool):
            raise SnapshotError(
                "another release of async_state has written the snapshot, in a format that this one does not know. "
                "Nothing was deleted. Install the same release on both machines"
            )
        if not isinstance(head.get("url"), str):
            raise SnapshotError(f"line {number} of the snapshot does not say of which url it is. {_AGAIN}")
        return Header(_time(head.get("taken_at"), number), head["url"])
    raise SnapshotError(f"the snapshot is empty, or lacks the first line that export-refs writes. {_AGAIN}")


def _object(line: bytes | str, number: int) -> dict[str, Any]:
    """Return the JSON object in the line, or an empty one if there is none."""
    with contextlib.suppress(SnapshotError):
        found = _parsed(line, number)
        if isinstance(found, dict):
            return found
    return {}


def _refs(lines: Iterator[tuple[int, bytes | str]]) -> Iterator[str]:
    count = 0
    for number, line in lines:
        item = _parsed(line, number)
        if isinstance(item, str):
            count += 1
            yield item
            continue
        if not isinstance(item, dict) or set(item) != {"count"}:
            raise SnapshotError(f"line {number} of the snapshot is neither a reference nor the last line. {_AGAIN}")
        if isinstance(item["count"], bool) or item["count"] != count:
            raise SnapshotError(
                f"the snapshot is damaged: it has {count} references, and its last line says {item['count']!r}. "
                + _AGAIN
            )
        if next(lines, None) is not None:
            raise SnapshotError(f"line {number} of the snapshot ends it, and more lines follow. {_AGAIN}")
        return
    raise SnapshotError(f"the snapshot is truncated: the last line, with the count, is missing. {_AGAIN}")


def _parsed(line: bytes | str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise SnapshotError(f"line {number} of the snapshot is truncated or is not JSON. {_AGAIN}") from None


def _time(text: Any, number: int) -> datetime:
    try:
        # Python 3.10 does not know the Z of UTC.
        taken_at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (AttributeError, ValueError):
        raise SnapshotError(f"line {number} of the snapshot has no time of ISO 8601 in taken_at. {_AGAIN}") from None
    if taken_at.tzinfo is None:
        raise SnapshotError(f"taken_at in line {number} of the snapshot has no time zone. {_AGAIN}")
    return taken_at
