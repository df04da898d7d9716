"""What Airflow demands of a ``BaseStoreBackend``, as pytest classes that any backend's author can subclass.

    from async_state.testing import StateBackendContract

    class TestMyBackend(StateBackendContract):
        @pytest.fixture
        def backend(self):
            return MyBackend(...)

Needs pytest and the task SDK. Each test is named after a row of docs/contract.md and says where in Airflow the rule
comes from; most run once for each way in which Airflow calls a backend, see `WAYS`. To leave a test out, set it to
``None`` in the subclass.
"""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import importlib
import json
import math
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import greenback
import pytest
from airflow.sdk.state import AssetScope, BaseStoreBackend, TaskScope

from async_state.testing.loops import standstill

#: How `Calls` reaches the backend: its synchronous methods from a thread, as task code and the API server do; its
#: coroutines, with the synchronous hook in a thread where the backend has no ``a…`` of it; its synchronous methods on
#: the thread of a running event loop, as the SDK's ``aget`` and ``aset`` do; and the same in a task that has a
#: greenback portal, as the triggerer gives to triggers.
WAYS: Final = ("thread", "coroutine", "loop", "portal")

#: JSON values of every kind: falsy ones, all of unicode, numbers that floats can't hold, what looks like a reference.
VALUES: Final[Sequence[Any]] = (
    "spark_app_001",
    "",
    0,
    False,
    True,
    [],
    {},
    -0.5,
    1e300,
    10**40,
    "null",
    '"quoted"',
    "\x00\x1f\n\u2028 é \U0001f4a5 \ud800",
    "s3://state/elsewhere/v1/task/d/r/t/-1/worker/k",
    {"__airflow_state_ref__": "s3://state/x"},
    {"nested": [1, [2, {"three": None}], "four"], "": {"empty": ""}},
    "x" * 300_000,
)

#: Keys that Airflow lets through, up to 512 characters.
KEYS: Final[Sequence[str]] = (
    "k",
    "K",
    "a/b",
    "a_b",
    "a%2Fb",
    "../x",
    "/",
    "//",
    "with space",
    "100%",
    "*?[a]",
    "\n\t\x00",
    "ключ-\U0001f511",
    "k.gz",
    "k.zip",
    "k.bz2",
    "~",
    "CON",
    "-",
    "key=value&x=+y",
    "'\"<>",
    "...",
    ".hidden",
    "k" * 512,
    "é" * 512,
)

#: An operation that takes longer leaves a triggerer's loop for dead.
_LIMIT: Final = 30.0


class Calls:
    """The backend's operations, each made in one of `WAYS` and given up on after 30 s.

    Raises, from each call: what the backend raises; `TimeoutError` where it did not return in time.
    """

    def __init__(self, backend: BaseStoreBackend, way: str) -> None:
        self.backend: Any = backend
        self.way = way
        self._loop = None if way == "thread" else asyncio.new_event_loop()

    def close(self) -> None:
        """Close the event loop on which the calls were made."""
        if self._loop is not None and not self._loop.is_running():
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def on(self, backend: BaseStoreBackend) -> Calls:
        """Return the same way to another backend."""
        other = Calls.__new__(Calls)
        other.__dict__ |= self.__dict__ | {"backend": backend}
        return other

    def get(self, scope: Any, key: str, **more: Any) -> Any:
        """``get`` or ``aget``."""
        return self.call("get", scope, key, **more)

    def set(self, scope: Any, key: str, value: str, **more: Any) -> None:
        """``set`` or ``aset``."""
        self.call("set", scope, key, value, **more)

    def delete(self, scope: Any, key: str, **more: Any) -> None:
        """``delete`` or ``adelete``."""
        self.call("delete", scope, key, **more)

    def clear(self, scope: Any, **more: Any) -> None:
        """``clear`` or ``aclear``."""
        self.call("clear", scope, **more)

    def store(self, scope: Any, key: str, value: Any, *, kind: str = "") -> str:
        """Call ``serialize_{task|asset}_state_store_to_ref``: the scope's own, unless ``kind`` says which."""
        kind = kind or _kind(scope)
        ref: str = self.call(f"serialize_{kind}_state_store_to_ref", value=value, key=key, scope=scope)
        return ref

    def resolve(self, scope: Any, ref: str) -> Any:
        """Call ``deserialize_{task|asset}_state_store_from_ref``, the one of the scope."""
        return self.call(f"deserialize_{_kind(scope)}_state_store_from_ref", ref)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the synchronous method ``name``, or in the way ``coroutine`` its ``a…``."""
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def call() -> None:
            try:
                outcome.set_result(self._made(name, *args, **kwargs))
            except BaseException as e:
                outcome.set_exception(e)

        # A daemon, so that a call that never returns does not keep the tests from ending.
        threading.Thread(target=call, name=f"contract-{name}", daemon=True).start()
        try:
            return outcome.result(_LIMIT)
        except concurrent.futures.TimeoutError:
            if outcome.done():
                raise
            raise TimeoutError(f"{name} did not return within {_LIMIT:g} s (way: {self.way})") from None

    def _made(self, name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.backend, name)
        if self._loop is None:
            return method(*args, **kwargs)

        async def in_place() -> Any:
            if self.way == "portal":
                await greenback.ensure_portal()
            if self.way != "coroutine":
                return method(*args, **kwargs)
            coroutine_function = getattr(self.backend, f"a{name}", None)
            if coroutine_function is not None:
                return await coroutine_function(*args, **kwargs)
            return await asyncio.to_thread(method, *args, **kwargs)

        return self._loop.run_until_complete(in_place())


class StateBackendContract:
    """Subclass it as ``Test…`` and give it a fixture ``backend``: a `BaseStoreBackend` over a store that works.

    One backend may serve all tests: each has scopes of its own. Optional attributes and fixtures:

    - ``seen_by_other_processes``: set it to ``False`` where the store is a dict of one process.
    - ``many``: how many objects the largest clear has, by default one more than an S3 listing's page.
    - fixture ``with_other_compression``: a function that returns the backend as it is after its configuration was
      changed to another compression; nothing else of this backend is used afterwards in that test.
    - fixture ``with_other_base``: the same after a change of the base URL, as the backend's documentation says to make
      one without losing state.
    """

    seen_by_other_processes: bool = True
    many: int = 1001

    @pytest.fixture(params=WAYS)
    def calls(self, request: pytest.FixtureRequest, backend: BaseStoreBackend) -> Iterator[Calls]:
        """The operations of ``backend``, in each of `WAYS`."""
        calls = Calls(backend, request.param)
        yield calls
        calls.close()

    @pytest.fixture
    def task(self) -> TaskScope:
        """A task that no other test uses."""
        return TaskScope(dag_id=f"dag-{uuid.uuid4().hex}", run_id="manual__2026-01-01T00:00:00+00:00", task_id="task")

    @pytest.fixture
    def asset(self) -> AssetScope:
        """An asset, as a worker names it, that no other test uses."""
        return AssetScope(name=f"asset-{uuid.uuid4().hex}")

    @pytest.fixture
    def with_other_compression(self) -> Callable[[], BaseStoreBackend]:
        """Skip what needs it."""
        pytest.skip("the backend's tests have no fixture with_other_compression")

    @pytest.fixture
    def with_other_base(self) -> Callable[[], BaseStoreBackend]:
        """Skip what needs it."""
        pytest.skip("the backend's tests have no fixture with_other_base")

    def test_contract_01_rows_come_back_byte_for_byte(self, calls: Calls, task: TaskScope, asset: AssetScope) -> None:
        """`BaseStoreBackend.set`: "store it verbatim so ``get`` can return it unchanged"; ``None`` if there is none."""
        for scope in (task, asset, AssetScope(asset_id=uuid.uuid4().int >> 65)):
            assert calls.get(scope, "k") is None
            for text in ('{"a":  1}', "null", '""', json.dumps("é"), '"é"', " 1 "):
                calls.set(scope, "k", text)
                assert calls.get(scope, "k") == text
            calls.clear(scope)

    def test_contract_02_every_json_value_comes_back(self, calls: Calls, task: TaskScope, asset: AssetScope) -> None:
        """`BaseStoreBackend.deserialize_…_from_ref`: "back to the actual value". Falsy values are values."""
        for scope in (task, asset):
            wrong = []
            for value in VALUES:
                found = _outcome(lambda: calls.resolve(scope, calls.store(scope, "k", value)))  # noqa: B023
                if found != value or type(found) is not type(value):
                    wrong.append((_short(value), _short(found)))
            assert not wrong, f"values and what came back: {wrong}"

    @pytest.mark.parametrize(
        "value", [math.nan, [math.inf], datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)], ids=repr
    )
    def test_contract_03_a_refused_value_changes_nothing(self, calls: Calls, task: TaskScope, value: Any) -> None:
        """The default path refuses NaN with 422, and datetimes (`airflow.sdk.api.datamodels`); hooks see them first."""
        ref = calls.store(task, "k", "before")
        refused = _refuses(lambda: calls.store(task, "k", value), TypeError, ValueError)
        assert calls.resolve(task, ref) == "before", "the earlier value is gone"
        assert refused, f"{value!r} is not refused"

    def test_contract_04_a_value_that_looks_like_airflows_marker(self, calls: Calls, asset: AssetScope) -> None:
        """`airflow.sdk.execution_time.context._unwrap_external_ref` looks for the marker in what the database has."""
        value = {"__airflow_state_ref__": "s3://state/elsewhere"}
        assert calls.resolve(asset, calls.store(asset, "k", value)) == value

    def test_contract_05_a_ref_depends_on_scope_and_key_alone(
        self, calls: Calls, task: TaskScope, asset: AssetScope
    ) -> None:
        """`BaseStoreBackend.serialize_…_to_ref`: "The returned reference must be deterministic"."""
        for scope in (task, asset):
            refs = [calls.store(scope, "k", value) for value in ("x" * 300_000, "y" * 300_000, ["z"] * 100_000)]
            assert len({ref for ref in refs if not _is_inline(ref)}) <= 1, f"refs of one key: {refs}"

    def test_contract_06_a_ref_is_a_raw_string(self, calls: Calls, task: TaskScope, asset: AssetScope) -> None:
        """`BaseStoreBackend.serialize_…_to_ref`: "return only the raw reference string"; an empty one is lost."""
        for scope in (task, asset):
            for value in ("job", ""):
                ref = calls.store(scope, "k", value)
                assert isinstance(ref, str)
                assert ref
                assert "__airflow_state_ref__" not in ref

    def test_contract_07_inline_text_is_resolved_too(self, calls: Calls, task: TaskScope, asset: AssetScope) -> None:
        """`BaseStoreBackend.serialize_…_to_ref` writes JSON text by default, and such rows stay."""
        for scope in (task, asset):
            ref = calls.store(scope, "k", "x" * 300_000)
            for value in (*VALUES, ref):
                assert calls.resolve(scope, json.dumps(value)) == value

    def test_contract_07_a_ref_is_no_json_text(self, calls: Calls, task: TaskScope) -> None:
        """Nothing but the text tells `deserialize_…_from_ref` a reference from an inline value."""
        for value in ("x" * 300_000, 1):
            ref = calls.store(task, "k", value)
            # Text that is JSON is taken for an inline value by whoever reads the row, so it must be that value.
            assert (json.loads(ref) if _is_inline(ref) else calls.resolve(task, ref)) == value

    def test_contract_08_an_inline_value_is_what_the_base_class_writes(self, calls: Calls, task: TaskScope) -> None:
        """`BaseStoreBackend.serialize_…_to_ref` defines the inline form; a later SDK may define another."""
        value: Any = {"a": [1, "é"]}
        ref = calls.store(task, "k", value)
        if not _is_inline(ref):
            pytest.skip("the backend keeps no small value inline")
        assert ref == BaseStoreBackend.serialize_task_state_store_to_ref(
            calls.backend, value=value, key="k", scope=task
        )

    def test_contract_08_a_value_that_shrinks_is_not_read_stale(self, calls: Calls, task: TaskScope) -> None:
        """`TaskStateStoreAccessor.set` keeps the last reference only; what an earlier one names must not come back."""
        large = _stored(calls, task, "k", "x" * 300_000)
        assert calls.resolve(task, calls.store(task, "k", "small")) == "small"
        calls.delete(task, "k")
        assert calls.resolve(task, large) is None

    def test_contract_09_a_ref_whose_object_is_gone(self, calls: Calls, task: TaskScope, asset: AssetScope) -> None:
        """After ``clear_on_success`` (`task_runner`) retries may read such references; raising fails them for ever."""
        for scope in (task, asset):
            ref = _stored(calls, scope, "k", "x" * 300_000)
            calls.clear(scope)
            assert calls.resolve(scope, ref) is None

    def test_contract_10_refs_outlive_a_change_of_compression(
        self, calls: Calls, task: TaskScope, with_other_compression: Callable[[], BaseStoreBackend]
    ) -> None:
        """`BaseStoreBackend.serialize_…_to_ref`: ``delete`` and ``clear`` must find the object, or it is orphaned."""
        value = ["repeated"] * 1000
        ref = calls.store(task, "k", value)
        later = calls.on(with_other_compression())
        assert later.resolve(task, ref) == value
        later.store(task, "k", "new")
        later.delete(task, "k")
        assert later.resolve(task, ref) is None, "the object written before the change was left behind by a delete"

    def test_contract_10_refs_outlive_a_change_of_base(
        self, calls: Calls, task: TaskScope, with_other_base: Callable[[], BaseStoreBackend]
    ) -> None:
        """References lie in the database for as long as Airflow keeps them, whatever the configuration is by then."""
        ref = calls.store(task, "k", "old")
        later = calls.on(with_other_base())
        found = _outcome(lambda: later.resolve(task, ref))
        assert found == "old", f"a reference from before the change gives {_short(found)}"
        assert later.resolve(task, later.store(task, "k", "new")) == "new"

    def test_contract_10_a_ref_to_elsewhere_is_refused(self, calls: Calls, task: TaskScope) -> None:
        """Users may write rows by REST and UI (`AssetStateStoreWriterKind.API`): a reference is untrusted input."""
        refs = ["file:///etc/passwd", "s3://another-bucket/x", "http://127.0.0.1/x", "/etc/passwd", "../x"]
        for ref in refs:
            assert _refuses(lambda: calls.resolve(task, ref), Exception), f"{ref} is not refused"  # noqa: B023

    def test_contract_11_operations_on_no_scope(self, calls: Calls) -> None:
        """`BaseStoreBackend`: "Implementations must handle both types"; Airflow's own raises TypeError for others."""
        for scope in (None, "dag", object(), 1):
            operations: dict[str, Callable[[], object]] = {
                "get": lambda: calls.get(scope, "k"),  # noqa: B023
                "set": lambda: calls.set(scope, "k", "1"),  # noqa: B023
                "delete": lambda: calls.delete(scope, "k"),  # noqa: B023
                "clear": lambda: calls.clear(scope),  # noqa: B023
            }
            for name, operation in operations.items():
                assert _refuses(operation, TypeError), f"{name} of {scope!r} is not refused"

    def test_contract_11_values_of_no_scope(self, calls: Calls) -> None:
        """`BaseStoreBackend`: "Implementations must handle both types"; here any error will do."""
        for scope in (None, "dag", object(), 1):
            for kind in ("task", "asset"):
                refused = _refuses(lambda: calls.store(scope, "k", 1, kind=kind), Exception)  # noqa: B023
                assert refused, f"a value of {scope!r} is not refused"

    def test_contract_12_13_a_task_is_matched_exactly(self, calls: Calls, task: TaskScope) -> None:
        """`TaskScope`: "always match on (dag_id, run_id, task_id, map_index) exactly", in retries too."""
        others = [
            _mapped(task, 0),
            _mapped(task, 1),
            _mapped(task, 10),
            TaskScope(task.dag_id, task.run_id, "task2"),
            TaskScope(task.dag_id, "manual__2026-01-02T00:00:00+00:00", task.task_id),
            TaskScope(f"{task.dag_id}2", task.run_id, task.task_id),
        ]
        if "region_id" in getattr(TaskScope, "__dataclass_fields__", ()):
            # task-sdk 1.4; the zero UUID is what earlier SDKs have.
            region: Any = {"region_id": uuid.uuid4()}
            others.append(TaskScope(task.dag_id, task.run_id, task.task_id, -1, **region))
        every = [task, *others]
        for i, scope in enumerate(every):
            calls.set(scope, "k", str(i))
        refs = [calls.store(scope, "k", i) for i, scope in enumerate(every)]
        assert [calls.resolve(scope, ref) for scope, ref in zip(every, refs, strict=True)] == list(range(len(every)))
        retry = TaskScope(task.dag_id, task.run_id, task.task_id)
        if not _is_inline(refs[0]):
            assert calls.store(retry, "k", "retry") == refs[0]
        calls.clear(task)
        assert [calls.get(scope, "k") for scope in every] == [None, *(str(i) for i in range(1, len(every)))]

    def test_contract_14_name_uri_and_id_never_collide(self, calls: Calls) -> None:
        """`AssetScope`: the server's has ``asset_id``, a worker's ``name`` or ``uri``; each is a namespace."""
        unused = str(uuid.uuid4().int >> 65)
        scopes = [AssetScope(name=unused), AssetScope(uri=unused), AssetScope(asset_id=int(unused))]
        for scope in scopes:
            calls.set(scope, "k", json.dumps(str(scope)))
        found = [calls.get(scope, "k") for scope in scopes]
        assert found == [json.dumps(str(s)) for s in scopes], "two scopes with the same identifier share a row"
        calls.clear(scopes[0])
        assert [calls.get(scope, "k") for scope in scopes] == [None, *(json.dumps(str(s)) for s in scopes[1:])]

    def test_contract_15_every_key_comes_back(self, calls: Calls, task: TaskScope) -> None:
        """`airflow.sdk.execution_time.context` and the execution API let keys of 1 to 512 characters through."""
        refs = {key: _outcome(lambda: calls.store(task, key, key)) for key in KEYS}  # noqa: B023
        found = {
            key: ref if isinstance(ref, Exception) else _outcome(lambda: calls.resolve(task, ref))  # noqa: B023
            for key, ref in refs.items()
        }
        wrong = {_short(key): _short(value) for key, value in found.items() if value != key}
        assert not wrong, f"keys, and what came of them: {wrong}"

    def test_contract_15_every_row_comes_back(self, calls: Calls, task: TaskScope) -> None:
        """The same on the server's side (`airflow.state`)."""
        for key in KEYS:
            _outcome(lambda: calls.set(task, key, json.dumps(key)))  # noqa: B023
        found = {key: _outcome(lambda: calls.get(task, key)) for key in KEYS}  # noqa: B023
        wrong = {_short(key): _short(value) for key, value in found.items() if value != json.dumps(key)}
        assert not wrong, f"keys, and what came of them: {wrong}"

    def test_contract_15_every_key_has_an_object_of_its_own(self, calls: Calls, task: TaskScope) -> None:
        """`BaseStoreBackend.delete`: "Delete a single key", also where two keys look alike."""
        refs = {key: ref for key in KEYS if isinstance(ref := _outcome(lambda: calls.store(task, key, key)), str)}  # noqa: B023
        refs = {key: ref for key, ref in refs.items() if _outcome(lambda: calls.resolve(task, ref)) == key}  # noqa: B023
        assert refs, "no key works"
        if not any(map(_is_inline, refs.values())):
            assert len(set(refs.values())) == len(refs)
        # Not one by one, which would take thousands of calls: of two keys that share an object, whose references differ
        # all the same, one half has the one and some half the other.
        for step in (2, 3, 1):
            gone = list(refs)[::step]
            for key in gone:
                calls.delete(task, key)
            for key in gone:
                ref = refs.pop(key)
                assert _is_inline(ref) or calls.resolve(task, ref) is None
            assert all(calls.resolve(task, ref) == key for key, ref in refs.items())

    def test_contract_15_ids_of_every_kind(self, calls: Calls) -> None:
        """Airflow's models take ids of 250 characters, and assets' names and URIs of any; an S3 key has 1,024 bytes."""
        long = "/\U0001f4a5" * 125
        scopes = [TaskScope(long, long, long, 2**31 - 1), TaskScope(long, long, long[:-1] + "x", 2**31 - 1)]
        scopes += [TaskScope("../..", ".", "..", 0), TaskScope("..", "../.", "..", 0)]
        assets = [
            AssetScope(name="a/b"),
            AssetScope(uri="s3://bucket/a?b=c#d"),
            AssetScope(name=long),
            AssetScope(uri=long + "uri"),
        ]
        every: list[Any] = [*scopes, *assets]
        for scope in every:
            calls.clear(scope)
        found = []
        for i, scope in enumerate(every):
            found.append(_outcome(lambda: calls.resolve(scope, calls.store(scope, "k" * 512, i))))  # noqa: B023
        wrong = {
            _short(str(scope)): _short(value)
            for i, (scope, value) in enumerate(zip(every, found, strict=True))
            if value != i
        }
        assert not wrong, f"scopes, and what came of them: {wrong}"
        for scope in every:
            calls.clear(scope)

    @pytest.mark.parametrize("key", ["", ".", "..", "k" * 513], ids=["empty", "dot", "dots", "513"])
    def test_contract_15_a_refused_key_changes_nothing(self, calls: Calls, task: TaskScope, key: str) -> None:
        """In Airflow's URLs ``.`` and ``..`` collapse, after the backend has written: refuse what can't be a key."""
        ref = calls.store(task, "k", "before")
        calls.set(task, "k", '"before"')
        operations: dict[str, Callable[[], object]] = {
            "serialize": lambda: calls.store(task, key, "x"),
            "set": lambda: calls.set(task, key, '"x"'),
        }
        accepted = [name for name, operation in operations.items() if not _refuses(operation, Exception)]
        assert calls.resolve(task, ref) == "before"
        assert calls.get(task, "k") == '"before"'
        assert not accepted, f"{accepted} take the key {_short(key)}"

    def test_contract_16_a_dag_called_assets(self, calls: Calls) -> None:
        """`TaskScope` and `AssetScope` are namespaces of their own, whatever words a backend's layout reserves."""
        dags = [TaskScope(word, "name", "worker", 0) for word in ("assets", "asset", "task", "v1")]
        assets = [AssetScope(name=word) for word in ("assets", "task", "name")]
        every: list[Any] = [*dags, *assets]
        refs = {i: calls.store(scope, "k", i) for i, scope in enumerate(every)}
        for i, scope in enumerate(every):
            calls.clear(scope)
            ref = refs.pop(i)
            assert _is_inline(ref) or calls.resolve(scope, ref) is None
            left = {n: calls.resolve(every[n], ref) for n, ref in refs.items()}
            assert left == {n: n for n in refs}, f"clearing {scope} took more with it"

    def test_contract_16_a_dag_whose_run_is_called_as_an_asset(self, calls: Calls) -> None:
        """As above: the shortest path of a task must not lead into an asset's."""
        name = uuid.uuid4().hex
        task = TaskScope("assets", name, "t", 0)
        asset = AssetScope(name=name)
        calls.set(task, "k", '"task"')
        calls.set(asset, "k", '"asset"')
        outcome = _outcome(lambda: calls.clear(asset))
        found = calls.get(task, "k"), calls.get(asset, "k")
        calls.clear(task)
        assert outcome is None, f"clearing the asset beside the DAG fails: {_short(outcome)}"
        assert found == ('"task"', None)

    def test_contract_17_set_overwrites(self, calls: Calls, task: TaskScope) -> None:
        """`BaseStoreBackend.set`: "Write or overwrite"."""
        calls.store(task, "k", "x" * 1000)
        assert calls.resolve(task, calls.store(task, "k", "short")) == "short"
        calls.set(task, "k", "x" * 1000)
        calls.set(task, "k", '"short"')
        assert calls.get(task, "k") == '"short"'

    def test_contract_17_a_set_is_seen_by_other_processes(self, backend: BaseStoreBackend, task: TaskScope) -> None:
        """Retries run in processes of their own (`task_runner`), and read what the first try stored."""
        if not self.seen_by_other_processes:
            pytest.skip("the store is one process's")
        _in_forked_process(lambda: backend.set(task, "k", '"child"'))
        assert backend.get(task, "k") == '"child"'

    def test_contract_18_delete_touches_its_key_alone(self, calls: Calls, task: TaskScope) -> None:
        """`BaseStoreBackend.delete`: "Delete a single key. No-op if the key does not exist"."""
        calls.delete(task, "never set")
        refs = {key: calls.store(task, key, key) for key in ("k", "k2", "kk", "k/1")}
        calls.delete(task, "k")
        calls.delete(task, "k")
        inline = _is_inline(refs["k"])
        found = {key: calls.resolve(task, ref) for key, ref in refs.items()}
        assert found == {"k": "k" if inline else None, "k2": "k2", "kk": "kk", "k/1": "k/1"}
        for key in ("k", "k2"):
            calls.set(task, key, '"row"')
        calls.delete(task, "k")
        assert (calls.get(task, "k"), calls.get(task, "k2")) == (None, '"row"')

    def test_contract_19_clear_takes_its_map_index_alone(self, calls: Calls, task: TaskScope) -> None:
        """`BaseStoreBackend.clear`: "only keys for the exact map_index on the scope are cleared"."""
        scopes = [_mapped(task, 1), _mapped(task, 10), _mapped(task, -1), _mapped(task, 1, "task2")]
        rows = [(scope, key) for scope in scopes for key in ("a", "b/c")]
        for scope, key in rows:
            calls.set(scope, key, json.dumps(key))
        calls.clear(_mapped(task, 2))
        assert None not in [calls.get(scope, key) for scope, key in rows]
        calls.clear(scopes[0])
        assert [calls.get(scope, key) for scope, key in rows] == [None, None, *(json.dumps(key) for _, key in rows[2:])]
        calls.clear(scopes[0])

    def test_contract_19_clear_takes_values_too(self, calls: Calls, task: TaskScope, asset: AssetScope) -> None:
        """`TaskStateStoreAccessor.clear` calls the worker's backend for the objects that it has stored."""
        for scope in (task, asset):
            refs = [_stored(calls, scope, key, "x" * 300_000) for key in ("a", "b/c")]
            calls.clear(scope)
            assert [calls.resolve(scope, ref) for ref in refs] == [None, None]

    def test_contract_19_clear_of_all_map_indices(self, calls: Calls, task: TaskScope, asset: AssetScope) -> None:
        """`BaseStoreBackend.clear`: "state is wiped across every mapped instance"; no effect on an `AssetScope`."""
        scopes = [_mapped(task, index) for index in (-1, 0, 1, 10)]
        others: list[Any] = [_mapped(task, 0, "task2"), AssetScope(name=f"{asset.name}2")]
        for scope in (*scopes, *others, asset):
            calls.set(scope, "k", "1")
        calls.clear(_mapped(task, 0), all_map_indices=True)
        assert [calls.get(scope, "k") for scope in (*scopes, *others, asset)] == [None] * 4 + ["1"] * 3
        calls.clear(asset, all_map_indices=True)
        assert [calls.get(scope, "k") for scope in (*others, asset)] == ["1", "1", None]

    def test_contract_19_clear_beyond_a_page_of_a_listing(self, backend: BaseStoreBackend, task: TaskScope) -> None:
        """`BaseStoreBackend.clear`: "Delete all keys under the given scope", also beyond S3's 1,000 of a page."""

        async def fill() -> None:
            slots = asyncio.Semaphore(16)

            async def one(i: int) -> None:
                async with slots:
                    await backend.aset(task, f"k{i}", "1")

            await asyncio.gather(*map(one, range(self.many)))

        asyncio.run(fill())
        backend.set(_mapped(task, 0), "k", '"kept"')
        backend.clear(task)
        assert [backend.get(task, f"k{i}") for i in (0, self.many - 2, self.many - 1)] == [None] * 3
        assert backend.get(_mapped(task, 0), "k") == '"kept"'

    def test_contract_20_session_and_expiry_are_accepted(self, calls: Calls, task: TaskScope) -> None:
        """`BaseStoreBackend`: "Custom backends … should accept session as a keyword argument and ignore it"."""
        session, expiry = object(), datetime.datetime.now(tz=datetime.timezone.utc) + datetime.timedelta(days=1)
        calls.set(task, "k", "1", expires_at=expiry, session=session)
        assert calls.get(task, "k", session=session) == "1"
        calls.delete(task, "k", session=session)
        calls.clear(task, all_map_indices=False, session=session)
        assert calls.get(task, "k") is None

    def test_contract_21_coroutines_and_methods_see_one_store(
        self, backend: BaseStoreBackend, task: TaskScope, asset: AssetScope
    ) -> None:
        """`BaseStoreBackend`: ``aget`` is the "Async variant of ``get``", and so on."""
        methods, coroutines = Calls(backend, "thread"), Calls(backend, "coroutine")
        try:
            for scope in (task, asset):
                for one, other in ((methods, coroutines), (coroutines, methods)):
                    one.set(scope, "k", '"row"')
                    assert other.get(scope, "k") == '"row"'
                    other.delete(scope, "k")
                    assert one.get(scope, "k") is None
                    ref = one.store(scope, "k", [1])
                    assert other.store(scope, "k", [1]) == ref
                    assert other.resolve(scope, ref) == [1]
                    other.set(scope, "k2", "2")
                    other.clear(scope)
                    assert one.get(scope, "k2") is None
        finally:
            coroutines.close()

    def test_contract_22_the_first_use_may_be_on_a_loop(self, backend: BaseStoreBackend, task: TaskScope) -> None:
        """`AssetStateStoreAccessor.aset` and ``aget`` call the synchronous hooks on the running loop's thread (#72129).

        In a forked process, so that nothing that an earlier test has used is in place there.
        """

        def first() -> None:
            calls = Calls(backend, "loop")
            assert calls.resolve(task, calls.store(task, "k", "on a loop")) == "on a loop"

        _in_forked_process(first)

    def test_contract_24_cleanup_leaves_what_has_not_expired(self, backend: BaseStoreBackend, task: TaskScope) -> None:
        """`BaseStoreBackend.cleanup`: "Remove expired and orphaned state records"; what has no expiry stays."""
        backend.set(task, "k", "1", expires_at=None)
        # `BaseStoreBackend.set`: "an absolute UTC datetime after which the row may be deleted", and not before.
        tomorrow = datetime.datetime.now(tz=datetime.timezone.utc) + datetime.timedelta(days=1)
        backend.set(task, "k2", "2", expires_at=tomorrow)
        backend.cleanup()
        assert (backend.get(task, "k"), backend.get(task, "k2")) == ("1", "2")

    def test_contract_25_it_is_made_without_arguments(self, backend: BaseStoreBackend) -> None:
        """`context._get_worker_state_store_backend`: ``import_string(path)()``, in a triggerer on the loop's thread."""
        kind = type(backend)
        if "<locals>" in kind.__qualname__:
            pytest.skip("the class can't be imported by its name")
        assert getattr(importlib.import_module(kind.__module__), kind.__qualname__) is kind

        def make() -> None:
            threads, descriptors = threading.active_count(), _descriptors()
            assert isinstance(kind(), kind)
            assert (threading.active_count(), _descriptors()) == (threads, descriptors), "making it opens something"

        # Where no other thread opens or closes anything meanwhile.
        _in_forked_process(make)

    def test_contract_26_it_works_in_a_forked_process(self, backend: BaseStoreBackend, task: TaskScope) -> None:
        """`airflow.sdk.execution_time.supervisor` forks a process for each task, from one that may have used it."""
        backend.set(task, "k", '"parent"')

        def child() -> None:
            ref = backend.serialize_task_state_store_to_ref(value="child", key="k", scope=task)
            assert backend.deserialize_task_state_store_from_ref(ref) == "child"
            assert backend.get(task, "k") is not None
            backend.delete(task, "k")
            assert backend.get(task, "k") is None

        _in_forked_process(child)
        backend.set(task, "k", '"again"')
        assert backend.get(task, "k") == '"again"'

    def test_contract_27_many_threads_use_it_at_once(self, backend: BaseStoreBackend, task: TaskScope) -> None:
        """`airflow.state` calls synchronous methods from the API server's thread pool."""
        together = threading.Barrier(8)

        def use(i: int) -> list[str | None]:
            together.wait(_LIMIT)
            for _ in range(3):
                backend.set(task, f"k{i}", str(i))
                backend.set(task, "shared", str(i))
            return [backend.get(task, f"k{i}"), backend.get(task, "shared")]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(use, range(8)))
        assert [own for own, _ in found] == [str(i) for i in range(8)]
        assert {shared for _, shared in found} <= {str(i) for i in range(8)}

    def test_contract_27_the_server_takes_it(
        self, backend: BaseStoreBackend, task: TaskScope, asset: AssetScope
    ) -> None:
        """`airflow.state` checks for airflow-core's own copy of `BaseStoreBackend`, and passes its copy's scopes."""
        core = pytest.importorskip("airflow._shared.state", reason="airflow-core is not installed")
        assert isinstance(backend, core.BaseStoreBackend), "it is no subclass of airflow-core's BaseStoreBackend"
        core_task = core.TaskScope(task.dag_id, task.run_id, task.task_id, task.map_index)
        backend.set(core_task, "k", '"by the server"')
        assert backend.get(task, "k") == '"by the server"'
        core_asset = core.AssetScope(asset_id=uuid.uuid4().int >> 65)
        backend.set(core_asset, "k", "1")
        backend.clear(core_asset)
        assert backend.get(AssetScope(asset_id=core_asset.asset_id), "k") is None


class SlowStoreContract:
    """What shows on a slow store only. Subclass it as ``Test…`` with two fixtures.

    - ``backend``: as for `StateBackendContract`, but with the shortest deadline it has, so that tests are quick.
    - ``slowed``: a function of a number of seconds that returns a context manager, in which each access to the store
      takes so long; `math.inf` means that the store never answers.
    """

    #: How long an access takes, and how long a loop may stand still meanwhile.
    seconds: float = 0.5
    still: float = 0.25

    @pytest.fixture
    def task(self) -> TaskScope:
        """A task that no other test uses."""
        return TaskScope(dag_id=f"dag-{uuid.uuid4().hex}", run_id="manual__2026-01-01T00:00:00+00:00", task_id="task")

    def test_contract_21_coroutines_do_not_block_their_loop(
        self, backend: Any, task: TaskScope, slowed: Callable[[float], AbstractContextManager[object]]
    ) -> None:
        """`BaseStoreBackend`'s coroutines are awaited on loops that serve others meanwhile."""
        ref = backend.serialize_task_state_store_to_ref(value="x", key="k", scope=task)
        calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "aset": lambda: backend.aset(task, "k", "1"),
            "aget": lambda: backend.aget(task, "k"),
            "adelete": lambda: backend.adelete(task, "k"),
            "aclear": lambda: backend.aclear(task),
        }
        if hasattr(backend, "adeserialize_task_state_store_from_ref"):
            calls["adeserialize"] = lambda: backend.adeserialize_task_state_store_from_ref(ref)
        with slowed(self.seconds):
            gaps = {name: _worst_gap(call) for name, call in calls.items()}
        assert {name: gap for name, gap in gaps.items() if gap > self.still} == {}

    def test_contract_29_a_hook_in_a_task_with_a_portal_lets_the_loop_go_on(
        self, backend: Any, task: TaskScope, slowed: Callable[[float], AbstractContextManager[object]]
    ) -> None:
        """`TriggerRunner` gives each trigger's task a greenback portal, so a hook can await in place."""

        async def hook() -> None:
            await greenback.ensure_portal()
            backend.serialize_task_state_store_to_ref(value="x" * 300_000, key="k", scope=task)

        with slowed(self.seconds):
            gap = _worst_gap(hook)
        assert gap < self.still, f"the loop stood still for {gap:.1f} s"

    @pytest.mark.parametrize("way", WAYS)
    def test_contract_30_every_operation_has_a_deadline(
        self, backend: Any, task: TaskScope, slowed: Callable[[float], AbstractContextManager[object]], way: str
    ) -> None:
        """Airflow takes a triggerer for dead whose loop stands still for 30 s (`job_heartbeat`)."""
        ref = backend.serialize_task_state_store_to_ref(value="x" * 300_000, key="k", scope=task)
        operations: dict[str, Callable[[Calls], object]] = {
            "get": lambda calls: calls.get(task, "k"),
            "set": lambda calls: calls.set(task, "k", "1"),
            "delete": lambda calls: calls.delete(task, "k"),
            "clear": lambda calls: calls.clear(task),
            "serialize": lambda calls: calls.store(task, "k", "x" * 300_000),
            "deserialize": lambda calls: calls.resolve(task, ref),
        }

        def failed(operation: Callable[[Calls], object]) -> str:
            calls = Calls(backend, way)
            begun = time.monotonic()
            outcome = _outcome(lambda: operation(calls))
            if time.monotonic() - begun >= _LIMIT:
                return f"did not end within {_LIMIT:g} s"
            calls.close()
            return "" if isinstance(outcome, Exception) else "did not fail"

        with slowed(math.inf), ThreadPoolExecutor(len(operations)) as pool:
            said = dict(zip(operations, pool.map(failed, operations.values()), strict=True))
        wrong = {name: word for name, word in said.items() if word}
        assert not wrong, f"with a store that never answers: {wrong}"


def _kind(scope: Any) -> str:
    return "asset" if isinstance(scope, AssetScope) else "task"


def _mapped(task: TaskScope, index: int, task_id: str = "task") -> TaskScope:
    return TaskScope(task.dag_id, task.run_id, task_id, index)


def _stored(calls: Calls, scope: Any, key: str, value: Any) -> str:
    """Store a large value, see that its reference leads to it, and return the reference. Skip where it is inline."""
    ref = calls.store(scope, key, value)
    assert calls.resolve(scope, ref) == value
    if _is_inline(ref):
        pytest.skip("the backend keeps large values inline too, so there is no object that could be left behind")
    return ref


def _is_inline(ref: str) -> bool:
    try:
        json.loads(ref)
    except ValueError:
        return False
    return True


def _outcome(call: Callable[[], Any]) -> Any:
    """Return the call's result or, as a value, the error that it raised."""
    try:
        return call()
    except Exception as e:
        return e


def _refuses(call: Callable[[], object], *kinds: type[Exception]) -> bool:
    # A call that never returns refuses nothing.
    outcome = _outcome(call)
    return isinstance(outcome, kinds) and not isinstance(outcome, TimeoutError)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-10:]}"


def _descriptors() -> int | None:
    directory = Path("/proc/self/fd")
    return len(list(directory.iterdir())) if directory.is_dir() else None


def _worst_gap(call: Callable[[], Coroutine[Any, Any, object]]) -> float:
    """Make the call on a new loop and return how long the loop stood still at the worst, in seconds."""

    async def measured() -> float:
        async with standstill() as found:
            # A deadline may be shorter than what the store takes, on a machine that is slow itself.
            with contextlib.suppress(TimeoutError):
                await call()
        return found.seconds

    return asyncio.run(measured())


def _in_forked_process(call: Callable[[], object]) -> None:
    """Make the call in a forked process that ends as Airflow's do; fail with what it raised, or if it does not end."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 and later warn of forks beside threads; Airflow does just that.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        message = "it ended early"
        try:
            call()
            message = ""
        except BaseException as e:
            message = f"{type(e).__name__}: {e}"
        finally:
            os.write(writing, (message or "done").encode(errors="replace")[:4000])
            os._exit(0)
    os.close(writing)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(os.read(reading, 4000)), daemon=True)
    reader.start()
    reader.join(_LIMIT)
    if not said:
        os.kill(child, 9)
        reader.join()
    os.waitpid(child, 0)
    os.close(reading)
    text = said[0].decode() if said[0] else f"it did not end within {_LIMIT:g} s"
    assert text == "done", f"in the forked process: {text}"
