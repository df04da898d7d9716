"""The tasks' side of the demo: sends each step to the demo's first process, and waits while that reads the stores.

The reader is therefore a process without Airflow and without the backend, and uses nothing but SQL and S3.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

#: Set in each process of the demo that runs tasks; where a DAG is run by hand, there is no pipe.
pipe: Connection | None = None
tag = ""


class Step(NamedTuple):
    """What a task has just done."""

    pid: int
    task: str
    #: Whose state it is: ``dag_id/run_id/task_id``, or an asset's name.
    owner: str
    operation: str
    key: str
    value: Any


class Watched:
    """One of Airflow's state-store accessors, which also sends each step to the demo's first process."""

    def __init__(self, store: Any, task: str, owner: str) -> None:
        self._store = store
        self._task = task
        self._owner = owner

    def set(self, key: str, value: Any) -> None:
        self._store.set(key, value)
        self._send("set", key, value)

    def get(self, key: str) -> Any:
        value = self._store.get(key)
        self._send("get", key, value)
        return value

    def delete(self, key: str) -> None:
        self._store.delete(key)
        self._send("delete", key)

    def clear(self) -> None:
        self._store.clear()
        self._send("clear")

    def _send(self, operation: str, key: str = "", value: Any = None) -> None:
        if pipe is not None:
            pipe.send(Step(os.getpid(), self._task, self._owner, operation, key, value))
            pipe.recv()


def task_state(context: Any) -> Watched:
    """The state of the running task instance."""
    ti = context["ti"]
    return Watched(context["task_state_store"], ti.task_id, f"{ti.dag_id}/{ti.run_id}/{ti.task_id}")


def asset_state(context: Any, asset: Any) -> Watched:
    """The state of one of the running task's assets."""
    return Watched(context["asset_state_store"][asset], context["ti"].task_id, asset.name)


def tagged(value: str) -> str:
    """``value`` and a random word of this process, by which it is known wherever it turns up."""
    return f"{value} {tag}"
