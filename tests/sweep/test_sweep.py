"""``sweep --refs`` deletes exactly the orphans of a store whose objects were made by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from async_state.errors import StoreError
from async_state.stores.base import Details
from tests.sweep.conftest import DAY, Base, Run, hours, snapshot

TASK = "v1/task/dag/run/task/-1/worker"
ROW = "v1/task/dag/run/task/-1/server"


@pytest.fixture
def live(base: Base) -> list[str]:
    """Three live values, so that one orphan is not most of the store. Return their references."""
    return [base.put(f"{TASK}/live{number}") for number in range(3)]


def test_every_object_is_counted_as_what_it_is(base: Base, live: list[str], command: Run) -> None:
    base.put("v1/owner", b"{}")
    base.put(f"{TASK}/young", age=DAY - 60)
    base.put(f"{TASK}/young and referenced".replace(" ", "%20"), age=5)
    base.put(f"{TASK}/orphan", b'"12345678"')
    base.put("v1/asset/name/prices/worker/orphan", b'"1"', age=DAY + 60)
    foreign = ["readme.txt", "v2/task/a", f"{TASK}/not%2found", "v1/task/dag/run/task/-2/worker/k", "v1/probe"]
    for name in foreign:
        base.put(name)
    rows = snapshot(base.url, [*live, f"{base.url}/{TASK}/young%20and%20referenced", f"{base.url}/{TASK}/gone"])
    expected = {
        "objects": 12,
        "referenced": 4,
        "too_young": 1,
        "in_doubt": 0,
        "foreign": 5,
        "orphans": 2,
        "deleted": 0,
        "bytes": 13,
    }
    before = base.names()
    shown = command("sweep", "--refs", "-", "--output", "json", stdin=rows)
    assert shown.counts == expected
    assert list(shown.counts) == list(expected)
    assert shown.code == 1
    assert base.names() == before
    deleted = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=rows)
    assert (deleted.code, deleted.counts) == (0, {**expected, "deleted": 2})
    gone = {f"{TASK}/orphan", "v1/asset/name/prices/worker/orphan"}
    assert base.names() == [name for name in before if name not in gone]
    again = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=rows)
    assert (again.code, again.counts["orphans"], again.counts["objects"]) == (0, 0, 10)


def test_each_store_loses_the_orphan_and_nothing_else(any_base: Base, command: Run) -> None:
    refs = [any_base.put(f"{TASK}/{key}") for key in ("a", "b%20c", "%C3%A9")]
    for name in (f"{TASK}/orphan", f"{TASK}/orphan%2F2", "other"):
        any_base.put(name)
    done = command("sweep", "--refs", "-", "--delete", "--grace", "0", "-o", "json", stdin=snapshot(any_base.url, refs))
    assert done.counts["deleted"] == done.counts["orphans"] == 2
    assert done.code == 0
    assert any_base.names() == ["other", f"{TASK}/%C3%A9", f"{TASK}/a", f"{TASK}/b%20c"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda text: b"", "empty", id="no byte"),
        pytest.param(lambda text: b"\n", "lacks the first line", id="an empty line"),
        pytest.param(lambda text: text.splitlines(keepends=True)[0], "truncated", id="the header alone"),
        pytest.param(lambda text: text[: text.rindex(b"{")], "truncated", id="no last line"),
        pytest.param(lambda text: text[: text.rindex(b"}")], "truncated", id="a part of the last line"),
        pytest.param(lambda text: text.replace(b'"count": 3', b'"count": 4'), "damaged", id="a wrong count"),
        pytest.param(lambda text: text.replace(b'"count": 3', b'"count": "3"'), "damaged", id="no count"),
        pytest.param(lambda text: text.replace(b'"count": 3', b'"count": true'), "damaged", id="a count of true"),
        pytest.param(lambda text: text.split(b"\n", 1)[1], "lacks the first line", id="no header"),
        pytest.param(lambda text: text + b'"more"\n', "more lines follow", id="lines after the last one"),
        pytest.param(lambda text: text + text, "more lines follow", id="two snapshots"),
        pytest.param(lambda text: text.replace(b'refs": 1', b'refs": 2'), "another release", id="another version"),
        pytest.param(lambda text: text.replace(b"+00:00", b""), "no time zone", id="a time without its zone"),
        pytest.param(lambda text: text.replace(b'"taken_at": "2', b'"taken_at": "x'), "ISO 8601", id="no time"),
        pytest.param(lambda text: text.replace(b"taken_at", b"taken"), "ISO 8601", id="no taken_at"),
        pytest.param(lambda text: text.replace(b'/state"', b'/states"'), "the snapshot is of", id="another URL"),
        pytest.param(lambda text: text.replace(b'/state"', b'"'), "the snapshot is of", id="a shorter URL"),
        pytest.param(lambda text: text.replace(b'"\n"', b'"\n17\n"', 1), "neither", id="a number among the lines"),
        pytest.param(lambda text: text.replace(b"live1", b"live1\n"), "not JSON", id="a line that is cut"),
    ],
)
def test_a_snapshot_that_is_not_whole_is_refused(
    spoil: Callable[[bytes], bytes], reason: str, base: Base, live: list[str], tmp_path: Path, command: Run
) -> None:
    base.put(f"{TASK}/orphan")
    whole, file = snapshot(base.url, live), tmp_path / "refs"
    assert spoil(whole) != whole
    file.write_bytes(spoil(whole))
    before = base.names()
    for argv in (["--delete", "--yes"], []):
        done = command("sweep", "--refs", str(file), "--max-orphans", "100%", *argv, "--output", "json")
        assert (done.code, done.out) == (1, "")
        assert reason in done.err
        assert base.names() == before


def test_a_snapshot_that_can_not_be_read_is_refused(base: Base, tmp_path: Path, command: Run) -> None:
    done = command("sweep", "--refs", str(tmp_path / "missing"), "--delete")
    assert done.code == 1
    assert "No such file" in done.err


def test_a_snapshot_from_the_future_is_refused(base: Base, live: list[str], command: Run) -> None:
    base.put(f"{TASK}/in flight", age=60)
    rows = snapshot(base.url, live, taken_at=datetime.now(timezone.utc) + hours(30))
    done = command("sweep", "--refs", "-", "--delete", stdin=rows)
    assert done.code == 1
    assert "in the future" in done.err
    assert len(base.names()) == 4


def test_a_clock_that_is_minutes_ahead_makes_nothing_older(base: Base, live: list[str], command: Run) -> None:
    base.put(f"{TASK}/young", age=DAY - 300)
    rows = snapshot(base.url, live, taken_at=datetime.now(timezone.utc) + hours(1 / 6))
    done = command("sweep", "--refs", "-", "--output", "json", stdin=rows)
    assert (done.counts["too_young"], done.counts["orphans"], done.code) == (1, 0, 0)


def test_an_old_snapshot_says_nothing_about_younger_objects(base: Base, live: list[str], command: Run) -> None:
    base.put(f"{TASK}/since", age=10 * DAY)
    base.put(f"{TASK}/before", age=12 * DAY)
    rows = snapshot(base.url, live, taken_at=datetime.now(timezone.utc) - hours(24 * 10))
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=rows)
    assert (done.counts["too_young"], done.counts["deleted"]) == (1, 1)
    assert f"{TASK}/since" in base.names()


def test_a_time_in_zulu_is_one(base: Base, live: list[str], command: Run) -> None:
    rows = snapshot(base.url, live).replace(b"+00:00", b"Z")
    assert command("sweep", "--refs", "-", stdin=rows).code == 0


def test_more_orphans_than_allowed_are_refused_before_any_is_deleted(base: Base, command: Run) -> None:
    refs = [base.put(f"{TASK}/live")]
    for number in range(2):
        base.put(f"{TASK}/orphan{number}")
    # Neither is anybody's state, so neither makes the share smaller.
    base.put("foreign")
    base.put("v1/owner")
    rows, before = snapshot(base.url, refs), base.names()
    done = command("sweep", "--refs", "-", "--delete", "--yes", "--output", "json", stdin=rows)
    assert done.code == 1
    assert (done.counts["orphans"], done.counts["deleted"]) == (2, 0)
    assert "2 of 3 values (66.7%) would go, and --max-orphans allows 50%" in done.err
    assert base.names() == before
    shown = command("sweep", "--refs", "-", "--output", "json", stdin=rows)
    assert "--delete would be refused: 2 of 3" in shown.err
    done = command("sweep", "--refs", "-", "--delete", "--max-orphans", "67%", "--output", "json", stdin=rows)
    assert (done.code, done.counts["deleted"]) == (0, 2)


def test_exactly_as_many_orphans_as_allowed_may_go(base: Base, command: Run) -> None:
    refs = [base.put(f"{TASK}/live")]
    base.put(f"{TASK}/orphan")
    assert command("sweep", "--refs", "-", "--delete", stdin=snapshot(base.url, refs)).code == 0


@pytest.mark.parametrize("refs", [[], ["s3://elsewhere/v1/task/dag/run/task/-1/worker/another"]])
def test_a_snapshot_without_any_reference_is_refused(
    refs: list[str], base: Base, live: list[str], command: Run
) -> None:
    rows, before = snapshot(base.url, refs), base.names()
    for argv in ([], ["--delete"], ["--delete", "--max-orphans", "99.9%"]):
        done = command("sweep", "--refs", "-", *argv, stdin=rows)
        assert done.code == 1
        assert "no row refers to any of the 3 values" in done.err
        assert base.names() == before
    done = command("sweep", "--refs", "-", "--delete", "--max-orphans", "100%", stdin=rows)
    assert (done.code, base.names()) == (0, [])


def test_an_empty_store_has_nothing_to_sweep(base: Base, command: Run) -> None:
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=snapshot(base.url, []))
    assert (done.code, set(done.counts.values())) == (0, {0})


@pytest.mark.parametrize("change", ["written again", "the same value again", "deleted"])
def test_what_changes_after_it_was_listed_is_kept(
    change: str, base: Base, live: list[str], command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{TASK}/orphan"
    base.put(name)
    head = type(base.store).head

    async def changed(self: object, seen: str, *, timeout: float) -> Details | None:
        # What a task of another process does between the listing and the look before the deletion.
        if change == "deleted":
            await base.store.delete([name], timeout=20)
        else:
            await base.store.put(name, b'"value"' if change.startswith("the same") else b'"new"', "", timeout=20)
        return await head(base.store, seen, timeout=timeout)

    monkeypatch.setattr(type(base.store), "head", changed)
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=snapshot(base.url, live))
    assert (done.code, done.counts["orphans"], done.counts["deleted"]) == (0, 1, 0)
    assert (name in base.names()) is (change != "deleted")
    assert ("written again" in done.err) is (change != "deleted")


def test_what_changes_after_the_look_is_kept(
    base: Base, live: list[str], command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{TASK}/orphan"
    base.put(name)
    delete_unchanged = type(base.store).delete_unchanged

    async def late(self: object, seen: Details, *, timeout: float) -> bool:
        await base.store.put(name, b'"new"', "", timeout=20)
        return await delete_unchanged(base.store, seen, timeout=timeout)

    monkeypatch.setattr(type(base.store), "delete_unchanged", late)
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=snapshot(base.url, live))
    assert (done.code, done.counts["deleted"], base.get(name)) == (0, 0, b'"new"')


def test_rows_in_the_store_are_kept_with_what_they_refer_to(base: Base, command: Run) -> None:
    value = base.put(f"{TASK}/value")
    asset = base.put("v1/asset/uri/s3:%2F%2Fa/worker/k")
    base.put(f"{TASK}/orphan")
    base.put(f"{ROW}/value", json.dumps({"__airflow_state_ref__": value}).encode())
    base.put("v1/asset/id/7/server/k", json.dumps({"__airflow_state_ref__": asset}).encode(), age=5)
    # The database has no rows, as they are all here.
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=snapshot(base.url, []))
    assert (done.code, done.counts["referenced"], done.counts["deleted"]) == (0, 4, 1)
    assert f"{TASK}/orphan" not in base.names()


def test_what_a_row_in_the_store_might_refer_to_is_in_doubt(base: Base, command: Run) -> None:
    base.put(f"{TASK}/value")
    base.put("v1/task/dag/run/other/-1/worker/orphan")
    base.put("v1/asset/name/a/worker/k")
    live = [base.put(f"{TASK}/live{number}") for number in range(2)]
    base.put(f"{ROW}/value", b"\x1f\x8bdamaged")
    base.put("v1/asset/id/7/server/k", b"\xff")
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=snapshot(base.url, live))
    assert (done.code, done.counts["in_doubt"], done.counts["referenced"], done.counts["deleted"]) == (0, 2, 4, 1)
    assert "v1/task/dag/run/other/-1/worker/orphan" not in base.names()


def test_the_report_has_every_orphan(base: Base, live: list[str], tmp_path: Path, command: Run) -> None:
    name, file = f"{TASK}/orphan", tmp_path / "report"
    ref = base.put(name)
    rows = snapshot(base.url, live)
    command("sweep", "--refs", "-", "--report", str(file), stdin=rows)
    command("sweep", "--refs", "-", "--report", str(file), "--delete", stdin=rows)
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["outcome"], second["outcome"]) == ("orphan", "deleted")
    assert first["ref"] == second["ref"] == ref
    assert first["bytes"] == 7
    assert datetime.fromisoformat(first["modified"]).tzinfo is not None


def test_a_report_that_can_not_be_written_stops_it_first(base: Base, live: list[str], command: Run) -> None:
    base.put(f"{TASK}/orphan")
    done = command("sweep", "--refs", "-", "--report", "/missing/report", "--delete", stdin=snapshot(base.url, live))
    assert done.code == 2
    assert f"{TASK}/orphan" in base.names()


def test_what_can_not_be_deleted_is_left_for_the_next_run(
    base: Base, live: list[str], tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        base.put(f"{TASK}/orphan{number}")
    rows = snapshot(base.url, live)
    delete_unchanged = type(base.store).delete_unchanged

    async def refused(self: object, seen: Details, *, timeout: float) -> bool:
        if seen.entry.name.endswith("1"):
            raise StoreError("the store says no")
        return await delete_unchanged(base.store, seen, timeout=timeout)

    with monkeypatch.context() as patch:
        patch.setattr(type(base.store), "delete_unchanged", refused)
        done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=rows)
    assert (done.code, done.counts["deleted"]) == (1, 2)
    assert "1 orphan could not be deleted. First cause: the store says no." in done.err
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=rows)
    assert (done.code, done.counts["deleted"]) == (0, 1)


def test_a_store_that_refuses_everything_is_not_asked_for_each(
    base: Base, live: list[str], command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [base.put(f"{TASK}/more{number}") for number in range(40)]
    for number in range(40):
        base.put(f"{TASK}/orphan{number}")
    asked = 0

    async def refused(self: object, name: str, *, timeout: float) -> Details | None:
        nonlocal asked
        asked += 1
        raise StoreError("the store says no")

    monkeypatch.setattr(type(base.store), "head", refused)
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__MAX_CONCURRENCY", "4")
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=snapshot(base.url, [*live, *refs]))
    assert (done.code, done.counts["deleted"]) == (1, 0)
    assert "40 orphans could not be deleted" in done.err
    assert asked <= 8


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "one source"),
        (["--refs", "-", "--database"], "one source"),
        (["--refs", "-", "--grace", "24"], "--grace must be"),
        (["--refs", "-", "--grace", "1 day"], "--grace must be"),
        (["--refs", "-", "--grace", "-1h"], r"--grace(: expected one argument| must be)"),
        (["--refs", "-", "--grace", "9999999999d"], "too long"),
        (["--refs", "-", "--max-orphans", "0.5"], "--max-orphans must be"),
        (["--refs", "-", "--max-orphans", "101%"], "--max-orphans must be"),
    ],
)
def test_a_wrong_use_ends_with_2(argv: list[str], reason: str, base: Base, command: Run) -> None:
    done = command("sweep", *argv, stdin=snapshot(base.url, []))
    assert done.code == 2
    assert re.search(reason, done.err)


@pytest.mark.parametrize(("grace", "orphans"), [("0", 2), ("30m", 2), ("1h30m", 1), ("90m", 1), ("1.5h", 1), ("3d", 0)])
def test_grace(grace: str, orphans: int, base: Base, live: list[str], command: Run) -> None:
    base.put(f"{TASK}/old", age=2 * DAY)
    base.put(f"{TASK}/young", age=3600)
    done = command("sweep", "--refs", "-", "--grace", grace, "--output", "json", stdin=snapshot(base.url, live))
    assert done.counts["orphans"] == orphans


def test_the_table_shows_the_first_orphans(base: Base, command: Run) -> None:
    refs = [base.put(f"{TASK}/live{number}") for number in range(30)]
    for number in range(23):
        base.put(f"{TASK}/orphan{number:02}")
    done = command("sweep", "--refs", "-", stdin=snapshot(base.url, refs))
    assert sum("/orphan" in line for line in done.out.splitlines()) == 20
    assert "and 3 more" in done.out
    assert "orphans" in done.out
    assert done.err == ""


def test_a_terminal_is_asked(
    base: Base, live: list[str], command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.put(f"{TASK}/orphan")
    file = tmp_path / "refs"
    file.write_bytes(snapshot(base.url, live))
    monkeypatch.setattr("async_state.cli.sweep.is_terminal", lambda: True)
    for answer, code, left in (b"\n", 1, 4), (b"n\n", 1, 4), (b"y\n", 0, 3):
        done = command("sweep", "--refs", str(file), "--delete", stdin=answer)
        assert "Delete 1 object (7 B) below" in done.err
        assert (done.code, len(base.names())) == (code, left)
    base.put(f"{TASK}/orphan")
    done = command("sweep", "--refs", str(file), "--delete", "--yes", stdin=b"")
    assert (done.code, len(base.names())) == (0, 3)
