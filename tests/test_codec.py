"""codec.py alone: what comes back is what went in, and damage is told from data."""

from __future__ import annotations

import asyncio
import collections
import datetime
import enum
import itertools
import json
import math
import multiprocessing
import secrets
import sys
import threading
import tracemalloc
from collections.abc import Callable, Generator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_state import codec
from async_state.errors import ConfigurationError, CorruptObjectError, InvalidValueError
from tests import fuzzing as fuzzing

pytestmark = pytest.mark.anyio

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


@given(json_values, st.sampled_from(["none", "gzip", "zstd"]))
def test_an_ending_changes_no_value(value: Any, compression: str) -> None:
    text = codec.dump(value)
    body, _ = codec.encode(text, compression, ending=codec.ending())
    stored = codec.decode(body)
    assert stored.startswith(text)
    assert len(stored) == len(text) + 16
    found = codec.load(stored)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["x" * 100_000, 10**4000, ["x" * 50] * 3_000, {"a": [[1.5]] * 20_000}, "x" * 65_534])
async def test_an_ending_changes_no_large_value(value: Any) -> None:
    body, _ = await codec.aencode(await codec.adump(value), "none", ending=codec.ending())
    assert await codec.aload(await codec.adecode(body)) == value
    assert codec.load(codec.decode(body)) == value
    assert json.loads(body) == value


def test_endings_are_drawn_anew_also_in_forked_processes() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        drawn = pool.map(_endings, [200, 200], chunksize=1)
    assert set("".join(drawn[0])) == set(" \t\n\r")
    # By chance, two of 400 are the same once in 50,000 runs; generators that were forked would draw all of them twice.
    assert len({*drawn[0], *drawn[1]}) >= 398


def _endings(count: int) -> list[str]:
    return [codec.ending() for _ in range(count)]


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


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [codec.MAX_DEPTH + 1, 980, 100_000])
async def test_what_is_nested_too_deep_is_refused(depth: int) -> None:
    value, text = nested(depth), "[" * depth + "]" * depth
    with pytest.raises(InvalidValueError, match=f"nested more than {codec.MAX_DEPTH} levels deep"):
        codec.dump(value)
    with pytest.raises(InvalidValueError, match=f"nested more than {codec.MAX_DEPTH} levels deep"):
        await codec.adump(value)
    with pytest.raises(CorruptObjectError, match=f"nested more than {codec.MAX_DEPTH} levels deep"):
        codec.load(text)
    with pytest.raises(CorruptObjectError, match=f"nested more than {codec.MAX_DEPTH} levels deep"):
        await codec.aload(text)


async def test_what_is_nested_as_deep_as_allowed_comes_back() -> None:
    value = nested(codec.MAX_DEPTH)
    assert codec.load(codec.dump(value)) == value
    assert await codec.aload(await codec.adump(value)) == value


ROWS = [{"id": i, "name": f"Köln {i}", "tags": ["a", "b"], "note": "x" * 300} for i in range(20_000)]


async def test_other_tasks_run_while_a_large_value_is_dumped_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Counted, not timed: other tasks run after each step. Steps are bounded in test_chunked_json.py.
    monkeypatch.setattr(codec, "_SLICE_SECONDS", 0.0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    text = await codec.adump(ROWS)
    turns_of_dump = turns
    assert text == json.dumps(ROWS)
    assert await codec.aload(text) == ROWS
    turns_of_load = turns - turns_of_dump
    counting.cancel()
    assert min(turns_of_dump, turns_of_load) >= len(text) // (64 * 1024)


async def test_a_small_value_takes_one_turn() -> None:
    """Nothing else runs meanwhile, so that an operation on a small value costs no more than before."""
    for coroutine in (codec.adump({"job": 1}), codec.aload('{"job": 1}')):
        with pytest.raises(StopIteration):
            coroutine.send(None)


def test_a_coroutine_needs_no_running_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocking caller drives it on a thread of its own, where each turn that it offers is a bare yield."""
    monkeypatch.setattr(codec, "_SLICE_SECONDS", 0.0)
    text = json.dumps(ROWS)
    for coroutine, expected in ((codec.adump(ROWS), text), (codec.aload(text), ROWS)):
        offered: list[object] = []
        found = None
        while found is None:
            try:
                offered.append(coroutine.send(None))
            except StopIteration as e:
                found = e.value
        assert found == expected
        assert set(offered) == {None}


async def test_a_large_text_is_encoded_and_decoded_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(ROWS)
    on_threads: list[int] = []
    encode, unpack = codec.encode, codec.unpack

    def seen(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        on_threads.append(threading.get_ident())
        return function(*args, **kwargs)

    monkeypatch.setattr(codec, "encode", partial(seen, encode))
    monkeypatch.setattr(codec, "unpack", partial(seen, unpack))
    assert await codec.adecode((await codec.aencode("1", "none"))[0]) == "1"
    assert set(on_threads) == {threading.get_ident()}
    on_threads.clear()
    for compression in ("none", "gzip", "zstd"):
        body, content_encoding = await codec.aencode(text, compression)
        assert await codec.adecode(body) == text
        assert (body, content_encoding) == encode(text, compression)
    assert len(on_threads) == 6
    # From 64 KiB on.
    assert await codec.adecode((await codec.aencode(text[: 64 * 1024], "none"))[0]) == text[: 64 * 1024]
    assert len(on_threads) == 8
    assert threading.get_ident() not in on_threads
    with pytest.raises(CorruptObjectError, match="truncated"):
        await codec.adecode(encode(text, "gzip")[0][:-1])


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("size", [1, 100_000], ids=["small", "large"])
async def test_the_coroutine_makes_the_same_bytes(compression: str, size: int) -> None:
    for more in ({}, {"ending": " \n"}, {"expires_at": NOW}, {"ending": "\t", "expires_at": NOW}):
        made: Any = await codec.aencode("x" * size, compression, **more)
        assert made == codec.encode("x" * size, compression, **more)
        assert codec.content_encoding(made[0]) == made[1] == ("" if compression == "none" else compression)


async def test_turns_are_offered_once_a_slice_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks each time somebody looks at it, and slices of three ticks."""
    monkeypatch.setattr(codec, "_SLICE_SECONDS", 3)
    monkeypatch.setattr(codec, "time", SimpleNamespace(perf_counter=partial(next, itertools.count())))

    def steps() -> Generator[None, None, str]:
        for _ in range(9):
            yield
        return "done"

    coroutine = codec._afinish(steps())
    for _ in range(3):
        assert coroutine.send(None) is None
    with pytest.raises(StopIteration, match="done"):
        coroutine.send(None)


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


def _of(bomb: int) -> bytes:
    return codec.encode("1" * bomb, "gzip")[0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (codec.encode("x" * 100, "gzip")[0][:-1], "truncated gzip data"),
        (_of(1) + _of(1), "more than one gzip stream, or other data after it"),
        (b"\xffexpires 2026\n1", "a damaged time of expiry"),
        (codec.encode("ab", "none")[0] + b"\xff", "not UTF-8 text at byte 2"),
        (
            codec.encode("ab", "none", expires_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc))[0]
            + b"\xff",
            f"not UTF-8 text at byte {len('.expires 2026-01-01T00:00:00+00:00.') + 2}",
        ),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, said: str) -> None:
    with pytest.raises(CorruptObjectError) as caught:
        codec.unpack(body)
    assert str(caught.value) == said


def test_what_is_wrong_with_a_value_is_said() -> None:
    with pytest.raises(InvalidValueError) as caught:
        codec.dump(None)
    assert str(caught.value) == "a state value must not be None; delete the key instead"
    with pytest.raises(InvalidValueError) as caught:
        codec.encode("1", "none", expires_at=1)  # type: ignore[arg-type]
    assert str(caught.value) == "expires_at must be a datetime or None, not int"


def test_a_bomb_is_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    body = _of(20_000_000)
    monkeypatch.setattr(codec, "MAX_TEXT_BYTES", 1000)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptObjectError, match="gzip data of more than 1000 bytes"):
            codec.unpack(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_zstd_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    body, _ = codec.encode("1", "zstd")
    assert codec.zstd_available() is True
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert codec.zstd_available() is False
    for use in partial(codec.encode, "1", "zstd"), partial(codec.decode, body):
        with pytest.raises(ConfigurationError) as caught:
            use()
        assert str(caught.value) == (
            "zstd needs the package zstandard: pip install 'airflow-async-state[zstd]' wherever state is written or "
            "read, or set [async_state] compression to gzip or none"
        )


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_the_bound_on_text_is_exact(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " " * 1_000_000
    monkeypatch.setattr(codec, "MAX_TEXT_BYTES", 1_000_000)
    body, _ = codec.encode(text, compression)
    assert codec.decode(body) == text
    monkeypatch.setattr(codec, "MAX_TEXT_BYTES", 999_999)
    with pytest.raises(CorruptObjectError, match="999999"):
        codec.decode(body)
    with pytest.raises(InvalidValueError, match="999999"):
        codec.encode(text, compression)


def test_the_bound_on_a_value_is_that_on_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_TEXT_BYTES", 1_000_000)
    value = ["x" * 99_998] * 10  # with quotes, brackets and separators
    assert len(codec.dump(value[:9])) < 1_000_000
    with pytest.raises(InvalidValueError, match="1000000"):
        codec.dump(value)


def test_what_can_not_be_compressed_fits_the_bound_on_bodies() -> None:
    text = secrets.token_bytes(4 * 1024 * 1024).decode("latin-1")
    for compression in ("none", "gzip", "zstd"):
        body, _ = codec.encode(text, compression)
        assert len(body) <= len(text.encode()) * codec.MAX_BODY_BYTES // codec.MAX_TEXT_BYTES


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("rest", [b"\0", b"x", b"again"])
def test_data_after_the_compressed_text_is_damage(compression: str, rest: bytes) -> None:
    body, _ = codec.encode("1", compression)
    rest = body if rest == b"again" else rest
    with pytest.raises(CorruptObjectError):
        codec.decode(body + rest)


NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=53, seconds=28))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("text", ["", "1", "\ud800", '"\u00ff"', "\n", "\u00ffexpires 2026-01-01T00:00:00+00:00\n1"])
async def test_a_text_that_expires(compression: str, text: str) -> None:
    for expires_at in (NOW, NOW.astimezone(EAST), datetime.datetime.max.replace(tzinfo=EAST)):
        body, content_encoding = codec.encode(text, compression, expires_at=expires_at)
        assert content_encoding == ("" if compression == "none" else compression)
        assert codec.unpack(body) == (text, expires_at) == await codec.aunpack(body)
        assert codec.decode(body) == text == await codec.adecode(body)
    # As Airflow says: "an absolute UTC datetime".
    naive, _ = await codec.aencode(text, compression, expires_at=NOW.replace(tzinfo=None))
    assert codec.unpack(naive).expires_at == NOW
    # What earlier versions wrote, and what never expires, is text and nothing else.
    assert codec.unpack(codec.encode(text, compression)[0]) == (text, None)
    assert codec.encode(text, "none")[0] == text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("when", ["2026", "2026-01-01T00:00:00", "2026-13-01T00:00:00+00:00", "+" * 48])
def test_a_damaged_time_of_expiry(when: str) -> None:
    with pytest.raises(CorruptObjectError, match="damaged time of expiry"):
        codec.unpack(b"\xffexpires %s\n1" % when.encode())


@pytest.mark.parametrize("when", [1767225600, "2026-01-01", datetime.date(2026, 1, 1), datetime.timedelta(1)])
def test_a_time_of_expiry_must_be_one(when: Any) -> None:
    with pytest.raises(InvalidValueError, match="expires_at must be a datetime or None"):
        codec.encode("1", "none", expires_at=when)
