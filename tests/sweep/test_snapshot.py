"""A snapshot is read back as it was written, in constant memory; and any cut of it is noticed."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from async_state.sweep.errors import SnapshotError
from async_state.sweep.snapshot import Header, lines, read

URL = "s3://bucket/state"
HEADER = Header(datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc), URL)


def test_the_format() -> None:
    assert list(lines(HEADER, [f"{URL}/v1/a", "s3://café/\n"])) == [
        '{"async_state_refs": 1, "taken_at": "2026-01-02T03:04:05.000678+00:00", "url": "s3://bucket/state"}',
        '"s3://bucket/state/v1/a"',
        '"s3://caf\\u00e9/\\n"',
        '{"count": 2}',
    ]


def test_it_is_read_back() -> None:
    refs = [f"{URL}/v1/a", "s3://café/\n", "", f"{URL}/v1/a"]
    header, found = read(lines(HEADER, refs), URL)
    assert (header, list(found)) == (HEADER, refs)


def test_other_zones_and_ends_of_lines_are_read() -> None:
    line = '{"url": "s3://bucket/state/", "taken_at": "2026-01-02T05:04:05+02:00", "async_state_refs": 1, "more": 0}'
    header, refs = read([f"{line}\r\n".encode(), b'"x"\r\n', b' {"count" : 1}\r\n'], URL)
    assert header.taken_at - HEADER.taken_at < timedelta(seconds=1)
    assert list(refs) == ["x"]


def test_what_is_logged_before_it_is_not_read() -> None:
    logged = [
        "2026-11-27T20:40:44Z [warning  ] FileType is deprecated. [py.warnings]\n",
        '{"event": "x"}\n',
        "[1]\n",
        "\n",
    ]
    assert list(read([*logged, *lines(HEADER, ["x"])], URL)[1]) == ["x"]
    with pytest.raises(SnapshotError, match="line 6 of the snapshot is truncated or is not JSON"):
        list(read([*logged, next(lines(HEADER, [])), *logged], URL)[1])
    damaged = next(lines(HEADER, [])).replace("taken_at", "taken")
    with pytest.raises(SnapshotError, match="line 5 of the snapshot has no time"):
        read([*logged, damaged], URL)


def test_every_cut_is_noticed() -> None:
    whole = "\n".join(lines(HEADER, [f"{URL}/v1/a", f"{URL}/v1/b"])) + "\n"
    for end in range(len(whole) - 1):
        with pytest.raises(SnapshotError):
            list(read(whole[:end].splitlines(keepends=True), URL)[1])
    assert len(list(read(whole[:-1].splitlines(keepends=True), URL)[1])) == 2


def test_every_line_that_is_missing_or_doubled_is_noticed() -> None:
    whole = list(lines(HEADER, [f"{URL}/v1/{number}" for number in range(5)]))
    for number, line in enumerate(whole):
        for changed in (whole[:number] + whole[number + 1 :], [*whole[:number], line, line, *whole[number + 1 :]]):
            with pytest.raises(SnapshotError):
                list(read(changed, URL)[1])


def test_a_long_snapshot_takes_no_memory() -> None:
    def many() -> Iterator[str]:
        for number in range(20_000):
            yield f"{URL}/v1/task/dag/run/task/{number}/worker/k"

    tracemalloc.start()
    try:
        count = sum(1 for _ in read(lines(HEADER, many()), URL)[1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 200_000, "the snapshot itself has more than a million characters"


def test_deep_json_is_no_reference() -> None:
    with pytest.raises(SnapshotError):
        list(read([json.dumps({"async_state_refs": 1, "taken_at": "x", "url": URL})], URL)[1])
    with pytest.raises(SnapshotError, match="lacks the first line"):
        read(["[" * 100_000], URL)
