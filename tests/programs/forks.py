"""Forks of a process whose I/O thread is idle, has been used, and is in the middle of another thread's operation."""

import threading
from functools import partial

from async_state import AsyncStateBackend, Settings
from tests.programs.common import Ending, fork, hear, io_threads, outcome, say, start, task, use

ENDINGS: tuple[Ending, ...] = ("task", "exit")


def main() -> None:
    backend = start()
    idle = AsyncStateBackend(Settings(url="memory://idle"))
    idle.set(task("idle"), "row", "started")
    assert io_threads() == 1
    forks(backend, "idle")

    use(backend, "parent")
    backend.set(task("parent"), "row", "kept")
    forks(backend, "used")
    hear("go on")
    assert backend.get(task("parent"), "row") == "kept"
    say("parent: fine")

    backend.set(task("parent"), "held", "answered")
    answers: list[str | None] = []
    busy = threading.Thread(target=lambda: answers.append(backend.get(task("parent"), "held")), daemon=True)
    hear("hold")
    busy.start()
    hear("held")
    forks(backend, "busy")
    hear("released")
    busy.join()
    assert answers == ["answered"]
    use(backend, "parent")
    say("parent: fine")


def forks(backend: AsyncStateBackend, state: str) -> None:
    for ending in ENDINGS:
        pid = fork(partial(use, backend, f"{state}-{ending}"), ending)
        say(f"{state}, {ending}: {outcome(pid)}")


if __name__ == "__main__":
    main()
