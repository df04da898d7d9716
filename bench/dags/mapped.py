"""Mapped tasks that each set three values and get one, and write down what that took: see bench/mapped.py.

What they measure goes to files and not through their state, which is what is measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, get_current_context, task

TASKS = int(os.environ["MAPPED_TASKS"])
ALONE = int(os.environ["MAPPED_ALONE"])


def private_memory() -> int:
    """Return the bytes of this process's memory that it shares with no other."""
    rollup = Path("/proc/self/smaps_rollup")
    text = (rollup if rollup.exists() else Path("/proc/self/smaps")).read_text()
    lines = (line.split() for line in text.splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] in ("Private_Clean:", "Private_Dirty:"))


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Call, and return the milliseconds that it took: by the clock, and of CPU in all threads of this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return {"wall": (time.perf_counter() - wall) * 1000, "cpu": (time.process_time() - cpu) * 1000}


def use_state(index: int) -> None:
    """Use the state as a task would, and write down what it took.

    Raises:
        ValueError: another value came back than was set.
    """
    context = get_current_context()
    value: dict[str, Any] = {"job": "spark_app_001", "index": index, "run": context["run_id"]}
    memory, modules = private_memory(), len(sys.modules)
    # With what makes the accessor and the backend, which a task needs for its first operation only.
    first = timed(lambda: context["task_state_store"].set("first", {**value, "key": "first"}))
    state = context["task_state_store"]
    later = [
        timed(lambda: state.set("second", {**value, "key": "second"})),
        timed(lambda: state.set("third", {**value, "key": "third"})),
    ]
    found: list[Any] = []
    later.append(timed(lambda: found.append(state.get("second"))))
    sample = {
        "first": first,
        "later": later,
        "private": [memory, private_memory()],
        "modules": [modules, len(sys.modules)],
    }
    if found != [{**value, "key": "second"}]:
        raise ValueError(f"{found} came back instead of what was set")
    path = Path(os.environ["MAPPED_SAMPLES"]) / context["run_id"] / f"{index}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sample))


# All at once, as many as the executor takes.
with DAG("mapped", schedule=None):
    task(use_state).expand(index=list(range(TASKS)))

# One after the other, so that nothing but the task itself is measured.
with DAG("alone", schedule=None, max_active_tasks=1):
    task(use_state).expand(index=list(range(ALONE)))
