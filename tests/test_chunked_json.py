"""chunked_json.py alone: what json does, in steps."""

from __future__ import annotations

import collections
import enum
import json
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from async_state import chunked_json
from async_state.chunked_json import MAX_DEPTH, TooDeepError, UnfaithfulError
from tests.fuzzing import FUZZED

T = TypeVar("T")

LARGE = sys.maxsize
fixture_is_for_all = settings(FUZZED, max_examples=50)


@pytest.fixture(params=[1, 40, 100, 64 * 1024])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of a step: small ones take small values apart as the real one takes large values."""
    monkeypatch.setattr(chunked_json, "_STEP", request.param)
    monkeypatch.setattr(chunked_json, "_NODE_WEIGHT", min(16, request.param))
    monkeypatch.setattr(chunked_json, "_BATCH", 3)
    monkeypatch.setattr(chunked_json, "_C_DEPTH", 2)
    size: int = request.param
    return size


def finish(steps: Generator[None, None, T]) -> tuple[T, int]:
    """Return the result, and how many steps it took."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as e:
            return e.value, count
        count += 1


def dump(value: Any) -> str:
    return finish(chunked_json.encoding(value, LARGE))[0]


def load(text: str) -> Any:
    return finish(chunked_json.decoding(text))[0]


def nested(depth: int, *, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"k": value} if kind == "dict" else [{"k": 0}, value]
    return value


class Colour(str, enum.Enum):
    RED = "red"


class Count(enum.IntEnum):
    ONE = 1


class Sneaky(list[Any]):
    """Is not what it holds."""

    def __iter__(self) -> Iterator[Any]:
        return iter(["something else"])


surrogates = st.text(st.sampled_from("\ud83d\ude00\ud800\udfffaé"), max_size=4)
texts = (
    st.text(max_size=8) | surrogates | st.sampled_from(["}, {", "], [", '", "', ", ", "[", "{", '\\"', "\\", "\x7f"])
)
scalars = st.none() | st.booleans() | st.integers() | st.integers(10**20, 10**40) | st.floats() | texts
odd = st.sampled_from([Colour.RED, Count.ONE, (), (1,), b"", object(), 1j, {1: "a"}, {None: 1}, {True: 0}, {b"": 1}])
odd |= st.sampled_from([{Colour.RED: 1}, collections.OrderedDict(a=[1]), collections.Counter("aab"), Sneaky([1])])


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=9) | st.dictionaries(texts, inner, max_size=9)


values = st.recursive(scalars, containers, max_leaves=30)
with_odd_ones = st.recursive(scalars | odd, containers, max_leaves=8)


@fixture_is_for_all
@given(values | with_odd_ones)
@example([[1] * 20, [{"a": [1.5, -0.0]}] * 20])
@example({"\ud83d\ude00": 1})
@example(["\ud83d\ude00"])
@example([float("nan")])
@example([10**4000])
@example(Sneaky([1]))
@example([[1], (2,)])
def test_text_is_that_of_json_where_it_comes_back(step: int, value: Any) -> None:
    try:
        expected = json.dumps(value, allow_nan=False)
        faithful = json.loads(expected) == value
    except (TypeError, ValueError):
        with pytest.raises((TypeError, ValueError)):
            dump(value)
        return
    if faithful:
        assert dump(value) == expected
    else:
        with pytest.raises(UnfaithfulError):
            dump(value)


separators = st.sampled_from([(", ", ": "), (",", ":"), (" ,\n", " :\t"), (",  ", ":\r\n")])


@fixture_is_for_all
@given(values, separators, st.booleans())
def test_values_are_those_of_json(step: int, value: Any, separators: tuple[str, str], ascii_only: bool) -> None:
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    # By its text, since NaN does not equal itself, and True equals 1.
    assert json.dumps(load(f" {text}\n")) == json.dumps(json.loads(text))


PIECES = [
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    '"',
    "\\",
    '"a"',
    '"a": ',
    "1",
    "-",
    "0",
    ".5",
    "e9",
    " ",
    "\n",
    "\xa0",
    "\ufeff",
]
PIECES += ["null", "nul", "true", "NaN", "-Infinity", "Inf", "\\u12", "[]", "{}", "], [", "}, {", '", "', ", "]
pieces = st.sampled_from(PIECES)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    text = json.dumps(draw(values))
    start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
    return text[:start] + draw(pieces | st.just("")) + text[start + length :]


@settings(fixture_is_for_all, max_examples=150)
@given(st.lists(pieces, max_size=12).map("".join) | damaged())
@example('[1, 2], [3, "4"]')
@example("[1, 2]]")
@example("[1]],")
@example(f'[, "{"x" * 200}"]')
@example('{"a": 1, "a": 2}')
@example('{"a": 1,}')
@example("[1,]")
@example('{"a" 1}')
@example("{1: 2}")
def test_what_is_no_json_is_refused_as_by_json(step: int, text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            load(text)
    else:
        assert json.dumps(load(text)) == json.dumps(expected)


@pytest.mark.parametrize("kind", ["list", "dict", "mixed"])
def test_the_bound_on_depth_is_exact(step: int, kind: str) -> None:
    # `mixed` has a deeper dict beside its innermost value.
    extra = 1 if kind == "mixed" else 0
    deepest = nested(MAX_DEPTH - extra, kind=kind)
    text = dump(deepest)
    assert text == json.dumps(deepest)
    assert load(text) == deepest
    with pytest.raises(TooDeepError, match=str(MAX_DEPTH)):
        dump([deepest])
    with pytest.raises(TooDeepError):
        load(f"[{text}]")
    with pytest.raises(TooDeepError):
        load(f'{{"k": {text}}}')


def test_the_bound_on_depth_is_exact_among_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_json, "_STEP", 100)
    # Wherever in a step the deepest one begins.
    for before in range(50, 70):
        value: Any = [*[[1]] * before, nested(30, kind="list"), [1]]
        for _ in range(MAX_DEPTH - 31):
            value = [value]
        text = json.dumps(value)
        assert load(text) == value
        with pytest.raises(TooDeepError):
            load(f"[{text}]")


@pytest.mark.parametrize("number", ["-1234.5678e+10", "1E10", "0.5", "-12"])
def test_a_number_at_the_end_of_a_step_is_read_whole(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setattr(chunked_json, "_STEP", 40)
    for before in range(40):
        text = f'{{"": "{"x" * before}", "n": {number}, "more": "{"x" * 50}"}}'
        assert load(text) == json.loads(text)
        assert load(f"{' ' * before}{number}{' ' * 50}") == json.loads(number)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1] 2", "extra data"),
        ("[1, 2]]", "extra data"),
        ("[1 2]", "a comma is missing"),
        ("{1: 2}", "a key is missing"),
        ('{"a" 1}', "a colon is missing"),
    ],
)
def test_what_is_wrong_with_a_long_text_is_said(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setattr(chunked_json, "_STEP", 1)
    with pytest.raises(ValueError, match=rf"^{said}$"):
        load(text)


# Python 3.10 needs half a KiB of the stack for each frame of its own.
@pytest.mark.parametrize(("before", "stack"), [(0, 256 * 1024), (100, 256 * 1024), (700, 16 * 1024 * 1024)])
def test_depth_does_not_depend_on_the_stack(before: int, stack: int) -> None:
    """On Python 3.10 and 3.11, json recurses no deeper than what the caller's own frames leave of 1,000."""
    deepest = nested(MAX_DEPTH, kind="list")
    outcomes: list[Any] = []

    def below(frames: int, function: Callable[[], Any]) -> Any:
        return below(frames - 1, function) if frames else function()

    def use() -> None:
        text = below(before, lambda: dump(deepest))
        outcomes.append(text)
        outcomes.append(below(before, lambda: load(text)) is not None)
        for refused in (lambda: dump([deepest]), lambda: load(f"[{text}]")):
            with pytest.raises(TooDeepError):
                below(before, refused)
            outcomes.append("refused")

    previous = threading.stack_size(stack)
    try:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(previous)
    assert outcomes == ["[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH, True, "refused", "refused"]


def test_a_value_that_holds_itself_is_too_deep() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TooDeepError):
        dump(loop)


def test_a_text_that_is_too_long_is_refused_before_it_is_made() -> None:
    value: Any = ["x" * 1000]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(ValueError, match="more than 1000000 characters"):
        chunked_json_length(value)


def chunked_json_length(value: Any) -> int:
    return len(finish(chunked_json.encoding(value, 1_000_000))[0])


def test_the_bound_on_length_is_exact() -> None:
    value = ["x" * 70_000]
    text = json.dumps(value)
    assert finish(chunked_json.encoding(value, len(text)))[0] == text
    with pytest.raises(ValueError, match=f"more than {len(text) - 1} characters"):
        finish(chunked_json.encoding(value, len(text) - 1))


def test_what_just_fits_into_a_step_takes_one() -> None:
    # Two nodes, or as many as fit.
    length = 64 * 1024 - 2 * 16
    for value in (["x" * length], [[1] * 4093, []]):
        assert finish(chunked_json.encoding(value, LARGE)) == (json.dumps(value), 0)
    for value in (["x" * (length + 1)], [[1] * 4094, []]):
        text, steps = finish(chunked_json.encoding(value, LARGE))
        assert text == json.dumps(value)
        assert steps
    just, more = ([value] for value in ("x" * (64 * 1024 - 4), "x" * (64 * 1024 - 3)))
    assert finish(chunked_json.decoding(json.dumps(just))) == (just, 0)
    value, steps = finish(chunked_json.decoding(json.dumps(more)))
    assert value == more
    assert steps


def test_no_step_looks_at_more_than_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a value is small is found out without a walk through all of a large one."""
    looked_at = [0]

    def count(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ == "isascii":
            looked_at[-1] += 1

    steps = chunked_json.encoding([["x"] * 3800] * 4, LARGE)
    sys.setprofile(count)
    try:
        while next(steps, StopIteration) is None:
            looked_at.append(0)
    finally:
        sys.setprofile(None)
    assert 3800 <= max(looked_at) <= 4096


def levels() -> Any:
    value: list[Any] = []
    for _ in range(8):
        value = [*[12345] * 4000, value]
    return value


ROWS = [{"id": i, "name": f"Köln {i}", "tags": ["a", "b"], "place": {"lat": i / 7, "on": True}} for i in range(20_000)]


@pytest.mark.parametrize(
    ("value", "children", "encoded_alone", "decoded_alone"),
    [
        pytest.param(ROWS, 20_000, 0, 0, id="list of dicts"),
        pytest.param({"rows": ROWS}, 20_000, 0, 0, id="in a dict"),
        pytest.param({row["name"]: row for row in ROWS}, 20_000, 0, 20_000, id="dict of dicts"),
        pytest.param([[row["id"], row["name"]] for row in ROWS], 20_000, 0, 0, id="list of lists"),
        pytest.param(list(range(100_000)), 100_000, 0, 0, id="integers"),
        pytest.param([f"Köln, {i}, {i}" for i in range(20_000)], 20_000, 0, 0, id="strings"),
        pytest.param(collections.OrderedDict(rows=ROWS), 20_000, 0, 0, id="subclass"),
        pytest.param([{"a": [{}, {}]}, 1] * 5_000, 10_000, 0, 10_000, id="mixed"),
        pytest.param(["x" * 5_000] * 200, 200, 200, 0, id="long strings"),
        pytest.param({f"{i:05}" * 1_000: i for i in range(200)}, 200, 200, 200, id="long keys"),
        pytest.param(levels(), 32_000, 8 * 64, 32_000, id="levels"),
    ],
)
def test_no_step_takes_more_than_a_part(
    value: Any, children: int, encoded_alone: int, decoded_alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the C functions are given is counted, as no time would be the same twice.

    Nor does a value take more steps than it needs, as each lets all other tasks run: so many children take one alone.
    """
    text = json.dumps(value)
    parts = len(text) // (64 * 1024)
    given: list[int] = []
    encode, decode, loads = chunked_json._encode, chunked_json._decode, json.loads

    def counted_encode(part: Any) -> str:
        piece = encode(part)
        given.append(len(piece))
        return piece

    def counted_decode(part: str, at: int) -> tuple[Any, int]:
        try:
            found, end = decode(part, at)
        except ValueError:
            given.append(len(part) - at)
            raise
        given.append(end - at)
        return found, end

    def counted_loads(part: str) -> Any:
        given.append(len(part))
        return loads(part)

    monkeypatch.setattr(chunked_json, "_encode", counted_encode)
    dumped, steps = finish(chunked_json.encoding(value, LARGE))
    assert dumped == text
    assert parts <= steps <= encoded_alone + children / 64 + 3 * parts + 10
    # Some characters are escaped, and commas are not counted.
    assert max(given) < 2 * 64 * 1024
    given.clear()
    monkeypatch.setattr(chunked_json, "_decode", counted_decode)
    monkeypatch.setattr(json, "loads", counted_loads)
    loaded, steps = finish(chunked_json.decoding(text))
    assert loaded == value
    assert parts <= steps <= decoded_alone + 2 * parts + 10
    assert max(given) <= 64 * 1024 + 2
    assert sum(given) <= 6 * len(text)
