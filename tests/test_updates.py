"""Atomic updates in a model: a row and an object, of which each changes in a step of its own, and many writers.

The objects and the row are doubles, as no real store and no real Airflow can be stopped between any two steps. What is
tested is the order of the steps, in `updates.update` itself.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from async_state import updates
from async_state.errors import ConflictError, InvalidValueError
from async_state.limiter import Limiter
from async_state.objects import Operation, StoreSlot
from async_state.settings import Settings

#: What an old object holds. No number of updates reaches it.
OLD = 1_000_000
HISTORIES = 3_000
SETTINGS = Settings(url="memory://model")


class Step:
    """Gives the turn to whoever the history chooses next."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Objects:
    """One object, as `objects.Objects` has it."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.tag: Any = None
        # More than there are writers, so that no slot is waited for.
        self._limiter = Limiter(1_000)

    def operation(self, name: str) -> Operation:
        return Operation(self.slot(), float("inf"))

    def slot(self) -> StoreSlot:
        return StoreSlot(self._limiter, SETTINGS)

    async def read_tagged(self, name: str, operation: Operation) -> tuple[str, Any] | None:
        await Step()
        return None if self.text is None else (self.text, self.tag)

    async def write_if_unchanged(self, name: str, text: str, seen: Any, operation: Operation) -> bool:
        await Step()
        if seen is not self.tag:
            return False
        self.text, self.tag = text, object()
        await Step()
        return True

    async def pause(self, seconds: float) -> None:
        await Step()


class Rows:
    """One row."""

    def __init__(self) -> None:
        self.row = updates.Row(here=False)

    async def read(self) -> updates.Row:
        await Step()
        return self.row

    async def refer(self) -> None:
        await Step()
        self.row = updates.Row(here=True)
        await Step()


class Writer:
    """A task that adds one."""

    def __init__(self, objects: Objects, rows: Rows) -> None:
        self.result: Any = None
        self.began_after_deletion = False
        self._steps = self._run(objects, rows)

    async def _run(self, objects: Any, rows: Rows) -> None:
        self.result = await updates.update(objects, "name", rows, lambda n: n + 1, 0, 60)

    def step(self) -> bool:
        """Make one step, and return whether it was the last one."""
        try:
            self._steps.send(None)
        except StopIteration:
            return True
        return False

    def kill(self) -> None:
        self._steps.close()


@pytest.mark.parametrize("start", ["nothing", "left behind", "in the row", "stored"])
def test_no_update_is_lost_and_no_old_value_comes_back(start: str) -> None:
    for seed in range(HISTORIES):
        story(random.Random(seed), start)


def story(choose: random.Random, start: str) -> None:
    objects, rows = Objects(), Rows()
    if start in ("left behind", "stored", "in the row"):
        objects.text, objects.tag = str(OLD), object()
    if start == "stored":
        rows.row = updates.Row(here=True)
    if start == "in the row":
        rows.row = updates.Row(here=False, value=OLD + 5)
    base = {"nothing": 0, "left behind": 0, "in the row": OLD + 5, "stored": OLD}[start]
    waiting = [Writer(objects, rows) for _ in range(choose.randint(1, 6))]
    later = [Writer(objects, rows) for _ in range(choose.randint(0, 4))]
    done: list[Writer] = []
    killed = 0
    # What is in the row itself is moved to the object first, and comes back if the row is deleted in that moment, as it
    # does with a plain `set`: nothing in Airflow writes a row on a condition.
    deletes = start != "in the row" and choose.random() < 0.5
    deleted, overlapping = False, 0
    while waiting or later:
        event = choose.random()
        if event < 0.02 and waiting:
            waiting.pop(choose.randrange(len(waiting))).kill()
            killed += 1
        elif event < 0.05 and deletes and not deleted:
            # By REST: the object stays.
            rows.row = updates.Row(here=False)
            deleted, overlapping = True, len(waiting)
        elif later and (event < 0.2 or not waiting):
            writer = later.pop()
            writer.began_after_deletion = deleted
            waiting.append(writer)
        elif waiting:
            writer = choose.choice(waiting)
            if writer.step():
                waiting.remove(writer)
                done.append(writer)
    value = int(objects.text) if rows.row.here and objects.text not in (None, "null") else 0
    if not deleted:
        assert base + len(done) <= value <= base + len(done) + killed or not done
        assert len({writer.result for writer in done}) == len(done)
        return
    after = [writer for writer in done if writer.began_after_deletion]
    if after:
        assert len(after) <= value <= len(after) + overlapping + killed, (value, len(after), overlapping, killed)
        assert max(writer.result for writer in after) < OLD


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    while True:
        try:
            coroutine.send(None)
        except StopIteration as e:
            return e.value


def test_a_function_that_returns_nothing_is_refused() -> None:
    objects, rows = Objects(), Rows()
    update = updates.update(objects, "name", rows, lambda _: None, 0, 60)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="must not return None"):
        drive(update)


def test_an_update_that_always_meets_another_one_says_so() -> None:
    objects, rows = Objects(), Rows()
    rows.row = updates.Row(here=True)

    def function(_: Any) -> int:
        # Somebody else is always quicker.
        objects.text, objects.tag = "1", object()
        return 2

    with pytest.raises(ConflictError, match="others wrote it"):
        drive(updates.update(objects, "name", rows, function, 0, 0.05))  # type: ignore[arg-type]
    assert objects.text == "1"
