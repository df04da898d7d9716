"""What a signal handler raises while a blocking call waits comes out of the call as it is, as no failure of a store.

`TimeoutError` is what the usual handler of SIGALRM raises, and an error of the operating system, as stores' errors are.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest
from airflow.sdk.state import TaskScope

from async_state import Settings
from async_state.testing import FakeS3, Request, faults
from tests.conftest import BackendOf
from tests.programs.runner import wait_until_asleep
from tests.programs.wire import PATIENCE


class DeadlineError(TimeoutError):
    """The caller's own."""


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    def raise_(*_: object) -> NoReturn:
        raise DeadlineError

    before = signal.signal(signal.SIGUSR1, raise_)
    yield
    signal.signal(signal.SIGUSR1, before)


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


@pytest.mark.parametrize("outage_inline_threshold", [0, 4096])
def test_while_it_waits_for_the_store(
    outage_inline_threshold: int, moto: FakeS3, opened: BackendOf, task: TaskScope
) -> None:
    def interrupts(_: Request) -> bool:
        interrupt()
        return True

    backend = opened(
        Settings(
            url="s3://state/p",
            endpoint_url=moto.url,
            timeout=PATIENCE,
            outage_inline_threshold=outage_inline_threshold,
        )
    )
    with moto.failing(faults.never_answers(), when=interrupts), pytest.raises(DeadlineError):
        backend.serialize_task_state_store_to_ref(value=1, key="key", scope=task)


def test_while_it_waits_for_a_slot(moto: FakeS3, opened: BackendOf, task: TaskScope) -> None:
    arrived, released = threading.Event(), threading.Event()

    def hold(_: Request) -> None:
        arrived.set()
        assert released.wait(PATIENCE)

    def interrupt_a_wait() -> None:
        wait_until_asleep(os.getpid())
        interrupt()

    def interrupted() -> None:
        threading.Thread(target=interrupt_a_wait).start()
        backend.set(task, "other", "1")

    backend = opened(Settings(url="s3://state/p", endpoint_url=moto.url, timeout=PATIENCE, max_concurrency=1))
    moto.intercept = hold
    first = threading.Thread(target=backend.set, args=(task, "key", "1"))
    first.start()
    assert arrived.wait(PATIENCE)
    with pytest.raises(DeadlineError):
        interrupted()
    released.set()
    first.join()
