"""What an object's name says, read back: `parse_name`."""

from __future__ import annotations

import uuid
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.state import AssetScope, TaskScope
from hypothesis import example, given
from hypothesis import strategies as st

from async_state.keys import Place, Side, id_segment, key_segment, object_name, parse_name, scope_prefix
from tests import fuzzing as fuzzing

TASK = Place(side=Side.WORKER, key="k/1", dag_id="dag", run_id="a run+1", task_id="t@1", map_index=3)
REGION = uuid.UUID(int=7)

#: Short enough for a name to have all of it.
short = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
state_keys = short.filter(lambda key: key not in (".", ".."))
sides = st.sampled_from(Side)


def scope_of(place: Place) -> Any:
    """Return the scope of a task's place, as task-sdk 1.4 makes it, which knows regions."""
    region = uuid.UUID(place.region) if place.region else uuid.UUID(int=0)
    return SimpleNamespace(
        dag_id=place.dag_id, run_id=place.run_id, task_id=place.task_id, map_index=place.map_index, region_id=region
    )


tasks = st.builds(
    Place,
    side=sides,
    key=state_keys,
    dag_id=short,
    run_id=short,
    task_id=short,
    map_index=st.integers(-1, 2**31 - 1),
    region=st.just("") | st.uuids().map(str).filter(lambda region: region != str(uuid.UUID(int=0))),
)


@given(tasks)
@example(TASK)
@example(replace(TASK, side=Side.SERVER, map_index=-1, region=str(REGION)))
def test_a_tasks_name_says_where_it_belongs(place: Place) -> None:
    assert parse_name(object_name(scope_of(place), place.key, place.side)) == place


@given(st.sampled_from(["name", "uri"]), short, sides, state_keys)
@example("name", "..", Side.SERVER, "k")
def test_an_assets_name_says_what_names_it(by: str, asset: str, side: Side, key: str) -> None:
    scope = AssetScope(name=asset) if by == "name" else AssetScope(uri=asset)
    name = object_name(scope, key, side)
    assert parse_name(name) == Place(side=side, key=key, asset_by=by, asset=asset)


def test_an_assets_name_says_its_id() -> None:
    name = object_name(AssetScope(asset_id=70), "k", Side.SERVER)
    assert parse_name(name) == Place(side=Side.SERVER, key="k", asset_by="id", asset="70")


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("scope", [TaskScope("d" * 250, "/" * 250, "é" * 250), AssetScope(uri="s3://a/" * 100)])
def test_of_a_cut_name_the_beginning_and_the_hash_are_left(side: Side, scope: Any) -> None:
    name = object_name(scope, "ключ" * 100, side)
    place = parse_name(name)
    assert place is not None
    kept, cut, digest = place.key.partition("~")
    assert cut
    assert kept
    assert ("ключ" * 100).startswith(kept)
    assert name.endswith(f"~{digest}")
    long = place.run_id or place.asset
    assert (getattr(scope, "run_id", None) or scope.uri).startswith(long.partition("~")[0])


@pytest.mark.parametrize("text", ["a b", "..", "é" * 100])
def test_segments_are_those_of_names(text: str) -> None:
    """By which commands look for what they are asked for."""
    assert object_name(TaskScope(text, "r", "t"), "k", Side.WORKER).split("/")[2] == id_segment(text)
    key = f"{text}k"
    assert object_name(TaskScope("d", "r", "t"), key, Side.WORKER).split("/")[-1] == key_segment(key)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "v1/owner",
        "v2/task/d/r/t/-1/worker/k",
        "v1/task/d/r/t/-1/elsewhere/k",
        "v1/task/d/r/t/-1/WORKER/k",
        "v1/task/d/r/t/-2/worker/k",
        "v1/task/d/r/t/01/worker/k",
        "v1/task/d/r/t/worker/k",
        "v1/task/d/r/t/-1/worker/k/more",
        "v1/task/d//t/-1/worker/k",
        "v1/task/d/r/t/-1/worker/",
        "v1/task/d/r/t/-1/worker/.",
        "v1/task/d/../t/-1/worker/k",
        "v1/task/d/r/t/-1/worker/%2E",
        "v1/task/d/r/t/-1/worker/%2E%2E",
        "v1/task/d/r/t/-1/worker/%6B",
        "v1/task/d/r/t/-1/worker/%FF",
        f"v1/task/d/r/t@{uuid.UUID(int=0)}/-1/worker/k",
        "v1/asset/id/007/worker/k",
        "v1/asset/id/x/worker/k",
        "v1/asset/group/a/worker/k",
        "v1/asset/name/a/worker/k~" + "0" * 32,
        "v1/asset/name//worker/k",
        "v1/asset/name/a/worker/%2E",
    ],
)
def test_what_is_not_exactly_a_name_of_ours_says_nothing(name: str) -> None:
    assert parse_name(name) is None


def test_a_region_is_part_of_the_scope() -> None:
    place = parse_name(f"{scope_prefix(scope_of(replace(TASK, region=str(REGION))))}worker/k")
    assert place is not None
    assert (place.task_id, place.region) == ("t@1", str(REGION))
