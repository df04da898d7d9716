"""Both clouds in processes of their own: forks, ends, and event loops that nothing blocks.

The programs are those of tests/iothread/test_processes.py.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.programs.runner import Program, Runner
from tests.programs.wire import PATIENCE, Relay, relay
from tests.stores.cloud.clouds import Cloud, Secured

Run = Callable[..., Program]


@pytest.fixture
def wire(cloud: Cloud) -> Iterator[Relay]:
    with relay(cloud.server.url) as made:
        yield made


@pytest.fixture
def run(cloud: Cloud, wire: Relay, python: Runner) -> Iterator[Run]:
    """Run a program of `tests.programs`."""
    programs: list[Program] = []

    def run_(name: str, *arguments: str, cold: bool = False) -> Program:
        url = f"{cloud.scheme}://state/{uuid.uuid4().hex}"
        endpoint = wire.url + cloud.endpoint.removeprefix(cloud.server.url)
        programs.append(Program(python.cold if cold else python.warm, name, url, endpoint, *arguments))
        return programs[-1]

    yield run_
    for program in programs:
        program.clean_up()


def test_forked_processes_start_afresh_and_leave_the_parent_alone(run: Run, wire: Relay) -> None:
    """Forked from one that has not used the cloud, has used it, and is in the middle of an operation."""
    program = run("forks")
    for state in "idle", "used":
        program.hear(f"{state}, task: fine")
        program.hear(f"{state}, exit: fine")
    opened = wire.opened
    program.tell("go on")
    program.hear("parent: fine")
    assert wire.opened == opened, "the parent's own connection was lost"
    with wire.hold(rb"GET \S+held") as held:
        program.tell("hold")
        assert held.arrived.wait(PATIENCE)
        program.tell("held")
        program.hear("busy, task: fine")
        program.hear("busy, exit: fine")
        held.released.set()
        program.tell("released")
        program.hear("parent: fine")
        assert not held.overdue
    program.end()


def test_a_fork_in_the_first_operation_leaves_no_lock_held(run: Run) -> None:
    program = run("first_fork", "aiohttp", cold=True)
    program.hear("parent: fine")
    program.hear("child: fine")
    program.end()


def test_an_interpreter_ends_in_the_middle_of_operations(run: Run, wire: Relay) -> None:
    with wire.hold(rb"GET \S+held") as held:
        program = run("leave_busy")
        assert held.arrived.wait(PATIENCE)
        program.tell("held")
        program.end()
        assert not held.released.is_set()


@pytest.fixture
def run_secured(secured: Secured, python: Runner) -> Iterator[Run]:
    """Run a program of `tests.programs` that has to ask for tokens, in a process that has imported Airflow alone."""
    programs: list[Program] = []

    def run_(name: str, *arguments: str) -> Program:
        url = f"{secured.cloud.scheme}://state/{uuid.uuid4().hex}"
        environment = json.dumps(dict(os.environ))
        programs.append(Program(python.cold, "elsewhere", environment, name, url, secured.endpoint, *arguments))
        return programs[-1]

    yield run_
    for program in programs:
        program.clean_up()


def test_no_event_loop_is_blocked_by_a_token(run_secured: Run, secured: Secured) -> None:
    """Not even by the first one, for which libraries are imported and a service is asked."""
    program = run_secured("first_await")
    for line in "cancelled", "awaited", "called in place":
        program.hear(line)
    program.end()
    assert secured.tokens.issued


def test_processes_forked_from_a_prepared_one(run_secured: Run, secured: Secured) -> None:
    needed = {"gs": "google.oauth2.service_account", "az": "azure.identity"}[secured.cloud.scheme]
    program = run_secured("prepared", needed, "aiohttp")
    for line in "prepared", "first: fine", "second: fine":
        program.hear(line)
    program.end()
    # One for each of the two, and none for the parent.
    assert len(secured.tokens.issued) == 2
