"""The package's public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import async_state
from async_state import errors


def test_every_error_is_public() -> None:
    defined = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)}
    assert {name for name in defined if not name.startswith("_")} <= set(async_state.__all__)


@pytest.mark.parametrize("name", async_state.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    assert name in dir(async_state)
    thing = getattr(async_state, name)
    assert isinstance(thing, str) or (thing.__name__ == name and thing.__doc__)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="'async_state' has no attribute 'Backend'"):
        async_state.Backend  # noqa: B018


def test_names_are_imported_when_they_are_asked_for() -> None:
    code = """
import sys
import async_state
dir(async_state)
assert not [name for name in sys.modules if name.startswith(("async_state.", "airflow", "aiobotocore"))]
async_state.StoreError
assert [name for name in sys.modules if name.startswith(("async_state.", "airflow"))] == ["async_state.errors"]
from async_state import *
assert AsyncStateStore.__module__ == "async_state.accessors"
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
