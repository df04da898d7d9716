"""After a move, a row that refers to the old base URL keeps the object that was copied below the present one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from async_state import Settings
from async_state.errors import UntrustedRefError
from async_state.sweep.references import of_sweep
from tests.sweep import test_database
from tests.sweep.conftest import Base, Run, snapshot
from tests.sweep.databases import engine_of

OLD, OLDER = "s3://old-bucket/state", "file:///var/lib/old"
TASK = "v1/task/dag/run/task/-1/worker"
NAMES = [f"{TASK}/new", f"{TASK}/moved", "v1/asset/name/prices/worker/moved%20too"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_of("sqlite") as engine:
        yield engine


@pytest.fixture
def refs(base: Base, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three live objects and an orphan, and how rows refer to the three: in the present form, and in two old ones."""
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__MOVED_URLS", f"{OLD},{OLDER}")
    for name in (*NAMES, f"{TASK}/orphan"):
        base.put(name)
    return [f"{place}/{name}" for place, name in zip((base.url, OLD, OLDER), NAMES, strict=True)]


def assert_orphan_alone_goes(base: Base, command: Run, *source: str, stdin: bytes = b"") -> None:
    shown = command("sweep", *source, "--output", "json", stdin=stdin)
    assert (shown.counts["referenced"], shown.counts["orphans"], shown.counts["in_doubt"]) == (3, 1, 0)
    done = command("sweep", *source, "--delete", "--output", "json", stdin=stdin)
    assert (done.code, done.counts["deleted"]) == (0, 1)
    assert sorted(base.names()) == sorted(NAMES)


def test_by_a_snapshot(base: Base, refs: list[str], command: Run) -> None:
    assert_orphan_alone_goes(base, command, "--refs", "-", stdin=snapshot(base.url, refs))


@pytest.mark.parametrize("source", ["--database", "export-refs"])
def test_by_the_database(
    source: str, base: Base, refs: list[str], engine: Engine, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_database.clear(engine)
    rows = [json.dumps({"__airflow_state_ref__": ref}) for ref in refs]
    test_database.insert(engine, {"new": rows[0], "moved": rows[1]}, {(1, "moved too"): rows[2]})
    monkeypatch.setattr("airflow.settings.engine", engine)
    if source == "--database":
        assert_orphan_alone_goes(base, command, source)
    else:
        exported = command("export-refs").out.encode()
        assert_orphan_alone_goes(base, command, "--refs", "-", stdin=exported)


def test_a_snapshot_of_a_machine_that_knows_of_no_move(
    base: Base, refs: list[str], engine: Engine, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the sweep runs, the option has to be set: what the SDK's marker announces is exported in any case."""
    test_database.clear(engine)
    test_database.insert(
        engine, {str(number): json.dumps({"__airflow_state_ref__": ref}) for number, ref in enumerate(refs)}, {}
    )
    monkeypatch.setattr("airflow.settings.engine", engine)
    with monkeypatch.context() as server:
        server.delenv("AIRFLOW__ASYNC_STATE__MOVED_URLS")
        exported = command("export-refs").out.encode()
    assert_orphan_alone_goes(base, command, "--refs", "-", stdin=exported)


def test_by_rows_in_the_store(base: Base, refs: list[str], command: Run) -> None:
    for number, ref in enumerate(refs):
        row = json.dumps({"__airflow_state_ref__": ref}).encode()
        base.put(f"v1/task/dag/run/row/{number}/server/k", row)
    done = command("sweep", "--refs", "-", "--delete", "--output", "json", stdin=snapshot(base.url, []))
    assert (done.code, done.counts["referenced"], done.counts["deleted"]) == (0, 6, 1)
    assert set(NAMES) <= set(base.names())


def test_where_the_option_was_forgotten_they_are_in_doubt(
    base: Base, refs: list[str], command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW__ASYNC_STATE__MOVED_URLS")
    refs.append(f"{OLD}/v1/task/dag/run/task/-1/server/orphan")
    for argv in [], ["--delete"]:
        done = command("sweep", "--refs", "-", *argv, "--output", "json", stdin=snapshot(base.url, refs))
        assert (done.counts["referenced"], done.counts["in_doubt"], done.counts["orphans"]) == (1, 2, 1)
        assert any(f"below {place}, which is in no option here" in done.err for place in (OLD, OLDER))
        assert "moved_urls" in done.err
    assert sorted(base.names()) == sorted(NAMES)


def test_what_is_elsewhere_for_sure_keeps_nothing(
    base: Base, refs: list[str], command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects of a trusted URL were not copied, so that one of the same name here is another one."""
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__MOVED_URLS", OLD)
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__TRUSTED_URLS", OLDER)
    done = command(
        "sweep", "--refs", "-", "--delete", "--max-orphans", "100%", "-o", "json", stdin=snapshot(base.url, refs)
    )
    assert (done.counts["referenced"], done.counts["in_doubt"], done.counts["deleted"]) == (2, 0, 2)
    assert (sorted(base.names()), done.err) == (sorted(NAMES[:2]), "")


@pytest.mark.parametrize("url", [OLD, f"{OLD}/", OLDER])
def test_a_snapshot_of_the_old_url_is_refused(url: str, base: Base, refs: list[str], command: Run) -> None:
    """Where it was taken, nobody knew of the present URL, so that references below it may be missing."""
    before = base.names()
    done = command("sweep", "--refs", "-", "--delete", "--max-orphans", "100%", stdin=snapshot(url, refs))
    assert (done.code, base.names()) == (1, before)
    assert f"the snapshot is of {url}, whose objects have moved below {base.url}" in done.err
    assert "Nothing was deleted" in done.err
    assert "moved_urls" in done.err


names = st.sampled_from(NAMES) | st.text("v1/taskworker%20.~", min_size=1)
places = st.sampled_from(["s3://a", "s3://a/b", "s3://a/b/v1", "s3://c", "file:///d"])


@given(url=places, moved=st.sets(places), trusted=st.sets(places), place=places, name=names)
def test_what_the_backend_finds_below_the_url_is_kept(
    url: str, moved: set[str], trusted: set[str], place: str, name: str
) -> None:
    settings = Settings(url=url, moved_urls=tuple(moved - {url}), trusted_urls=tuple(trusted - moved - {url}))
    try:
        base, found = settings.locate(f"{place}/{name}")
    except UntrustedRefError:
        return
    kept = set(of_sweep(settings).names([f"{place}/{name}"]))
    assert found in kept or base != url
