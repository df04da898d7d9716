"""Whatever looks like a reference in a row counts as one, wherever it is."""

from __future__ import annotations

import json

import pytest

from async_state.sweep.references import References

BASE = "s3://bucket/state"
OLD = "file:///old"
REF = f"{BASE}/v1/task/dag/run/task/-1/worker/a%20key"
HASHED = f"{BASE}/v1/asset/name/{'n' * 120}~{'0' * 32}/worker/k@x:y_.-"
ELSEWHERE = "gs://other/v1/task/dag/run/task/-1/worker/k"


@pytest.mark.parametrize(
    ("row", "refs"),
    [
        pytest.param(json.dumps({"__airflow_state_ref__": REF}), {REF}, id="what the SDK writes"),
        pytest.param(json.dumps({"__airflow_state_ref__": HASHED}), {HASHED}, id="shortened identifiers"),
        pytest.param(json.dumps({"__airflow_state_ref__": ELSEWHERE}), {ELSEWHERE}, id="marked, and elsewhere"),
        pytest.param(json.dumps({"__airflow_state_ref__": f"{OLD}/v1/x"}), {f"{OLD}/v1/x"}, id="an earlier base"),
        pytest.param(json.dumps({"__airflow_state_ref__": '{"inline": 1}'}), set(), id="inline JSON text"),
        pytest.param(json.dumps({"__airflow_state_ref__": json.dumps(REF)}), {REF}, id="inline text of a reference"),
        pytest.param(json.dumps({"__airflow_state_ref__": 7}), set(), id="a number"),
        pytest.param(json.dumps({"__airflow_state_ref__": [REF]}), {REF}, id="a list"),
        pytest.param(json.dumps(REF), {REF}, id="a string without the marker"),
        pytest.param(json.dumps(ELSEWHERE), set(), id="a string without the marker, and elsewhere"),
        pytest.param(json.dumps([{"a": [{"b": REF}]}, HASHED]), {REF, HASHED}, id="deep inside"),
        pytest.param(json.dumps({REF: 1}), {REF}, id="a key"),
        pytest.param(json.dumps(f"see {REF}, or {HASHED}\n"), {REF, HASHED}, id="in a sentence"),
        pytest.param(json.dumps({"__airflow_state_ref__": REF}).replace("/", "\\/"), {REF}, id="escaped slashes"),
        pytest.param(json.dumps({"__airflow_state_ref__": REF}).replace("s3", "\\u0073\\u0033"), {REF}, id="escapes"),
        pytest.param(f"{{'__airflow_state_ref__': '{REF}'}}", {REF}, id="Python's quotes"),
        pytest.param(f'{{"__airflow_state_ref__": "{REF}"', {REF}, id="JSON that is cut"),
        pytest.param(f'{{"a": "{REF}", "b": "'.replace("/", "\\/"), {REF}, id="cut, with escaped slashes"),
        pytest.param(REF, {REF}, id="the bare URL"),
        pytest.param("[" * 100_000 + f'"{REF}"', {REF}, id="too deep"),
        pytest.param(f'["{REF}", {"1" * 10_000}]', {REF}, id="an integer too long"),
        pytest.param(json.dumps({"__airflow_state_ref__": REF}).encode(), {REF}, id="bytes"),
        pytest.param(b"\xff" + REF.encode(), {REF}, id="bytes that are no text"),
        pytest.param({"__airflow_state_ref__": REF}, {REF}, id="parsed by the driver"),
        pytest.param(f"{BASE}x/v1/a {BASE} {BASE}/", set(), id="another bucket, and the base itself"),
        pytest.param(None, set(), id="null"),
        pytest.param("", set(), id="nothing"),
        pytest.param("42", set(), id="another value"),
    ],
)
def test_references_are_found(row: object, refs: set[str]) -> None:
    assert References([BASE, OLD]).find(row) == refs


def test_names_are_those_below_the_bases() -> None:
    references = References([BASE, OLD])
    assert list(references.names([REF, ELSEWHERE, f"{OLD}/v1/x", BASE, f"{BASE}x/v1/y"])) == [
        "v1/task/dag/run/task/-1/worker/a%20key",
        "v1/x",
    ]


def test_a_base_below_a_base_hides_nothing() -> None:
    references = References([BASE, f"{BASE}/v1"])
    found = references.find(json.dumps(f"{BASE}/v1/v1/x"))
    assert set(references.names(found)) == {"v1/v1/x", "v1/x"}


@pytest.mark.parametrize(
    ("ref", "found"),
    [
        (ELSEWHERE, [("v1/task/dag/run/task/-1/worker/k", "gs://other")]),
        ("s3://o/v1/v1/task/v1/v1/v1/-1/worker/v1", [("v1/task/v1/v1/v1/-1/worker/v1", "s3://o/v1")]),
        ("s3://o/p/v1/asset/uri/x:%2F%2Fy/worker/k", [("v1/asset/uri/x:%2F%2Fy/worker/k", "s3://o/p")]),
        ("s3://o/v1/task/dag/run/task/-1/server/k", []),
        ("s3://o/v1/task/dag/run/task/-1/worker/k/", []),
        ("s3://o/" + "v1/" * 1_000_000, []),
        (REF, []),
        (f"{OLD}/v1/task/dag/run/task/-1/worker/k", []),
        ("", []),
    ],
)
def test_names_below_an_unknown_base(ref: str, found: list[tuple[str, str]]) -> None:
    assert list(References([BASE], elsewhere=[OLD]).unknown([ref])) == found
