"""keys.py alone: names, references and what is refused. Rows of CONTRACTS are named where a test shows one."""

from __future__ import annotations

import hashlib
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.state import AssetScope, TaskScope
from hypothesis import example, given
from hypothesis import strategies as st

from async_state.errors import InvalidKeyError, InvalidScopeError, UntrustedRefError
from async_state.keys import (
    MAX_NAME_BYTES,
    MAX_OBJECT_KEY_BYTES,
    Side,
    check_key,
    is_ref,
    make_ref,
    object_name,
    scope_prefix,
    split_ref,
)
from tests import fuzzing as fuzzing

BASE = "s3://bucket/prefix"

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
identifiers = text.filter(lambda s: len(s) <= 250)
state_keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=512).filter(
    lambda k: k not in (".", "..")
)
tasks = st.builds(
    TaskScope, dag_id=identifiers, run_id=identifiers, task_id=identifiers, map_index=st.integers(-1, 2**31 - 1)
)
assets = st.one_of(
    st.builds(AssetScope, name=identifiers),
    st.builds(AssetScope, uri=identifiers),
    st.builds(AssetScope, asset_id=st.integers(0, 2**31 - 1)),
)
scopes = st.one_of(tasks, assets)
LONG = TaskScope(dag_id="\U0001f4a5" * 250, run_id="/" * 250, task_id="é" * 250, map_index=2**31 - 1)


def test_names_are_readable() -> None:
    scope = TaskScope(dag_id="etl", run_id="manual__2026-01-01T00:00:00+00:00", task_id="load", map_index=3)
    assert object_name(scope, "job_id", Side.WORKER) == (
        "v1/task/etl/manual__2026-01-01T00:00:00%2B00:00/load/3/worker/job_id"
    )
    assert object_name(AssetScope(name="orders"), "watermark", Side.WORKER) == "v1/asset/name/orders/worker/watermark"
    assert object_name(AssetScope(asset_id=7), "watermark", Side.SERVER) == "v1/asset/id/7/server/watermark"


@given(scopes, state_keys)
@example(LONG, "\U0001f4a5" * 512)
@example(TaskScope("d", "r", "t"), "../x")
def test_contract_15_names_fit_s3_and_stay_below_their_scope(scope: Any, key: str) -> None:
    name = object_name(scope, key, Side.WORKER)
    assert name.isascii()
    assert name.isprintable()
    assert len(name) <= MAX_NAME_BYTES < MAX_OBJECT_KEY_BYTES
    assert name.startswith(scope_prefix(scope))
    assert not {"", ".", ".."} & set(name.split("/"))


@given(scopes, state_keys)
@example(LONG, "k" * 512)
@example(AssetScope(uri="s3://bucket/" + "a.long/path.of.an/asset." * 20), "dotted." * 60)
def test_contract_07_a_ref_alone_gives_its_name_back(scope: Any, key: str) -> None:
    name = object_name(scope, key, Side.WORKER)
    ref = make_ref(BASE, name)
    assert is_ref(ref)
    assert split_ref(ref, ["s3://other", BASE]) == (BASE, name)


@given(scopes, state_keys, scopes, state_keys)
def test_contract_15_distinct_keys_never_share_a_name(scope: Any, key: str, other: Any, other_key: str) -> None:
    same = scope == other and key == other_key
    assert (object_name(scope, key, Side.WORKER) == object_name(other, other_key, Side.WORKER)) is same


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("a/b", "a_b"),
        ("a/b", "a%2Fb"),
        ("a", "A"),
        ("k.gz", "k"),
        ("é", "e\u0301"),
        ("a" * 511, "a" * 512),
        ("~", "%7E"),
    ],
)
def test_contract_15_look_alikes_differ(key: str, other: str) -> None:
    scope = TaskScope("d", "r", "t")
    assert object_name(scope, key, Side.WORKER) != object_name(scope, other, Side.WORKER)


def test_contract_15_an_id_can_not_forge_the_ending_of_a_long_one() -> None:
    long = object_name(TaskScope("d" * 250, "r", "t"), "k", Side.WORKER).split("/")[2]
    assert object_name(TaskScope(long, "r", "t"), "k", Side.WORKER).split("/")[2] != long


def test_contract_16_reserved_words_collide_with_nothing() -> None:
    words = ["asset", "assets", "task", "v1", "name", "worker", "server", "-1"]
    names = {
        object_name(scope, key, side)
        for word in words
        for scope in (TaskScope(word, word, word), AssetScope(name=word), AssetScope(uri=word))
        for key in words
        for side in Side
    }
    assert len(names) == len(words) * 3 * len(words) * len(Side)


def test_contract_14_name_uri_and_id_never_collide() -> None:
    prefixes = {scope_prefix(s) for s in (AssetScope(name="7"), AssetScope(uri="7"), AssetScope(asset_id=7))}
    assert len(prefixes) == 3


def test_contract_12_a_region_is_part_of_the_name() -> None:
    """task-sdk 1.4's scope, by its fields; the zero region is what 1.3 stored."""

    def scope(region: int) -> SimpleNamespace:
        return SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=0, region_id=uuid.UUID(int=region))

    legacy = TaskScope("d", "r", "t", 0)
    assert scope_prefix(scope(0)) == scope_prefix(legacy)
    prefixes = [scope_prefix(s, all_map_indices=True) for s in (scope(1), scope(2), legacy)]
    assert not any(a.startswith(b) for a in prefixes for b in prefixes if a is not b)
    name = object_name(scope(1), "k", Side.WORKER)
    assert split_ref(make_ref(BASE, name), [BASE]) == (BASE, name)


@pytest.mark.parametrize("key", ["", ".", "..", "k" * 513, "\ud800", None, b"k"])
def test_contract_15_keys_that_airflow_can_not_address(key: Any) -> None:
    with pytest.raises(InvalidKeyError):
        object_name(TaskScope("d", "r", "t"), key, Side.WORKER)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (b"k", "a state key must be a string, not bytes"),
        ("k" * 513, "a state key must have 1 to 512 characters, not 513"),
        ("..", "the state key '..' can't be used: it collapses in Airflow's URLs; choose another"),
        ("k\ud800", "a state key must be valid unicode: surrogates not allowed at position 1"),
    ],
)
def test_a_refused_key_is_explained(key: Any, said: str) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        check_key(key)
    assert str(caught.value) == said


def test_every_map_index_of_a_task_is_below_one_prefix() -> None:
    assert scope_prefix(TaskScope("d", "r", "t", 3), all_map_indices=True) == "v1/task/d/r/t/"
    assert scope_prefix(TaskScope("d", "r", "t", 3)) == "v1/task/d/r/t/3/"


@pytest.mark.parametrize(
    "scope",
    [
        None,
        "dag/run/task",
        {"dag_id": "d"},
        object(),
        TaskScope("", "r", "t"),
        TaskScope("d", None, "t"),  # type: ignore[arg-type]
        TaskScope("d", "r", "t", map_index=-2),
        TaskScope("d", "r", "t", map_index="0"),  # type: ignore[arg-type]
        TaskScope("d", "r", "\udc80"),
        AssetScope(name=""),
        AssetScope(asset_id=-1),
        AssetScope(asset_id=True),
        SimpleNamespace(dag_id="d"),
        SimpleNamespace(task_id="t"),
        SimpleNamespace(dag_id="d", run_id="r"),
        SimpleNamespace(run_id="r", task_id="t"),
        SimpleNamespace(asset_id=1),
        SimpleNamespace(name="a", uri="a"),
        SimpleNamespace(uri="a"),
    ],
)
def test_contract_11_anything_else_is_a_type_error(scope: Any) -> None:
    with pytest.raises(TypeError) as caught:
        scope_prefix(scope)
    assert isinstance(caught.value, InvalidScopeError)


def test_what_is_no_scope_is_named() -> None:
    with pytest.raises(InvalidScopeError) as caught:
        scope_prefix({"dag_id": "d"})
    assert str(caught.value) == "a scope must be a TaskScope or an AssetScope, not dict"


GOOD = "v1/task/d/r/t/-1/worker/k"


@pytest.mark.parametrize(
    "ref",
    [
        "s3://other/prefix/" + GOOD,
        "s3://bucket/" + GOOD,
        "s3://bucket/prefix2/" + GOOD,
        "file:///bucket/prefix/" + GOOD,
        "S3://bucket/prefix/" + GOOD,
        "s3://bucket/prefix//" + GOOD,
        f"{BASE}/../prefix/{GOOD}",
        f"{BASE}/v1/task/d/r/t/-1/worker/..",
        f"{BASE}/v1/task/d/r/t/-1/worker/.",
        f"{BASE}/v1/task/d/r/t/-1/worker/",
        f"{BASE}/v1/task/../r/t/-1/worker/k",
        f"{BASE}/v1/task/d/r/t/-1/worker/../k",
        f"{BASE}/v1/task/d/r/t/-1/worker/%2e%2e",
        f"{BASE}/v1/task/d/r/t/-1/worker/%2E%2E/x",
        f"{BASE}/v1/task/d/r/t/-1/worker/%6B",
        f"{BASE}/v1/task/d/r/t/-1/worker/%",
        f"{BASE}/v1/task/d/r/t/-1/worker/%2",
        f"{BASE}/v1/task/d/r/t/-1/worker/%zz",
        f"{BASE}/v1/task/d/r/t/-1/worker/%2f",
        f"{BASE}/v1/task/d/r/t/-1/worker/%FF",
        f"{BASE}/v1/task/d/r/t/-1/worker/k?versionId=1",
        f"{BASE}/v1/task/d/r/t/-1/worker/k#x",
        f"{BASE}/v1/task/d/r/t/-1/worker/k\n",
        f"{BASE}/v1/task/d/r/t/-1/worker/k~{'0' * 32}",
        f"{BASE}/v1/task/d/r/t/-1/worker/{'k' * 201}",
        f"{BASE}/v1/task/d/r/t/-2/worker/k",
        f"{BASE}/v1/task/d/r/t/01/worker/k",
        f"{BASE}/v1/task/d/r/t@nowhere/0/worker/k",
        f"{BASE}/v1/task/d/r/t/-1/server/k",
        f"{BASE}/v1/asset/other/a/worker/k",
        f"{BASE}/v1/asset/id/seven/worker/k",
        f"{BASE}/v2/task/d/r/t/-1/worker/k",
        f"{BASE}",
        f"{BASE}/",
        "https://example.com/x",
        "javascript:alert(1)",
    ],
)
def test_contract_10_refs_that_this_package_never_wrote_are_refused(ref: str) -> None:
    assert is_ref(ref)
    with pytest.raises(UntrustedRefError):
        split_ref(ref, [BASE])


@given(
    st.from_regex(r"\As3://bucket/prefix/v1/(task|asset)/[a-z%./~0-9@-]{1,60}/(worker|server)/[a-zA-Z%./~0-9\n-]{1,40}")
)
def test_contract_10_what_is_accepted_is_canonical(ref: str) -> None:
    try:
        base, name = split_ref(ref, [BASE])
    except UntrustedRefError:
        return
    assert make_ref(base, name) == ref
    assert not {"", ".", ".."} & set(ref.removeprefix("s3://").split("/"))


@pytest.mark.parametrize("ref", [None, 7, 1.5, True, ["s3://bucket/prefix/k"], {"s3": "x"}, b"s3://bucket/prefix/k"])
def test_contract_10_a_ref_that_is_no_string_is_refused(ref: Any) -> None:
    for refuse in (is_ref, lambda ref: split_ref(ref, [BASE])):
        with pytest.raises(UntrustedRefError) as caught:
            refuse(ref)
        assert str(caught.value) == (
            f"a reference must be a string, not {type(ref).__name__}: it was not written by this package, but through "
            "the UI or the REST API. Delete the key, or set it anew"
        )


@pytest.mark.parametrize(("length", "shown"), [(1024, 1024), (1025, 1024)])
def test_a_refused_ref_is_explained_by_the_commonest_cause_first(length: int, shown: int) -> None:
    ref = "s3://elsewhere/".ljust(length, "k")
    with pytest.raises(UntrustedRefError) as caught:
        split_ref(ref, [BASE, "s3://other"])
    end = "" if length == shown else "..."
    assert str(caught.value) == (
        f"the reference '{ref[:shown]}{end}' is not an object below {BASE} or s3://other. Most likely the component "
        "that wrote it has another [async_state] url than this one: set the same url for every component (scheduler, "
        "API server, triggerer, workers). If the url was changed, add the one under which the reference was written to "
        "[async_state] trusted_urls. If no component ever had such a url, the reference was not written by this "
        "package: find out who changed the state through the UI or the REST API."
    )


def test_a_refused_ref_is_shown_without_its_control_characters() -> None:
    with pytest.raises(UntrustedRefError) as caught:
        split_ref("s3://elsewhere/\nERROR forged log line", [BASE])
    assert "\n" not in str(caught.value)
    assert "trusted_urls" in str(caught.value)


@pytest.mark.parametrize(
    "stored", ["1", '"s3://bucket/prefix/k"', "true", "null", "[]", '{"a": "b://c"}', " 1", "-1.5", ""]
)
def test_contract_07_json_text_is_never_taken_for_a_ref(stored: str) -> None:
    assert not is_ref(stored)


def test_a_segment_is_cut_only_where_it_must_be() -> None:
    """The names of stored objects never change, so these are written out."""
    task = TaskScope("d", "r", "t")
    start = "v1/task/d/r/t/-1/worker/"
    assert object_name(task, "k" * 200, Side.WORKER) == start + "k" * 200
    digest = hashlib.sha256(("k" * 201).encode()).hexdigest()[:32]
    assert object_name(task, "k" * 201, Side.WORKER) == f"{start}{'k' * 167}~{digest}"
    assert object_name(task, "k:.", Side.WORKER) == f"{start}k:."
    assert object_name(task, "X", Side.WORKER) == f"{start}X"
    assert object_name(task, "k~", Side.WORKER) == f"{start}k%7E"
    assert scope_prefix(TaskScope(".", "..", "t")) == "v1/task/%2E/%2E%2E/t/-1/"
    # No text is cut to so few bytes, as no character has more than twelve.
    refused, accepted = (make_ref(BASE, f"{start}{'k' * kept}~{'0' * 32}") for kept in (155, 156))
    with pytest.raises(UntrustedRefError):
        split_ref(refused, [BASE])
    assert split_ref(accepted, [BASE])[0] == BASE


@pytest.mark.parametrize(
    ("dag_id", "said"), [("", "TaskScope.dag_id must be a non"), ("\ud800", "TaskScope.dag_id must")]
)
def test_a_refused_identifier_is_named(dag_id: str, said: str) -> None:
    with pytest.raises(InvalidScopeError, match=f"^{said}"):
        scope_prefix(TaskScope(dag_id, "r", "t"))
