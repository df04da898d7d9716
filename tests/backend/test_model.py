"""Any sequence of what tasks and assets do with their state never makes a `get` return a wrong value.

State machines drive the SDK's own accessors and `AsyncStateStore` against a database and a real store. In between,
processes are killed or meet failures at any step of an operation, operations are run again, and settings change. For
each key the model keeps the values that a `get` may return.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO
from urllib.parse import quote, urlsplit

import anyio
import pytest
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import comms, context, task_runner
from airflow.sdk.state import TaskScope
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from async_state import Settings
from async_state.accessors import AsyncStateStore
from async_state.errors import MissingObjectError, StoreError
from async_state.testing import CREDENTIALS, REGION, Answer, FakeS3, Request
from tests.fuzzing import FUZZED
from tests.programs.common import fork, outcome
from tests.programs.wire import PATIENCE

#: What the model writes down where a `get` returns the caller's default; any other value is JSON text.
DEFAULT = "default"
#: A row whose object is gone.
GONE = "null"

DAG, RUN, TASK = "dag", "manual__2026-01-01T00:00:00+00:00", "task"
#: Owners of state, with what the README says their objects' names start with. The names of two of them are alike.
TASKS = {index: f"v1/task/dag/manual__2026-01-01T00:00:00%2B00:00/task/{index}/" for index in (1, 10)}
ASSET = "v1/asset/name/dag/"
OWNERS = [*TASKS.values(), ASSET]
KEYS = ["a/b", "a_b"]

Way = Literal["sync", "async"]
ways = st.sampled_from(["sync", "async"])
owners = st.sampled_from(OWNERS)
keys = st.sampled_from(KEYS)
json_values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
#: Bytes that are added to a value: none, and around each of the thresholds, up to what is packed in a thread.
paddings = st.sampled_from([None, 0, 200, 3000, 100_000])


class KilledError(Exception):
    """The process has been killed."""


@dataclass
class Fault:
    """What happens to a process at one step of an operation: at the n-th time that it changes the store or a row.

    Attributes:
        kind: ``kill``; or ``fail once``: the store or the database refuses that step; or ``fail``: they refuse all
            steps from then on, until `lift`.
        at: how many steps succeed before. ``None`` = all.
    """

    kind: Literal["kill", "fail", "fail once"] = "kill"
    at: int | None = None
    pid: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def strikes(self) -> bool:
        """Count a step, and tell whether it must fail."""
        with self._lock:
            if self.at is None:
                return False
            if self.at:
                self.at -= 1
                return False
            if self.kind == "fail once":
                self.at = None
        if self.kind == "kill":
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        return True

    def lift(self) -> None:
        self.at = None


kills = st.builds(Fault, st.just("kill"), st.integers(0, 5))
faults = st.builds(Fault, st.sampled_from(["kill", "fail", "fail once"]), st.integers(0, 5))


class Supervisor:
    """Airflow's supervisor and the database behind it, as far as state needs them: a row for each owner and key."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], str] = {}

    def send(self, message: Any) -> Any:
        kind = type(message).__name__
        row = self.ask(kind, message.model_dump(mode="json"))
        if not kind.startswith("Get"):
            return comms.OKResponse(ok=True)
        if "Asset" in kind:
            if row is None:
                return comms.ErrorResponse(error=ErrorType.ASSET_STORE_NOT_FOUND)
            return comms.AssetStateStoreResult(value=json.loads(row))
        if row is None:
            return comms.ErrorResponse(error=ErrorType.TASK_STORE_NOT_FOUND)
        return comms.TaskStateStoreResult(value=json.loads(row))

    async def asend(self, message: Any) -> Any:
        return self.send(message)

    def ask(self, kind: str, about: dict[str, Any]) -> str | None:
        owner, key = about.get("ti_id") or about["name"], about.get("key")
        if kind.startswith("Get"):
            return self.rows.get((owner, str(key)))
        if kind.startswith("Set"):
            self.rows[owner, str(key)] = json.dumps(about["value"])
        elif kind.startswith("Delete"):
            self.rows.pop((owner, str(key)), None)
        else:
            self.rows = {at: row for at, row in self.rows.items() if at[0] != owner}
        return None


class RemoteSupervisor(Supervisor):
    """The same, asked by a process of its own."""

    def __init__(self, connection: socket.socket, fault: Fault) -> None:
        super().__init__()
        self._file = connection.makefile("rw")
        self._fault = fault

    def ask(self, kind: str, about: dict[str, Any]) -> str | None:
        struck = not kind.startswith("Get") and self._fault.strikes()
        answer: Any = "refused" if struck else self.exchange(kind, about)
        if answer == "refused":
            raise ConnectionError("the database refuses")
        row: str | None = answer["row"]
        return row

    def exchange(self, what: str, about: Any = None) -> Any:
        print(json.dumps([what, about]), file=self._file, flush=True)
        return json.loads(self._file.readline())


class Place(Protocol):
    """A real store, with room for a model."""

    def options(self) -> dict[str, str]:
        """Return options with which it is reached, and with two URLs to choose from in ``url`` and ``trusted_urls``."""

    def objects(self, url: str, prefix: str) -> list[str]:
        """List what there is below the prefix, without the backend."""

    def strike_inside(self, fault: Fault) -> None:
        """Be called in the process that the fault is for."""

    def strike_outside(self, fault: Fault) -> contextlib.AbstractContextManager[None]:
        """Be entered in the parent while the process runs."""


class Files:
    """The steps of an operation are the changes that it makes to the directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def options(self) -> dict[str, str]:
        return {"url": (self._root / "a").as_uri(), "trusted_urls": (self._root / "b").as_uri()}

    def objects(self, url: str, prefix: str) -> list[str]:
        below = Path(urlsplit(url).path) / prefix
        # What a killed process was writing counts too.
        return [str(path) for path in below.rglob("*") if path.is_file()]

    def strike_inside(self, fault: Fault) -> None:
        root = str(self._root)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
                return
            path = os.fspath(args[0]) if isinstance(args[0], (str, os.PathLike)) else ""
            if not path.startswith(root) or (event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            if event == "os.mkdir" and os.path.isdir(path):  # noqa: PTH112 - Path would be audited again
                return
            if fault.strikes():
                raise OSError(5, "Input/output error")

        sys.addaudithook(hook)

    @contextlib.contextmanager
    def strike_outside(self, fault: Fault) -> Iterator[None]:
        fault.lift()
        yield


class Moto:
    """The steps of an operation are the requests that change something. A listing has one key a page."""

    def __init__(self, server: FakeS3, prefix: str) -> None:
        self._server = server
        self._url = f"s3://state/{prefix}"

    def options(self) -> dict[str, str]:
        # One request at a time: what a killed process had sent before may otherwise still be on its way.
        tries = {"max_concurrency": "1", "max_attempts": "1"}
        return {"url": f"{self._url}/a", "trusted_urls": f"{self._url}/b", "endpoint_url": self._server.url, **tries}

    def objects(self, url: str, prefix: str) -> list[str]:
        place = url.removeprefix("s3://state/")
        listing = f"{self._server.url}/state?list-type=2&max-keys=1000&prefix={place}/{prefix}".replace("%", "%25")
        return [part.partition("<")[0] for part in self._ask(listing).decode().split("<Key>")[1:]]

    def strike_inside(self, fault: Fault) -> None:
        fault.lift()

    @contextlib.contextmanager
    def strike_outside(self, fault: Fault) -> Iterator[None]:
        def intercept(request: Request) -> Answer | None:
            if request.method == "GET" and "list-type=2" in request.query and "max-keys" not in request.query:
                # S3 may return fewer keys than it could.
                page = self._ask(f"{self._server.url}{request.path}?{request.query}&max-keys=1")
                return "200 OK", [("Content-Type", "application/xml")], page
            if request.method != "GET" and fault.strikes():
                return "500 Internal Server Error", [], b"<Error><Code>InternalError</Code></Error>"
            return None

        self._server.intercept = intercept
        try:
            yield
        finally:
            self._server.intercept = None

    @staticmethod
    def _ask(url: str) -> bytes:
        credential = f"Credential={CREDENTIALS['AWS_ACCESS_KEY_ID']}/20260101/{REGION}/s3/aws4_request"
        signed = urllib.request.Request(url, headers={"Authorization": f"AWS4-HMAC-SHA256 {credential}"})  # noqa: S310
        with urllib.request.urlopen(signed) as answer:  # noqa: S310
            found: bytes = answer.read()
            return found


class StateMachine(RuleBasedStateMachine):
    """What is done to state, and what a `get` may then return."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.database = Supervisor()
        self.may_be: dict[tuple[str, str], set[str]] = {}
        self.written = itertools.count()
        self.accessors: dict[str, Any] = {ASSET: context.AssetStateStoreAccessor(name=DAG)}
        for index, prefix in TASKS.items():
            scope = TaskScope(DAG, RUN, TASK, index)
            self.accessors[prefix] = context.TaskStateStoreAccessor(uuid.UUID(int=index + 2), scope)
        task_runner.SUPERVISOR_COMMS = self.database  # type: ignore[assignment]
        self.options = {option.name: "" for option in fields(Settings)} | self.place.options()
        self.begin_run()

    def teardown(self) -> None:
        try:
            for owner, key in itertools.product(OWNERS, KEYS):
                self.get_value(owner, key, "sync", elsewhere=False)
        finally:
            self.end_run()

    # Settings.

    def begin_run(self) -> None:
        for name, value in self.options.items():
            os.environ[f"AIRFLOW__ASYNC_STATE__{name.upper()}"] = value
        context._get_worker_state_store_backend.cache_clear()

    def end_run(self) -> None:
        backend: Any = context._get_worker_state_store_backend()
        backend.close()

    @property
    def url(self) -> str:
        return self.options["url"]

    @rule(
        compression=st.sampled_from(["none", "gzip", "zstd"]),
        compression_threshold=st.sampled_from(["0", "1024"]),
        inline_threshold=st.sampled_from(["0", "100", "1000"]),
        outage_inline_threshold=st.sampled_from(["0", "1000"]),
        on_missing=st.sampled_from(["none", "raise"]),
        move=st.booleans(),
    )
    def change_settings(self, *, move: bool, **options: str) -> None:
        self.end_run()
        self.options |= options
        if move:
            self.options["url"], self.options["trusted_urls"] = self.options["trusted_urls"], self.options["url"]
        self.begin_run()

    # Operations that complete.

    @rule(owner=owners, key=keys, drawn=json_values, padding=paddings, way=ways)
    def set_value(self, owner: str, key: str, drawn: Any, padding: int | None, way: Way) -> None:
        value = self.value(owner, key, drawn, padding)
        self.setting(owner, key, value, way)()
        self.may_be[owner, key] = {json.dumps(value)}

    @rule(owner=owners, key=keys, way=ways, elsewhere=st.booleans())
    def get_value(self, owner: str, key: str, way: Way, elsewhere: bool) -> None:
        getting = self.getting(owner, key, way)
        found = self.in_process(getting, Fault(), again=False) if elsewhere else getting()
        may_be = self.may_be.get((owner, key), {DEFAULT})
        # `AsyncStateStore` gives the default for what is gone as well.
        same = {DEFAULT, GONE} if way == "async" and found == DEFAULT else {found}
        assert may_be & same, f"{found[:300]} instead of {[text[:300] for text in may_be]}"
        self.may_be[owner, key] = may_be & same

    @rule(owner=owners, key=keys, way=ways)
    def delete_key(self, owner: str, key: str, way: Way) -> None:
        self.deleting(owner, key, way)()
        self.deleted(owner, key)

    @rule(owner=owners, way=ways)
    def clear_scope(self, owner: str, way: Way) -> None:
        self.clearing(owner, way)()
        self.cleared(owner)

    @rule()
    def clear_all_map_indices(self) -> None:
        for owner in TASKS.values():
            self.database.ask("Clear", {"ti_id": str(self.accessors[owner]._ti_id)})
        backend: Any = context._get_worker_state_store_backend()
        backend.clear(TaskScope(DAG, RUN, TASK, 1), all_map_indices=True)
        for owner in TASKS.values():
            self.cleared(owner)

    @rule(owner=st.sampled_from(list(TASKS.values())))
    def succeed(self, owner: str) -> None:
        self.succeeding(owner)()
        self.cleared(owner)

    # Operations in a process that dies, or that meets a failure and then, perhaps, tries again.

    @rule(
        owner=owners,
        key=keys,
        drawn=json_values,
        padding=paddings,
        way=ways,
        fault=faults,
        again=st.booleans(),
        look=st.booleans(),
    )
    def interrupted_set(
        self, owner: str, key: str, drawn: Any, padding: int | None, way: Way, fault: Fault, again: bool, look: bool
    ) -> None:
        value = self.value(owner, key, drawn, padding)
        with self.perhaps(owner, [key], json.dumps(value), look=look):
            self.in_process(self.setting(owner, key, value, way), fault, again)
            self.may_be[owner, key] = {json.dumps(value)}

    @rule(owner=owners, key=keys, way=ways, fault=faults, again=st.booleans(), look=st.booleans())
    def interrupted_delete(self, owner: str, key: str, way: Way, fault: Fault, again: bool, look: bool) -> None:
        with self.perhaps(owner, [key], DEFAULT, look=look):
            self.in_process(self.deleting(owner, key, way), fault, again)
            self.deleted(owner, key)

    @rule(owner=owners, way=ways, fault=faults, again=st.booleans(), look=st.booleans())
    def interrupted_clear(self, owner: str, way: Way, fault: Fault, again: bool, look: bool) -> None:
        with self.perhaps(owner, KEYS, DEFAULT, look=look):
            self.in_process(self.clearing(owner, way), fault, again)
            self.cleared(owner)

    @rule(owner=owners, way=ways, fault=kills)
    def clear_after_an_interrupted_one(self, owner: str, way: Way, fault: Fault) -> None:
        with contextlib.suppress(KilledError):
            self.in_process(self.clearing(owner, way), fault, again=False)
        self.clear_scope(owner, way)

    @rule(owner=st.sampled_from(list(TASKS.values())), fault=faults, again=st.booleans(), look=st.booleans())
    def interrupted_success(self, owner: str, fault: Fault, again: bool, look: bool) -> None:
        # Airflow clears the store before the rows here, so that a row may be left whose object is gone.
        with self.perhaps(owner, KEYS, DEFAULT, GONE, look=look):
            self.in_process(self.succeeding(owner), fault, again)
            self.cleared(owner)

    @precondition(lambda self: isinstance(self.place, Files))
    @rule(
        owner=owners,
        key=keys,
        drawn=json_values,
        size=st.integers(500, 3000),
        cut=st.integers(0, 500),
        look=st.booleans(),
    )
    def torn_set(self, owner: str, key: str, drawn: Any, size: int, cut: int, look: bool) -> None:
        """The kernel ends the process in the middle of its write, after ``cut`` bytes."""
        value = self.value(owner, key, drawn, size)

        def setting() -> str:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (cut, cut))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            return self.setting(owner, key, value, "sync")()

        with self.perhaps(owner, [key], json.dumps(value), look=look):
            self.in_process(setting, Fault(), again=False)
            self.may_be[owner, key] = {json.dumps(value)}

    # What they are made of.

    def value(self, owner: str, key: str, drawn: Any, padding: int | None) -> Any:
        """Return a value that no other key has had and that this one has not had before, or ``drawn``."""
        if padding is None:
            return drawn
        return {"drawn": drawn, "of": [owner, key, next(self.written)], "padding": "padding " * (padding // 8)}

    def setting(self, owner: str, key: str, value: Any, way: Way) -> Callable[[], str]:
        accessor = self.accessors[owner]
        return self.done(accessor.set, key, value) if way == "sync" else self.awaited(accessor, "aset", key, value)

    def deleting(self, owner: str, key: str, way: Way) -> Callable[[], str]:
        accessor = self.accessors[owner]
        return self.done(accessor.delete, key) if way == "sync" else self.awaited(accessor, "adelete", key)

    def clearing(self, owner: str, way: Way) -> Callable[[], str]:
        accessor = self.accessors[owner]
        return self.done(accessor.clear) if way == "sync" else self.awaited(accessor, "aclear")

    def succeeding(self, owner: str) -> Callable[[], str]:
        """As Airflow's task runner does it with ``clear_on_success``."""
        accessor = self.accessors[owner]

        def succeed() -> None:
            backend: Any = context._get_worker_state_store_backend()
            backend.clear(accessor._scope)
            supervisor: Any = task_runner.SUPERVISOR_COMMS
            supervisor.ask("Clear", {"ti_id": str(accessor._ti_id)})

        return self.done(succeed)

    def getting(self, owner: str, key: str, way: Way) -> Callable[[], str]:
        accessor: Any = self.accessors[owner]
        default: Any = object()

        def get() -> str:
            try:
                if way == "sync":
                    found = accessor.get(key, default)
                else:
                    found = anyio.run(AsyncStateStore(accessor).aget, key, default)
            except MissingObjectError:
                assert self.options["on_missing"] == "raise"
                return GONE
            return DEFAULT if found is default else json.dumps(found)

        return get

    @staticmethod
    def done(method: Callable[..., None], *args: Any) -> Callable[[], str]:
        def do() -> str:
            method(*args)
            return ""

        return do

    @staticmethod
    def awaited(accessor: Any, name: str, *args: Any) -> Callable[[], str]:
        def do() -> str:
            anyio.run(getattr(AsyncStateStore(accessor), name), *args)
            return ""

        return do

    def deleted(self, owner: str, key: str) -> None:
        self.may_be[owner, key] = {DEFAULT}
        left = self.place.objects(self.url, owner)
        assert not [name for name in left if name.endswith("/" + quote(key, safe=""))]

    def cleared(self, owner: str) -> None:
        for key in KEYS:
            self.may_be[owner, key] = {DEFAULT}
        assert self.place.objects(self.url, owner) == []

    @contextlib.contextmanager
    def perhaps(self, owner: str, keys: list[str], *others: str, look: bool) -> Iterator[None]:
        """Allow other values too if the block does not get to its end, and ``look`` which it is."""
        for number, key in enumerate(keys):
            # Something to lose.
            if self.may_be.get((owner, key), {DEFAULT}) == {DEFAULT}:
                self.set_value(owner, key, "before", 200 * number, "sync")
        try:
            yield
        except (KilledError, StoreError, ConnectionError):
            for key in keys:
                self.may_be[owner, key] |= set(others)
                if look:
                    self.get_value(owner, key, "sync", elsewhere=False)

    def in_process(self, operation: Callable[[], str], fault: Fault, again: bool) -> str:
        """Return the operation's result in a forked process that the fault is for.

        Parameters:
            operation: what it does.
            fault: what it meets.
            again: once it has failed and the fault is over, it tries again.

        Raises:
            KilledError: the process was killed.
            ConnectionError: the operation failed and was not tried again.
        """
        ours, theirs = socket.socketpair()

        def work() -> None:
            ours.close()
            inside = Fault(fault.kind, fault.at, os.getpid())
            supervisor = RemoteSupervisor(theirs, inside)
            # Once it is answered, the parent knows whom to kill.
            supervisor.exchange("ready")
            task_runner.SUPERVISOR_COMMS = supervisor  # type: ignore[assignment]
            self.place.strike_inside(inside)
            try:
                result = operation()
            except (StoreError, ConnectionError) as e:
                inside.lift()
                supervisor.exchange("failed", repr(e))
                if not again:
                    return
                result = operation()
            supervisor.exchange("done", result)

        result: str | None = None
        with ours, theirs:
            outside = Fault(fault.kind, fault.at, pid := fork(work, "task"))
            theirs.close()
            ours.settimeout(PATIENCE)
            with self.place.strike_outside(outside), ours.makefile() as lines:
                for line in lines_of(lines):
                    what, about = json.loads(line)
                    answer: Any = None
                    if what == "done":
                        result = about
                    elif what == "failed":
                        outside.lift()
                    elif what != "ready":
                        refused = not what.startswith("Get") and outside.strikes()
                        answer = "refused" if refused else {"row": self.database.ask(what, about)}
                    with contextlib.suppress(BrokenPipeError):
                        ours.sendall(json.dumps(answer).encode() + b"\n")
            ended = outcome(pid)
        if ended in (f"status {-signal.SIGKILL}", f"status {-signal.SIGXFSZ}"):
            raise KilledError
        assert ended == "fine"
        if result is None:
            raise ConnectionError("the operation failed")
        return result


def lines_of(file: TextIO) -> Iterator[str]:
    """Yield what a process says, whose end may be sudden."""
    with contextlib.suppress(ConnectionResetError):
        yield from file


def run(machine: type[StateMachine], monkeypatch: pytest.MonkeyPatch, *, examples: int, steps: int) -> None:
    for option in fields(Settings):
        monkeypatch.setenv(f"AIRFLOW__ASYNC_STATE__{option.name.upper()}", "")
    monkeypatch.setenv("AIRFLOW__WORKERS__STATE_STORE_BACKEND", "async_state.AsyncStateBackend")
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", None, raising=False)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                FUZZED,
                max_examples=examples,
                stateful_step_count=steps,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        context._get_worker_state_store_backend.cache_clear()


def test_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numbers = itertools.count()

    class FileMachine(StateMachine):
        def __init__(self) -> None:
            self.place = Files(tmp_path / str(next(numbers)))
            super().__init__()

    run(FileMachine, monkeypatch, examples=20, steps=25)


def test_s3(monkeypatch: pytest.MonkeyPatch, moto: FakeS3) -> None:
    numbers = itertools.count()

    class S3Machine(StateMachine):
        def __init__(self) -> None:
            self.place = Moto(moto, f"model-{next(numbers)}")
            super().__init__()

    run(S3Machine, monkeypatch, examples=6, steps=20)
