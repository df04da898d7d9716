"""codec.py alone: what comes back is what went in, and damage is told from data."""

from __future__ import annotations

import collections
import datetime
import enum
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_state import codec
from async_state.errors import CorruptObjectError, InvalidValueError

json_values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
).filter(lambda value: value is not None)


@given(json_values, st.sampled_from(["none", "gzip", "zstd"]))
def test_contract_02_every_json_value_comes_back(value: Any, compression: str) -> None:
    body, _ = codec.encode(codec.dump(value), compression)
    found = codec.load(codec.decode(body))
    assert found == value
    assert type(found) is type(value)


@given(st.text(), st.sampled_from(["none", "gzip", "zstd"]))
def test_contract_01_any_text_comes_back_byte_for_byte(text: str, compression: str) -> None:
    assert codec.decode(codec.encode(text, compression)[0]) == text


class Colour(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize("value", [Colour.RED, collections.OrderedDict(a=1), {"a": {"b": []}}])
def test_what_equals_its_json_is_taken(value: Any) -> None:
    assert codec.load(codec.dump(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        None,
        math.nan,
        math.inf,
        {"a": [-math.inf]},
        datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
        b"bytes",
        {1, 2},
        (1, 2),
        {"a": (1,)},
        {1: "a"},
        {None: 1},
        object(),
        1j,
        10**5000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_contract_03_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        codec.dump(value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_contract_03_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidValueError):
        codec.dump(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidValueError):
        codec.dump(deep)


def test_a_refused_value_is_not_quoted() -> None:
    for value in ({"password": {"hunter2"}}, {"password": ("hunter2",)}, {"hunter2": math.nan}):
        with pytest.raises(InvalidValueError) as caught:
            codec.dump(value)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_every_truncation_and_every_flipped_byte_is_noticed(compression: str) -> None:
    text = codec.dump({"job": "spark-" * 20})
    body, _ = codec.encode(text, compression)
    for end in range(4, len(body)):
        with pytest.raises(CorruptObjectError):
            codec.load(codec.decode(body[:end]))
    for at in range(len(body)):
        damaged = body[:at] + bytes([body[at] ^ 0x55]) + body[at + 1 :]
        try:
            found = codec.decode(damaged)
        except CorruptObjectError:
            continue
        # gzip's header holds bytes that mean nothing to its reader (time, operating system).
        assert compression == "gzip"
        assert found == text


@pytest.mark.parametrize(
    "body", [b"", b"{", b'"half', b"\xff\xfe", b"nul", b"NaN-ish", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"]
)
def test_what_is_no_json_is_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptObjectError):
        codec.load(codec.decode(body))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_is_bounded(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body, _ = codec.encode(" " * 1_000_000, compression)
    monkeypatch.setattr(codec, "MAX_TEXT_BYTES", 999_999)
    with pytest.raises(CorruptObjectError, match="999999"):
        codec.decode(body)
    with pytest.raises(InvalidValueError, match="999999"):
        codec.encode(" " * 1_000_000, compression)
