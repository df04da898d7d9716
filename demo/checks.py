"""Runs Airflow's processes, and checks rows and objects after each step of their tasks."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from demo.processes import AirflowProcess
from demo.stored import StateId, Stored, read_stored, ref_in
from demo.watch import Step

CLEAR_ON_SUCCESS = {"AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS": "True"}


class Checks:
    """Runs processes, and counts the checks that passed and failed."""

    def __init__(self, database: Path, bucket: str) -> None:
        self.passed = 0
        self.failed = 0
        #: The words that `watch.tagged` has marked values with.
        self.tags: set[str] = set()
        self._database = database
        self._bucket = bucket
        #: The values that should be stored after all steps so far.
        self._expected: dict[StateId, Any] = {}
        #: The last known reference of each value. After a deletion, no row has it any more.
        self._refs: dict[StateId, str] = {}

    def check(self, ok: bool, text: str, otherwise: str = "") -> None:
        """Count a check and print it; and if it failed, also why."""
        self.passed += ok
        self.failed += not ok
        print(f"  {'✓' if ok else '✗'} {text}", flush=True)
        if not ok and otherwise:
            print(f"      {otherwise}")

    def heading(self, title: str) -> None:
        print(f"\n{title}")
        print(f"  {'':21}{'row in the database':66}object in the bucket")

    def read(self) -> Stored:
        stored = read_stored(self._database, self._bucket)
        self._refs |= {id_: ref for id_, row in stored.rows.items() if (ref := ref_in(row))}
        return stored

    def run(
        self, what: Callable[..., None], *arguments: str, clear_on_success: bool = False, exit_code: int = 0
    ) -> list[Step]:
        """Run a process that should end with ``exit_code``, and return its steps."""
        before = dict(self._expected)
        environment = CLEAR_ON_SUCCESS if clear_on_success else {}
        process = AirflowProcess(what, *arguments, tag=secrets.token_hex(6), environment=environment)
        steps: list[Step] = []
        for step in process.steps():
            if not steps or steps[-1].task != step.task:
                print(f"  task {step.task} in process {step.pid}")
            if clear_on_success:
                # The tasks before this one have succeeded.
                self._expected = {i: v for i, v in self._expected.items() if i in before or i.owner == step.owner}
            steps.append(step)
            self._check_step(step)
        if clear_on_success:
            self._expected = before
        self._check_end(process, exit_code, before)
        return steps

    def _check_step(self, step: Step) -> None:
        """Check all rows and objects there are, and show those of the step."""
        id_ = StateId(step.owner, step.key)
        match step.operation:
            case "set":
                self._expected[id_] = step.value
                self.tags.add(str(step.value).split()[-1])
            case "delete":
                self._expected.pop(id_, None)
            case "clear":
                self._expected = {i: v for i, v in self._expected.items() if i.owner != step.owner}
        stored = self.read()
        ok = stored.holds(self._expected)
        if step.operation == "get":
            ok = ok and step.value == self._expected.get(id_)
            shown = f"-> {step.value!r}"
        else:
            rows = [_shortened(row) for i, row in stored.rows.items() if _touches(step, i)]
            refs = [ref for i, ref in self._refs.items() if _touches(step, i)]
            objects = [stored.objects[ref] for ref in refs if ref in stored.objects]
            shown = f"{_listed(rows):<66}{_listed(objects)}"
        self.check(ok, f"{step.operation:<7}{step.key:<12}{shown}", self._difference(stored))

    def _check_end(self, process: AirflowProcess, exit_code: int, before: Collection[StateId]) -> None:
        """Check the process's exit code and all that is stored, and show what it has added to that."""
        stored = self.read()
        rows = {id_: row for id_, row in stored.rows.items() if id_ not in before}
        objects = stored.objects.keys() - {self._refs.get(id_) for id_ in before}
        self.check(
            process.exit_code == exit_code and stored.holds(self._expected),
            f"{process.title}: process {process.pid} ended with exit code {process.exit_code}, "
            f"leaving rows: {len(rows)}, objects: {len(objects)}",
            self._difference(stored),
        )
        for id_, row in rows.items():
            print(f"      {id_.key}: {row}")

    def _difference(self, stored: Stored) -> str:
        return (
            f"expected the values {_json([[*i, v] for i, v in self._expected.items()])}, one object each; found the "
            f"rows {_json([[*i, row] for i, row in stored.rows.items()])} and the objects {_json(stored.objects)}"
        )


def _touches(step: Step, id_: StateId) -> bool:
    return step.owner == id_.owner and (step.operation == "clear" or step.key == id_.key)


def _shortened(row: str) -> str:
    """The row without the middle of its reference."""
    ref = ref_in(row)
    if ref is None:
        return row
    parts = ref.split("/")
    return row.replace(ref, "/".join([*parts[:4], "…", *parts[-2:]]))


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts) or "none"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
