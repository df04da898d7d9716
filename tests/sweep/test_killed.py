"""A sweep that is killed at any point has deleted orphans only, and the same command finishes what it began."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import struct
import termios
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from async_state import Settings
from async_state.testing import Answer, FakeS3, Request
from async_state.testing.faults import Exchange, Fault
from tests.programs.runner import Command, Runner
from tests.servers import s3_client
from tests.sweep.conftest import Base, snapshot

TASK = "v1/task/dag/run/task/-1/worker"
MANY = 200
SECONDS = 120


class Program:
    """The command as a process, with the snapshot of a base URL that has so many live objects and orphans."""

    def __init__(self, python: Runner, base: Base, directory: Path, count: int, **environment: str) -> None:
        self.base = base
        self._python = python
        self.live = {f"{TASK}/live{number}" for number in range(count)}
        for name in (*self.live, *(f"{TASK}/orphan{number}" for number in range(count))):
            base.put(name)
        self.report, self.temporary, self._refs = directory / "report", directory / "tmp", directory / "refs"
        self.temporary.mkdir()
        self._refs.write_bytes(snapshot(base.url, sorted(f"{base.url}/{name}" for name in self.live)))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__ASYNC_STATE")},
            "HOME": str(directory),
            "TMPDIR": str(self.temporary),
            "AIRFLOW__ASYNC_STATE__URL": base.url,
            **environment,
        }

    def start(self, *arguments: str) -> Command:
        command = ["sweep", "--refs", str(self._refs), "--grace", "0", "--report", str(self.report)]
        command += ["--max-orphans", "100%", *arguments]
        return Command(self._python, *command, environment=self.environment)

    def finish(self) -> None:
        """Run it to its end, and look that what is left is what rows refer to."""
        left = set(self.base.names())
        assert self.live <= left
        with self.start("--delete", "--output", "plain") as process:
            out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert set(self.base.names()) == self.live
        assert str(len(left - self.live)) in out.split()
        assert list(self.temporary.iterdir()) == []


def test_a_sweep_that_is_killed_is_taken_up_again(base: Base, tmp_path: Path, python: Runner) -> None:
    program = Program(python, base, tmp_path, MANY, AIRFLOW__ASYNC_STATE__MAX_CONCURRENCY="2")
    with program.start("--delete") as process:
        # How much further it gets is a matter of luck.
        while process.poll() is None and (
            not program.report.exists() or program.report.read_text().count("\n") < MANY // 2
        ):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    program.finish()


@dataclass(frozen=True)
class Step:
    """A request of the sweep's, at which it is killed.

    Attributes:
        is_it: Tells it from others.
        number: Which one of those, from 0 on.
        deleted: How many orphans are gone by then.
    """

    is_it: Callable[[Request], bool]
    number: int
    deleted: int


def is_listing(request: Request) -> bool:
    return request.method == "GET" and request.query.startswith("list-type")


def is_listing_of_versions(request: Request) -> bool:
    return request.method == "GET" and request.query.startswith("versions")


STEPS = {
    "the listing": Step(is_listing, 0, 0),
    "the first look": Step(lambda request: request.method == "HEAD", 0, 0),
    "the first deletion": Step(lambda request: request.method == "DELETE", 0, 0),
    "another look": Step(lambda request: request.method == "HEAD", 2, 2),
    "the last deletion": Step(lambda request: request.method == "DELETE", 3, 3),
}
#: Where a bucket keeps versions. A DeleteObjects deletes those of an orphan but for the current one.
MORE_STEPS = {
    "the listing of versions": Step(is_listing_of_versions, 1, 1),
    "the deletion of earlier versions": Step(lambda request: request.method == "POST", 1, 1),
    "the deletion of the current version": Step(lambda request: request.method == "DELETE", 1, 1),
}


def at_each(steps: dict[str, Step]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("step", "is_carried_out"),
        [
            pytest.param(step, is_carried_out, id=f"{'after' if is_carried_out else 'before'} {name}")
            for name, step in steps.items()
            for is_carried_out in (False, True)
        ],
    )


@contextlib.contextmanager
def opened(moto: FakeS3, bucket: str) -> Iterator[Base]:
    settings = Settings(url=f"s3://{bucket}/killed-{uuid.uuid4().hex}", endpoint_url=moto.url)
    base = Base(settings, None)
    yield base
    base.run(base.store.aclose)


def one_at_a_time(moto: FakeS3) -> dict[str, str]:
    return {"AIRFLOW__ASYNC_STATE__ENDPOINT_URL": moto.url, "AIRFLOW__ASYNC_STATE__MAX_CONCURRENCY": "1"}


def kill_at(step: Step, *, is_carried_out: bool, program: Program, moto: FakeS3) -> None:
    numbers, killed = itertools.count(), threading.Event()
    process: Future[Command] = Future()

    def kill(exchange: Exchange) -> Answer:
        if next(numbers) != step.number:
            return exchange.carry_out(exchange.body)
        if is_carried_out:
            exchange.carry_out(exchange.body)
        process.result().send_signal(signal.SIGKILL)
        killed.set()
        return "500 Killed", [], b""

    with moto.failing(Fault(kill), when=step.is_it), program.start("--delete") as sweep:
        process.set_result(sweep)
        assert killed.wait(SECONDS)
    assert sweep.returncode == -signal.SIGKILL


@at_each(STEPS)
def test_at_each_request(step: Step, *, is_carried_out: bool, moto: FakeS3, tmp_path: Path, python: Runner) -> None:
    with opened(moto, "state") as base:
        program = Program(python, base, tmp_path, 4, **one_at_a_time(moto))
        kill_at(step, is_carried_out=is_carried_out, program=program, moto=moto)
        is_deletion = step is STEPS["the first deletion"] or step is STEPS["the last deletion"]
        gone = step.deleted + (is_deletion and is_carried_out)
        assert len(base.names()) == 8 - gone
        program.finish()


@at_each(MORE_STEPS)
def test_at_each_request_to_a_bucket_that_keeps_versions(
    step: Step, *, is_carried_out: bool, moto: FakeS3, tmp_path: Path, python: Runner
) -> None:
    bucket = f"killed-{uuid.uuid4().hex}"
    with (
        contextlib.closing(s3_client(moto.url)) as client,
        opened(moto, bucket) as base,
    ):
        client.create_bucket(Bucket=bucket)
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        for number in range(3):
            base.put(f"{TASK}/orphan{number}", b'"earlier"')
        program = Program(python, base, tmp_path, 3, **one_at_a_time(moto))
        kill_at(step, is_carried_out=is_carried_out, program=program, moto=moto)
        # No earlier value has come back.
        assert all(base.get(name) != b'"earlier"' for name in base.names())
        program.finish()
        left = client.list_object_versions(Bucket=bucket)
        assert len(left["Versions"]) == 3
        assert "DeleteMarkers" not in left


def test_while_the_snapshot_is_read(base: Base, tmp_path: Path, python: Runner) -> None:
    """Through a pipe, whose other end never comes to the last line."""
    program = Program(python, base, tmp_path, 3)
    whole = snapshot(base.url, sorted(f"{base.url}/{name}" for name in program.live))
    command = ["sweep", "--refs", "-", "--delete", "--grace", "0"]
    read, write = os.pipe()
    with os.fdopen(read, "rb") as rest, os.fdopen(write, "wb") as pipe:
        pipe.write(whole[: whole.rindex(b"{")])
        pipe.flush()
        with Command(python, *command, environment=program.environment, stdin=rest.fileno()) as process:
            # It has read everything, and waits for more.
            while process.poll() is None and unread(rest):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(base.names()) == 6
    program.finish()


def unread(pipe: IO[bytes]) -> int:
    """Return how many bytes a pipe holds."""
    held: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return held
