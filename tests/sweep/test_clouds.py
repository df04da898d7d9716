"""``sweep`` of both clouds, by every source that needs no server of Airflow's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from async_state.testing import faults
from async_state.testing.faults import Answer, Exchange, Fault, Request
from tests import cloud_places
from tests.sweep import test_database
from tests.sweep.conftest import Base, Run, snapshot
from tests.sweep.databases import engine_of

TASK = "v1/task/dag/run/task/-1/worker"
NAMES = [f"{TASK}/a%20b", "v1/asset/name/prices/worker/cursor"]

clouds = pytest.mark.parametrize("any_base", cloud_places.CLOUDS, indirect=True)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_of("sqlite") as engine:
        yield engine


@clouds
@pytest.mark.parametrize("source", ["--database", "export-refs"])
def test_by_the_database(
    source: str, any_base: Base, engine: Engine, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*NAMES, f"{TASK}/orphan", f"{TASK}/orphan2"):
        any_base.put(name)
    test_database.clear(engine)
    rows = [json.dumps({"__airflow_state_ref__": f"{any_base.url}/{name}"}) for name in NAMES]
    test_database.insert(engine, {"a b": rows[0]}, {(1, "cursor"): rows[1]})
    monkeypatch.setattr("airflow.settings.engine", engine)
    given, stdin = ([source], None)
    if source == "export-refs":
        given, stdin = ["--refs", "-"], command(source).out.encode()
    young = command("sweep", *given, "--output", "json", stdin=stdin)
    assert (young.counts["referenced"], young.counts["too_young"], young.counts["orphans"]) == (2, 2, 0)
    done = command("sweep", *given, "--delete", "--grace", "0", "--output", "json", stdin=stdin)
    assert (done.code, done.counts["deleted"]) == (0, 2)
    assert sorted(any_base.names()) == sorted(NAMES)


def server_of(request: pytest.FixtureRequest, base: Base) -> Any:
    return request.getfixturevalue("gcs" if base.url.startswith("gs://") else "azure")


@clouds
def test_what_is_set_between_the_look_and_the_deletion_is_kept(
    any_base: Base, command: Run, request: pytest.FixtureRequest
) -> None:
    any_base.put(NAMES[0])
    orphan = f"{TASK}/orphan"
    any_base.put(orphan, b'"1"')
    server = server_of(request, any_base)

    def set_first(exchange: Exchange) -> Answer:
        any_base.put(orphan, b'"2"')
        return exchange.carry_out(exchange.body)

    def deletes(sent: Request) -> bool:
        return sent.method == "DELETE"

    rows = snapshot(any_base.url, [f"{any_base.url}/{NAMES[0]}"])
    with server.failing(Fault(set_first), when=deletes) as hit:
        done = command("sweep", "--refs", "-", "--delete", "--grace", "0", "--output", "json", stdin=rows)
    assert len(hit.requests) == 1
    assert (done.counts["orphans"], done.counts["deleted"]) == (1, 0)
    assert any_base.get(orphan) == b'"2"'


@clouds
def test_a_sweep_whose_answers_are_lost_goes_on(any_base: Base, command: Run, request: pytest.FixtureRequest) -> None:
    any_base.put(NAMES[0])
    any_base.put(f"{TASK}/orphan")
    rows = snapshot(any_base.url, [f"{any_base.url}/{NAMES[0]}"])
    with server_of(request, any_base).failing(faults.reset_after_carrying_out(), method="DELETE", times=1):
        done = command("sweep", "--refs", "-", "--delete", "--grace", "0", "--output", "json", stdin=rows)
    assert (done.code, done.counts["deleted"]) == (0, 1)
    assert any_base.names() == [NAMES[0]]
