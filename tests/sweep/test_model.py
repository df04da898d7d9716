"""Random histories of rows and objects around a real sweep: no value whose row exists is ever lost.

A history has a few keys, each of which one task writes and deletes, a step at a time, as Airflow and the backend do:
first the object and then the row, or the reverse, with crashes in between. Others delete rows alone. The sweep is the
real one; only the store and the pages of rows are the model's. Before each of the sweep's requests, and between two
pages of rows, anything may happen.

``SWEEP_HISTORIES=100000`` runs so many histories instead of the usual number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any

import pytest

from async_state import Settings
from async_state.errors import StoreError
from async_state.stores.base import Details, Entry, Tagged
from async_state.sweep import remove, survey
from async_state.sweep.ledger import Ledger
from async_state.sweep.references import of_sweep
from async_state.sweep.remove import remove_all
from async_state.sweep.snapshot import Header, lines, read
from async_state.sweep.sources import Source
from async_state.sweep.survey import Grace

HISTORIES = int(os.environ.get("SWEEP_HISTORIES", "10000"))
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
SETTINGS = Settings(url="memory://model", moved_urls=("memory://moved",), max_concurrency=2)
GRACE = 10
NAMES = [f"v1/task/d/r/t{number}/-1/worker/k" for number in range(4)] + ["v1/asset/name/a/worker/k"]
#: The row of the last name is an object of the API server's side.
ROW = "v1/asset/id/7/server/k"
SERVED = NAMES[-1]


class World:
    """Objects, rows and the tasks that write them, at a time that passes in jumps."""

    def __init__(self, seed: int, *, is_served: bool) -> None:
        self.random = random.Random(seed)
        self.now = 0
        self.is_served = is_served
        self.objects: dict[str, Details] = {}
        #: The id of each row, which stays when the row is written again.
        self.rows: dict[str, int] = {}
        self.writes = 0
        #: What each task does, and since when the object waits for its row.
        self.doing: dict[str, Iterator[None]] = {}
        self.waiting: dict[str, int] = {}
        #: What the sweep has deleted although a row refers to it, or is on its way.
        self.lost: list[str] = []

    def write(self, name: str) -> None:
        self.writes += 1
        modified = START + timedelta(seconds=self.now)
        # Each write of a value has an ETag of its own, also that of the same value: `codec.ending` sees to that.
        self.objects[name] = Details(Entry(name, 1, modified, str(self.writes)), "", {}, "")

    def insert(self, name: str) -> None:
        self.writes += 1
        self.rows.setdefault(name, self.writes)
        if name == SERVED and self.is_served:
            self.write(ROW)

    def drop(self, name: str) -> None:
        self.rows.pop(name, None)
        if name == SERVED and self.is_served:
            self.objects.pop(ROW, None)

    def set(self, name: str) -> Iterator[None]:
        self.write(name)
        self.waiting[name] = self.now
        yield
        self.insert(name)
        del self.waiting[name]

    def crash(self, name: str) -> Iterator[None]:
        self.write(name)
        yield

    def delete(self, name: str) -> Iterator[None]:
        self.drop(name)
        yield
        self.objects.pop(name, None)

    def clear_on_success(self, name: str) -> Iterator[None]:
        self.objects.pop(name, None)
        yield
        self.drop(name)

    def clean(self, name: str) -> Iterator[None]:
        self.drop(name)
        yield

    def step(self) -> None:
        """Let one task do its next step, or let time pass."""
        if self.random.random() < 0.3:
            jump = self.random.choice((1, 3, GRACE))
            # A set that is under way ends within the grace period, or never.
            if all(self.now + jump < since + GRACE for since in self.waiting.values()):
                self.now += jump
            return
        name = self.random.choice(NAMES)
        doing = self.doing.get(name)
        if doing is None:
            operations = (self.set, self.set, self.crash, self.delete, self.clear_on_success, self.clean)
            self.doing[name] = self.random.choice(operations)(name)
        elif next(doing, doing) is doing:
            del self.doing[name]

    def steps(self, most: int) -> None:
        for _ in range(self.random.randrange(most)):
            self.step()


class ModelStore:
    """The world's objects as a store. Whatever the sweep deletes is checked."""

    delete_limit = 2
    checks_the_etag = True

    def __init__(self, world: World) -> None:
        self.world = world

    async def entries(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[Entry], None]:
        last = ""
        while True:
            self.world.steps(6)
            names = sorted(name for name in self.world.objects if name > last)[: self.delete_limit]
            if not names:
                return
            yield [self.world.objects[name].entry for name in names]
            last = names[-1]

    async def head(self, name: str, *, timeout: float) -> Details | None:
        self.world.steps(6)
        return self.world.objects.get(name)

    async def delete_unchanged(self, seen: Details, *, timeout: float) -> bool:
        self.world.steps(6)
        name = seen.entry.name
        if name not in self.world.objects:
            return True
        if self.checks_the_etag and self.world.objects[name] != seen:
            return False
        if name in self.world.rows or name in self.world.waiting or name == ROW:
            self.world.lost.append(name)
        del self.world.objects[name]
        return True

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        self.world.steps(6)
        return f'"{SETTINGS.url}/{SERVED}"'.encode() if name in self.world.objects else None

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        raise NotImplementedError

    async def get_tagged(self, name: str, *, timeout: float) -> Tagged | None:
        raise NotImplementedError

    async def put_if_unchanged(
        self, name: str, body: bytes, content_encoding: str, seen: Tagged | None, *, timeout: float
    ) -> bool:
        raise NotImplementedError

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        raise NotImplementedError

    async def copy_from(self, base_url: str, name: str, seen: Details | None, *, timeout: float) -> bool:
        raise NotImplementedError

    async def put_over(
        self, name: str, body: bytes, content_encoding: str, seen: Details | None, *, timeout: float
    ) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class ModelSource(Source):
    """Pages of the world's rows, written and read as a snapshot."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.untouched: dict[str, Details] = {}

    def pages(self) -> Iterator[str]:
        last = 0
        while True:
            self.world.steps(6)
            rows = sorted(
                (id_, name) for name, id_ in self.world.rows.items() if id_ > last and not self.is_served(name)
            )
            if not rows:
                return
            for last, name in rows[:2]:
                # Some rows are older than the move of the objects.
                yield f"{SETTINGS.url if last % 2 else SETTINGS.moved_urls[0]}/{name}"

    def is_served(self, name: str) -> bool:
        return self.world.is_served and name == SERVED

    async def read(self, ledger: Ledger) -> datetime:
        taken_at = START + timedelta(seconds=self.world.now)
        self.untouched = {
            name: seen
            for name, seen in self.world.objects.items()
            if name not in self.world.rows
            and name not in self.world.waiting
            and name != ROW
            and seen.entry.modified <= taken_at - timedelta(seconds=GRACE)
        }
        header, refs = read(lines(Header(taken_at, SETTINGS.url), self.pages()), SETTINGS.url)
        ledger.add_refs(of_sweep(SETTINGS), refs)
        return header.taken_at

    async def resolve(self, ledger: Ledger, *, has_rows: bool) -> None:
        """A snapshot is complete."""


async def run(histories: int) -> int:
    """Run so many histories, and return how many objects the sweeps have deleted."""
    deleted = 0
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        ledger = Ledger(connection)
        for seed in range(histories):
            world = World(seed, is_served=seed % 2 == 1)
            world.steps(60)
            if not world.waiting:
                world.now += world.random.choice((0, GRACE, 3 * GRACE))
            store, source = ModelStore(world), ModelSource(world)
            found = await survey.find(store, ledger, source, SETTINGS, timedelta(seconds=GRACE))
            sum_of_kinds = found.referenced + found.too_young + found.in_doubt + found.foreign + found.orphans
            assert found.objects == sum_of_kinds
            # Some are killed after a few deletions, and the next one takes up what is left.
            most = world.random.choice((None, None, None, 0, 1, 2))
            orphans = islice(ledger.orphans(), most)
            outcomes = await remove_all(store, orphans, concurrency=2, timeout=1, done=lambda *_: None)
            if most is not None:
                clear(connection)
                await survey.find(store, ledger, source, SETTINGS, timedelta(seconds=GRACE))
                outcomes += await remove_all(store, ledger.orphans(), concurrency=2, timeout=1, done=lambda *_: None)
            assert not world.lost, f"seed {seed}: lost {world.lost}"
            deleted += outcomes[remove.Outcome.DELETED]
            left = [name for name, seen in source.untouched.items() if world.objects.get(name) == seen]
            assert not left, f"seed {seed}: orphans that nobody touched are left: {left}"
            clear(connection)
    return deleted


def clear(connection: sqlite3.Connection) -> None:
    for table in "refs", "unknown", "rows", "objects":
        connection.execute(f"DELETE FROM {table}")  # noqa: S608


def test_no_value_whose_row_exists_is_lost() -> None:
    assert asyncio.run(run(HISTORIES)) > HISTORIES // 4


async def remove_what_is_there(store: Any, listed: Entry, timeout: float) -> remove.Outcome:
    seen = await store.head(listed.name, timeout=timeout)
    if seen is not None:
        await store.delete_unchanged(seen, timeout=timeout)
    return remove.Outcome.DELETED


@pytest.mark.parametrize(
    ("broken", "attribute", "instead"),
    [
        pytest.param(Grace, "covers", lambda self, entry: False, id="without the grace period"),
        pytest.param(remove, "remove", remove_what_is_there, id="without the look before"),
        pytest.param(ModelStore, "checks_the_etag", False, id="without If-Match"),
    ],
)
def test_the_model_notices_a_sweep(broken: Any, attribute: str, instead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, attribute, instead)
    with pytest.raises(AssertionError, match="lost"):
        asyncio.run(run(2000))
