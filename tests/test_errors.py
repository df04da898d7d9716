"""errors.py: every class, including those that are added later."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from async_state import errors
from async_state.errors import AsyncStateError, PurgeError, StoreError

CLASSES = [it for it in vars(errors).values() if isinstance(it, type) and issubclass(it, AsyncStateError)]
#: Arguments besides the message.
MORE: dict[type, tuple[Any, ...]] = {PurgeError: ({"name": "denied", "other": "denied too"},)}


def pickled(protocol: int, error: Any) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))  # noqa: S301


ways: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy]
ways += [partial(pickled, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


def made(kind: type[AsyncStateError]) -> AsyncStateError:
    return kind("could not write s3://b/k\nand more", *MORE.get(kind, ()))


@pytest.mark.parametrize("way", ways)
@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_can_be_pickled_and_copied(kind: type[AsyncStateError], way: Callable[[Any], Any]) -> None:
    error = made(kind)
    error.added_later = ["by a caller"]  # type: ignore[attr-defined]
    found = way(error)
    assert type(found) is kind
    assert str(found) == str(error) == "could not write s3://b/k\\nand more"
    assert found.args == error.args
    assert vars(found) == vars(error)


def fail(kind: type[AsyncStateError]) -> None:
    raise made(kind)


def test_an_error_comes_out_of_a_process_pool() -> None:
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for kind in (PurgeError, StoreError):
            with pytest.raises(kind, match="and more") as caught:
                pool.submit(fail, kind).result(600)
            assert vars(caught.value).get("remaining") == (MORE[PurgeError][0] if kind is PurgeError else None)


def test_every_error_is_a_builtin_too() -> None:
    for kind in CLASSES:
        assert kind is AsyncStateError or any(base.__module__ == "builtins" for base in kind.__mro__[1:-3])


def test_an_error_may_say_nothing() -> None:
    assert str(AsyncStateError()) == ""
