"""Airflow's own services as processes on the loopback interface: the API server, the scheduler, the DAG processor."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from tests.airflow.launcher import Process
from tests.servers import free_port

T = TypeVar("T")

# Many times what they take: for a machine that does much else at the same time.
_MIGRATE_SECONDS: Final = 600.0
_START_SECONDS: Final = 600.0
_RUN_SECONDS: Final = 600.0
_STOP_SECONDS: Final = 60.0
# A supervisor that just misses the end of its triggers' process waits ten seconds before it looks again.
_END_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.3
_TAIL_LINES: Final = 40
_TAIL_COLUMNS: Final = 2000


@dataclass
class Services:
    """Services that share one home directory: their database, their logs, what they print.

    Attributes:
        home: ``AIRFLOW_HOME``; made here.
        dag_file: the only file of DAGs, if there is any.
        common: what all of them have in their environment.
        server: what only the API server has in addition.
        worker: what only the scheduler and the triggerer have in addition, which run the tasks and the triggers.
    """

    home: Path
    dag_file: Path | None = None
    common: Mapping[str, str] = field(default_factory=dict)
    server: Mapping[str, str] = field(default_factory=dict)
    worker: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._port = free_port()
        self._processes: dict[str, Process] = {}
        for directory in (self.logs, self.printed, self.home / "dags"):
            directory.mkdir(parents=True)
        if self.dag_file is not None:
            shutil.copy(self.dag_file, self.home / "dags")
        # Without one, each of them would write its own.
        (self.home / "airflow.cfg").touch()
        url = f"http://127.0.0.1:{self._port}"
        self._api = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._environment = {
            # Nothing of pytest's environment: neither the Airflow that is configured there, nor anyone's AWS account.
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            # Each of them would load all migrations that there are, for half a second.
            "AIRFLOW__DATABASE__CHECK_MIGRATIONS": "False",
            # The port at which the scheduler serves task logs is the same for every Airflow on a machine.
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            # Five seconds would do, but not on a machine that has more to do than this.
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            # A supervisor that just misses the end of its task waits so many seconds before it looks again.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            **self.common,
        }

    @property
    def database(self) -> Path:
        return self.home / "airflow.db"

    @property
    def logs(self) -> Path:
        """The directory of the logs that Airflow writes, those of tasks among them."""
        return self.home / "logs"

    @property
    def printed(self) -> Path:
        """The directory of what the services print, a file each."""
        return self.home / "printed"

    def migrate(self) -> None:
        """Make the database, where no other can be copied."""
        self._start("migrate", "db", "migrate")
        migration = self._processes.pop("migrate")
        try:
            ended = migration.wait(_MIGRATE_SECONDS)
        finally:
            migration.kill()
            migration.wait()
        assert ended == 0, f"airflow db migrate ended with {ended}\n{self.tails()}"

    @contextlib.contextmanager
    def running(self, *, triggerer: str = "", dag_processor_only: bool = False) -> Iterator[None]:
        """Run the services; when the block is left, no process of theirs is left.

        Parameters:
            triggerer: what to call a triggerer, if one is to run from the start.
            dag_processor_only: run only that, which makes the triggers of watched assets.
        """
        try:
            self._start("dag-processor", "dag-processor")
            if triggerer:
                self.start_triggerer(triggerer)
            if dag_processor_only:
                yield
                return
            address = ("--host", "127.0.0.1", "--port", str(self._port), "--workers", "1")
            self._start("api-server", "api-server", *address, extra=self.server)
            self._start("scheduler", "scheduler", extra=self.worker)
            token = self.wait_for("the API server", _START_SECONDS, self._token)
            self._api.headers["Authorization"] = f"Bearer {token}"
            # Its first request takes seconds, while it builds every version of itself; the tasks' must not be it.
            self._api.get("/execution/health").raise_for_status()
            yield
        finally:
            self._stop()
            self._api.close()

    def start(self, name: str, *arguments: str) -> None:
        """Start another service: ``airflow`` with these arguments, in a worker's environment."""
        self._start(name, *arguments, extra=self.worker)

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``python`` with these arguments to its end, in the common environment."""
        return subprocess.run(
            [sys.executable, *arguments],
            env=self._environment | options.pop("extra", {}),
            cwd=self.home,
            check=False,
            capture_output=True,
            text=True,
            **options,
        )

    def send(self, method: str, path: str, **options: Any) -> Any:
        """Send a request to the public REST API, below ``/api/v2``."""

        def answer() -> httpx.Response | None:
            found = self._api.request(method, f"/api/v2/{path}", **options)
            # The API server logs such a request before it does anything else. It waits for the database's lock on its
            # event loop, where another of its requests may be about to release it, and so in vain.
            return None if found.status_code == 500 and "Database error" in found.text else found

        return self._succeeded(self.wait_for(f"an answer to {method} {path}", _RUN_SECONDS, answer))

    @property
    def api(self) -> httpx.Client:
        """The client of the REST API, with a token."""
        return self._api

    def start_triggerer(self, name: str) -> None:
        """Start a triggerer. What it prints is in a file of that name."""
        # Logs are read from disk here; the port to serve them at is the same for every Airflow on a machine.
        self._start(name, "triggerer", "--skip-serve-logs", extra=self.worker)

    def kill(self, name: str) -> None:
        """Kill a service with all its processes."""
        _kill(self._processes.pop(name))

    def stop(self, name: str) -> int:
        """Send SIGTERM to a service, and return what it ended with.

        Raises:
            subprocess.TimeoutExpired: it did not end.
            AssertionError: it left processes behind.
        """
        process = self._processes[name]
        process.terminate()
        try:
            ended = process.wait(_END_SECONDS)
            left = processes_of_session(process.pid)
            assert not left, f"{name} ended with {ended} and left processes behind: {left}\n{self.tails()}"
        finally:
            _kill(self._processes.pop(name))
        return ended

    def get(self, path: str, **parameters: str | int) -> Any:
        """Return what the public REST API answers, below ``/api/v2``."""
        return self._succeeded(self._api.get(f"/api/v2/{path}", params=parameters)).json()

    def run_dag(self, dag_id: str, run_id: str, conf: Mapping[str, object]) -> None:
        """Trigger a DAG, as soon as it is known, and wait until its run has succeeded."""
        self.start_run(dag_id, run_id, conf)
        self.wait_for_run(dag_id, run_id)

    def start_run(self, dag_id: str, run_id: str, conf: Mapping[str, object]) -> None:
        """Trigger a DAG, as soon as it is known."""

        def known() -> bool:
            return self._api.get(f"/api/v2/dags/{dag_id}").is_success

        self.wait_for(f"the DAG {dag_id}", _START_SECONDS, known)
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        self.send("POST", f"dags/{dag_id}/dagRuns", json=body)

    def wait_for_run(self, dag_id: str, run_id: str) -> None:
        """Wait until a DAG's run has succeeded."""

        def ended() -> str | None:
            state: str = self.get(f"dags/{dag_id}/dagRuns/{run_id}")["state"]
            return state if state in ("success", "failed") else None

        state = self.wait_for(f"the end of the run of {dag_id}", _RUN_SECONDS, ended)
        assert state == "success", f"the run of {dag_id} ended in {state}\n{self.tails()}"

    def wait_for_deferral(self, dag_id: str) -> None:
        """Wait until the scheduler knows that the process of the DAG's only task has ended, which has deferred.

        A scheduler that sees that only when the trigger has fired, and the task is queued again, takes it for a task
        whose process was killed, and fails it.
        """
        seen = f"TaskInstance Finished: dag_id={dag_id},"
        log = self.printed / "scheduler"
        self.wait_for(f"the deferral of {dag_id}", _RUN_SECONDS, lambda: seen in log.read_text(errors="replace"))

    def log_files(self) -> list[Path]:
        """Return every file that holds log lines."""
        return sorted(path for top in (self.logs, self.printed) for path in top.rglob("*") if path.is_file())

    def tails(self) -> str:
        """Return the end of everything that was logged and printed, for a failure's message."""
        tails = []
        for path in self.log_files():
            lines = path.read_text(errors="replace").splitlines()
            tails.append(f"--- the end of {path.relative_to(self.home)} ({len(lines)} lines)")
            tails += [line[:_TAIL_COLUMNS] for line in lines[-_TAIL_LINES:]]
        return "\n".join(tails)

    def asset_events(self) -> list[Any]:
        """Return what watchers have told so far, as events of their assets, in order."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            # Those of tasks have one.
            query = "SELECT extra FROM asset_event WHERE source_task_id IS NULL ORDER BY id"
            rows = connection.execute(query).fetchall()
        return [json.loads(extra)["payload"] for (extra,) in rows]

    def cells(self) -> Iterator[tuple[str, str]]:
        """Yield table, column and content of every cell in the database."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                rows = connection.execute(f'SELECT * FROM "{table}"')  # noqa: S608
                columns = [description[0] for description in rows.description]
                for row in rows:
                    for column, cell in zip(columns, row, strict=True):
                        text = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)
                        yield f"{table}.{column}", text

    def _succeeded(self, answer: httpx.Response) -> httpx.Response:
        """Return the answer, or fail with what the services said, as the API server tells its log alone why."""
        assert answer.is_success, f"{answer.request.url}: {answer.status_code} {answer.text}\n{self.tails()}"
        return answer

    def _token(self) -> str | None:
        try:
            token: str = self._api.get("/auth/token").raise_for_status().json()["access_token"]
        except httpx.HTTPError:
            return None
        return token

    def _start(self, name: str, *arguments: str, extra: Mapping[str, str] | None = None) -> None:
        with (self.printed / name).open("wb") as output:
            # The API server may hold the lock for the five seconds for which it waits in vain, see `send`.
            seconds = 5 if name == "api-server" else 60
            database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}?timeout={seconds}"}
            environment = {**database, **self._environment, **(extra or {})}
            self._processes[name] = Process(arguments, environment, self.home, output.fileno())

    def wait_for(self, what: str, seconds: float, answer: Callable[[], T | None]) -> T:
        """Ask again and again, and return the first answer that is true.

        Raises:
            AssertionError: none came in so many seconds, or a service has ended.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := answer():
                return found
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended with {process.returncode}\n{self.tails()}"
            time.sleep(_POLL_SECONDS)
        raise AssertionError(f"{what} did not come within {seconds:g} s\n{self.tails()}")

    def _stop(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes.values():
            process.terminate()
        # Not for the API server, whose interpreter then collects its garbage for seconds.
        for name in self._processes.keys() - {"api-server"}:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[name].wait(max(deadline - time.monotonic(), 0))
        for process in self._processes.values():
            _kill(process)
        self._processes.clear()


def migrated(shared: Path) -> Path:
    """Return a new database of Airflow's, to be copied. It is made once for all processes of a run of the tests.

    Parameters:
        shared: a directory of the run.
    """
    database = shared / "airflow-migrated" / "airflow.db"
    with (shared / "airflow-migrated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            shutil.rmtree(database.parent, ignore_errors=True)
            made = Services(database.parent.with_name("airflow-migrating"))
            made.migrate()
            made.home.rename(database.parent)
    return database


def _kill(process: Process) -> None:
    # By session, as each task has a process group of its own.
    for pid in processes_of_session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def processes_of_session(leader: int) -> list[int]:
    members = []
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                members.append(pid)
    return members
