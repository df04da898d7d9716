"""A base URL with objects made by hand, rows in files made by hand, and the command as a function."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from async_state import connections, iothread
from async_state.cli import definition
from async_state.settings import Settings
from async_state.stores import open_store
from async_state.stores.base import Store
from async_state.testing import FakeS3
from tests import cloud_places

DAY = 24 * 3600


class Done(NamedTuple):
    """What the command did."""

    code: int
    out: str
    err: str

    @property
    def counts(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.out)
        return found


class Base:
    """A base URL. Objects that are 48 hours old can be made where the store keeps files."""

    def __init__(self, settings: Settings, directory: Path | None) -> None:
        self.settings = settings
        self.url = settings.url
        self.store: Store = open_store(settings.url, settings, connections.empty(settings.url))
        self._directory = directory

    def put(self, name: str, body: bytes = b'"value"', *, age: float = 2 * DAY) -> str:
        """Write an object, and return its reference."""
        self.run(self.store.put, name, body, "", timeout=20)
        if self._directory is not None:
            then = datetime.now(timezone.utc).timestamp() - age
            os.utime(self._directory / name, (then, then))
        return f"{self.url}/{name}"

    def get(self, name: str) -> bytes | None:
        found: bytes | None = self.run(self.store.get, name, timeout=20)
        return found

    def names(self) -> list[str]:
        async def names() -> list[str]:
            return [e.name async for page in self.store.entries("", timeout=20) for e in page]

        found: list[str] = self.run(names)
        return found

    @staticmethod
    def run(function: Any, *args: Any, **kwargs: Any) -> Any:
        return iothread.run(iothread.arun, function, *args, **kwargs)


Run = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run ``python -m async_state`` in this process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*argv: str, stdin: bytes | None = None) -> Done:
        if stdin is not None:
            read, write = os.pipe()
            os.write(write, stdin)
            os.close(write)
            monkeypatch.setattr(sys, "stdin", os.fdopen(read))
            stack.callback(sys.stdin.close)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(argv)
        return Done(int(str(ended.value.code)), *capsys.readouterr())

    def main(argv: Sequence[str]) -> None:
        args = definition.parser().parse_args(argv)
        args.func(args)

    with ExitStack() as stack:
        yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def configured(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    for name in "url", "endpoint_url", "azure_account":
        if value := getattr(settings, name):
            monkeypatch.setenv(f"AIRFLOW__ASYNC_STATE__{name.upper()}", value)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Base]:
    """A base URL of a directory."""
    settings = Settings(url=(tmp_path / "state").as_uri())
    configured(monkeypatch, settings)
    base = Base(settings, tmp_path / "state")
    yield base
    base.run(base.store.aclose)


@pytest.fixture(params=["file", "moto", "rclone", *cloud_places.CLOUDS])
def any_base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Base]:
    """A base URL of each kind of store in turn."""
    directory: Path | None = None
    name = re.sub(r"[^\w-]", "-", request.node.name)
    if request.param == "file":
        directory = tmp_path / "state"
        settings = Settings(url=directory.as_uri())
    elif request.param in cloud_places.CLOUDS:
        settings = Settings(**cloud_places.options(request, request.param, name))
    else:
        server: FakeS3 | str = request.getfixturevalue("moto" if request.param == "moto" else "rclone_url")
        settings = Settings(url=f"s3://state/{name}", endpoint_url=server if isinstance(server, str) else server.url)
    configured(monkeypatch, settings)
    base = Base(settings, directory)
    yield base
    base.run(base.store.aclose)


def snapshot(
    url: str, refs: Iterable[str], *, taken_at: datetime | None = None, count: int | None = None, last: bool = True
) -> bytes:
    """Return a snapshot as a person would write it by the documentation."""
    refs = list(refs)
    taken_at = taken_at or datetime.now(timezone.utc)
    lines: list[Any] = [{"async_state_refs": 1, "taken_at": taken_at.isoformat(), "url": url}, *refs]
    if last:
        lines.append({"count": len(refs) if count is None else count})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def hours(number: float) -> timedelta:
    return timedelta(hours=number)
