"""The I/O thread in processes of its own: threads, event loops, forks, signals, and the ends of processes.

Each test runs a program of `tests.programs` against a real server and speaks with it. A program ends without closing
its backend, and with nothing on its standard error: nothing left open that anyone noticed, no task destroyed.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.programs.runner import Program, Runner, runner
from tests.programs.wire import PATIENCE, Relay, relay

Run = Callable[..., Program]


@pytest.fixture
def wire(rclone_url: str) -> Iterator[Relay]:
    """The way to a server that keeps connections, as S3 does and moto's does not."""
    with relay(rclone_url) as made:
        yield made


@pytest.fixture
def run(wire: Relay, python: Runner) -> Iterator[Run]:
    """Run a program of `tests.programs`."""
    programs: list[Program] = []

    def run_(name: str, *arguments: str, python: Runner = python, cold: bool = False) -> Program:
        url = f"s3://state/{uuid.uuid4().hex}"
        programs.append(Program(python.cold if cold else python.warm, name, url, wire.url, *arguments))
        return programs[-1]

    yield run_
    for program in programs:
        program.clean_up()


def test_threads_and_successive_loops_share_one_io_thread(run: Run) -> None:
    program = run("threads")
    program.hear("1 I/O thread after 32 threads")
    program.hear("1 I/O thread after two loops")
    program.end()


def test_forked_processes_start_afresh_and_leave_the_parent_alone(run: Run, wire: Relay) -> None:
    program = run("forks")
    program.hear("idle, task: fine")
    program.hear("idle, exit: fine")
    program.hear("used, task: fine")
    program.hear("used, exit: fine")
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
        opened = wire.opened
        held.released.set()
        program.tell("released")
        program.hear("parent: fine")
        assert not held.overdue
    assert wire.opened == opened, "the parent's own connection was lost"
    program.end()


@pytest.mark.parametrize("moment", ["start", "anyio._backends._asyncio", "aiobotocore.session"])
def test_a_fork_in_the_first_operation_leaves_no_lock_held(run: Run, moment: str) -> None:
    program = run("first_fork", moment, cold=moment != "start")
    program.hear("parent: fine")
    program.hear("child: fine")
    program.end()


@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
def test_a_process_that_can_open_no_file_fails_at_once_and_works_later(run: Run, *, cold: bool) -> None:
    program = run("descriptors", cold=cold)
    program.hear("fine")
    program.end()


@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
def test_a_process_that_can_start_no_thread_fails_at_once_and_works_later(run: Run, *, cold: bool) -> None:
    program = run("no_threads", cold=cold)
    program.hear("refused")
    program.hear("refused")
    program.end()


def run_alone(name: str, *arguments: str) -> str:
    """Run a program in an interpreter that has not imported Airflow, and return what it says."""
    command = [sys.executable, "-m", f"tests.programs.{name}", *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True, timeout=2 * PATIENCE
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_a_fork_and_the_io_thread_do_not_wait_for_each_other() -> None:
    run_alone("fork_and_executor")


def test_a_fork_waits_for_look_ups() -> None:
    run_alone("look_up", "fork")


def test_an_interpreter_ends_in_the_middle_of_a_look_up() -> None:
    run_alone("look_up", "exit")


def test_a_first_use_at_exit_works_or_says_why_not() -> None:
    said = run_alone("at_exit")
    # Python 3.12 starts no thread any more by then.
    assert said == "used\n" or (said, sys.version_info >= (3, 12)) == ("refused\n", True)


@pytest.mark.parametrize("handler", ["use", "raise"])
def test_a_signal_handler_may_use_state_or_raise_at_any_moment(handler: str) -> None:
    # The program takes every moment in turn if it is told to go by ones.
    assert int(run_alone("any_moment", handler, "19")) > 200


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(run: Run, method: str) -> None:
    program = run("multi", method)
    program.hear("child")
    program.end()


def test_an_interpreter_ends_without_closing(run: Run, tmp_path: Path) -> None:
    # In development mode, Python tells of everything that is left open.
    with runner("-X", "dev") as python:
        program = run("leave", tmp_path.as_uri(), python=python)
        program.hear("used")
        program.end()


def test_an_interpreter_ends_in_the_middle_of_operations(run: Run, wire: Relay) -> None:
    with wire.hold(rb"GET \S+held") as held:
        program = run("leave_busy")
        assert held.arrived.wait(PATIENCE)
        program.tell("held")
        program.end()
        assert not held.released.is_set()


@pytest.mark.parametrize("moment", ["waiting", "handing over"])
def test_ctrl_c_cancels_the_operation(run: Run, wire: Relay, moment: str) -> None:
    with wire.hold(rb"GET \S+held") as held:
        program = run("interrupted", moment)
        assert held.arrived.wait(PATIENCE)
        if moment == "waiting":
            program.interrupt()
        else:
            program.tell("held")
        program.hear("interrupted")
        wire.wait_for_hang_up(1)
        assert not held.overdue
    program.tell("released")
    program.hear("fine")
    program.end()


def test_nothing_blocks_the_loop_that_is_first_to_use_a_backend(run: Run) -> None:
    program = run("first_await", cold=True)
    program.hear("cancelled")
    program.hear("awaited")
    program.hear("called in place")
    program.end()
