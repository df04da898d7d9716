"""Operating-system processes that run Airflow."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection

from demo import watch
from demo.watch import Step

_TIMEOUT = 60.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["demo.preload"])


class AirflowProcess:
    """A process that runs ``what`` with Airflow imported.

    Parameters:
        what: `dag_test` or `airflow`.
        arguments: of ``what``.
        tag: what `watch.tagged` marks values with.
        environment: set in the process.
    """

    def __init__(
        self, what: Callable[..., None], *arguments: str, tag: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self._pipe, theirs = _context.Pipe()
        given = (theirs, tag, dict(environment or {}), what, arguments)
        # A daemon, so that it does not outlive a demo that crashes.
        self._process = _context.Process(target=_run, args=given, daemon=True)
        self._process.start()
        # While this side holds it open too, reading never ends with EOFError.
        theirs.close()
        self.pid = self._process.pid
        self.title = " ".join([what.__name__, *arguments])

    def steps(self) -> Iterator[Step]:
        """Yield each step of its tasks, which wait meanwhile; and end when the process does.

        Raises:
            TimeoutError: for a minute, it has neither taken a step nor ended.
        """
        with self._pipe:
            while step := self._next_step():
                yield step
                self._pipe.send(None)
        self._process.join()

    def _next_step(self) -> Step | None:
        if not self._pipe.poll(_TIMEOUT):
            raise TimeoutError(f"process {self.pid} has done nothing for {_TIMEOUT:g} seconds")
        try:
            step: Step = self._pipe.recv()
        except EOFError:
            return None
        return step

    @property
    def exit_code(self) -> int | None:
        """Zero if it succeeded, negative if a signal ended it."""
        return self._process.exitcode


def dag_test(dag_id: str) -> None:
    """Run all tasks of the DAG in this process."""
    from airflow.dag_processing.dagbag import DagBag

    run = DagBag().dags[dag_id].test()
    sys.exit(run.state != "success")


def airflow(*arguments: str) -> None:
    """Be the command ``airflow``."""
    from airflow.__main__ import main

    sys.argv = ["airflow", *arguments]
    main()


def _run(
    pipe: Connection, tag: str, environment: dict[str, str], what: Callable[..., None], arguments: tuple[str, ...]
) -> None:
    os.environ.update(environment)
    watch.pipe, watch.tag = pipe, tag
    what(*arguments)
