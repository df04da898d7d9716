"""Metrics and spans of the operations, as Airflow's own loggers and OpenTelemetry's own providers receive them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk._shared.observability.metrics.otel_logger import SafeOtelLogger
from airflow.sdk._shared.observability.metrics.statsd_logger import SafeStatsdLogger
from airflow.sdk.observability import stats, trace
from airflow.sdk.state import TaskScope
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from async_state import AsyncStateBackend, Settings, StateStore, compat, telemetry
from async_state.errors import CorruptObjectError, MissingObjectError, StoreError, StoreTimeoutError, UntrustedRefError
from async_state.testing import FakeS3, faults
from tests.programs.common import fork, outcome

PAGE = Path(__file__).parents[1] / "docs" / "telemetry.md"

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    telemetry.flush()
    stats.initialize(factory=NoStatsLogger, export_legacy_names=False)


class Metrics:
    """What Airflow's logger for OpenTelemetry has collected."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def points(self) -> dict[tuple[str, str, str], tuple[float, int]]:
        """Return sum and count by name, scheme and outcome."""
        telemetry.flush(30)
        data = self.reader.get_metrics_data()
        found: dict[tuple[str, str, str], tuple[float, int]] = {}
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        for metric in metrics:
            for point in metric.data.data_points:
                attributes: dict[str, Any] = dict(point.attributes or {})
                operation = attributes.pop("operation", "")
                assert metric.name.startswith(f"airflow.async_state.{operation}")
                key = (metric.name, attributes.pop("scheme", ""), attributes.pop("outcome", ""))
                assert not attributes
                sum_: Any = getattr(point, "sum", getattr(point, "value", None))
                found[key] = (sum_, getattr(point, "count", 1))
        return found


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    collected = Metrics()
    logger: Any = SafeOtelLogger(collected.provider)
    stats.initialize(factory=lambda: logger, export_legacy_names=True)
    yield collected
    collected.provider.shutdown()


class Broken(SpanProcessor):  # type: ignore[misc]
    """A processor of spans, of which anybody may add some, that fails when it is told to."""

    fails = ""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.fails == "on_start" and span.name.startswith("async_state."):
            raise RuntimeError("no spans today")

    def on_end(self, span: ReadableSpan) -> None:
        if self.fails == "on_end" and span.name.startswith("async_state."):
            raise RuntimeError("no spans today")


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Receives the spans of this process, of which OpenTelemetry sets the provider once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(Broken())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def every_operation(backend: AsyncStateBackend, task: TaskScope) -> None:
    backend.set(task, "secret-key", '"secret-value"')
    backend.get(task, "secret-key")
    ref = backend.serialize_task_state_store_to_ref(value="secret-value", key="secret-key", scope=task)
    backend.deserialize_task_state_store_from_ref(ref)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compat, "worker_backend", lambda: backend)
        state = StateStore(task)
        state.update("secret-key", lambda value: value)
        state.keys()
    backend.purge_task_state(ref)
    backend.delete(task, "secret-key")
    backend.clear(task)
    backend.cleanup()


#: In the order of the spans. By scope, an update asks whether the key exists before it writes.
OPERATIONS = [
    "set",
    "get",
    "serialize",
    "deserialize",
    "exists",
    "update",
    "keys",
    "purge",
    "delete",
    "clear",
    "cleanup",
]
#: Of those, which read or write objects.
CONTENT = ("set", "get", "serialize", "deserialize", "update")


def test_the_metrics_of_every_operation(metrics: Metrics, opened: BackendOf, task: TaskScope) -> None:
    began = time.monotonic()
    every_operation(opened(Settings(url=f"memory://{task.dag_id}")), task)
    most = (time.monotonic() - began) * 1000
    points = metrics.points()
    timers = {f"airflow.async_state.{name}.duration" for name in OPERATIONS}
    counters = {f"airflow.async_state.{name}.bytes" for name in CONTENT}
    assert set(points) == {(name, "memory", "ok") for name in timers | counters}
    assert all(points[name, "memory", "ok"][1] == 1 for name in timers)
    # In milliseconds, as Airflow's other timers.
    alone = timers - {"airflow.async_state.exists.duration"}  # which is part of the update
    assert 0 < sum(points[name, "memory", "ok"][0] for name in alone) < most
    size = len('"secret-value"')
    assert [points[f"airflow.async_state.{name}.bytes", "memory", "ok"][0] for name in ("set", "get")] == [size] * 2
    assert points["airflow.async_state.serialize.bytes", "memory", "ok"][0] >= size
    # An update reads and writes.
    assert points["airflow.async_state.update.bytes", "memory", "ok"][0] >= 2 * size


def test_what_is_declared_is_what_is_measured() -> None:
    assert sorted(telemetry.OPERATIONS) == sorted(OPERATIONS)


def test_the_page_names_what_is_sent() -> None:
    """Each span, timer and counter, and nothing else."""
    named = re.findall(r"`(async_state\.[a-z_.]+)`", PAGE.read_text())
    sent = [f"async_state.{name}{kind}" for name in OPERATIONS for kind in ("", ".duration", ".errors")]
    sent += [f"async_state.{name}.bytes" for name in CONTENT]
    assert set(named) == {*sent, "async_state.telemetry.dropped"}


@pytest.fixture
def state(metrics: Metrics, opened: BackendOf, monkeypatch: pytest.MonkeyPatch, task: TaskScope) -> StateStore:
    """State by scope, in which a task has set ``k`` to 0."""
    backend = opened(Settings(url=f"memory://{task.dag_id}"))
    monkeypatch.setattr(compat, "worker_backend", lambda: backend)
    backend.serialize_task_state_store_to_ref(value=0, key="k", scope=task)
    return StateStore(task)


def test_state_by_scope_is_measured(metrics: Metrics, state: StateStore) -> None:
    """What a trigger does to its task's state, beside what `every_operation` does."""
    state.set("k", 2)
    assert state.get("k") == 2
    points = metrics.points()
    counts = {
        name: points[f"airflow.async_state.{name}.duration", "memory", "ok"][1] for name in ("exists", *CONTENT[2:4])
    }
    assert counts == {"exists": 1, "serialize": 2, "deserialize": 1}


def test_an_update_is_one_operation_however_often_it_is_tried(metrics: Metrics, state: StateStore) -> None:
    tries: list[int] = []

    def meet_others(value: Any) -> Any:
        tries.append(value)
        if len(tries) < 3:
            state.set("k", 10 * len(tries))
        return value + 1

    assert state.update("k", meet_others) == 21
    with pytest.raises(ZeroDivisionError):
        state.update("k", lambda value: value // 0)
    points = metrics.points()
    assert tries == [0, 10, 20]
    assert points["airflow.async_state.update.duration", "memory", "ok"][1] == 1
    assert points["airflow.async_state.update.errors", "memory", "ZeroDivisionError"][0] == 1


def test_errors_are_told_by_their_class(
    metrics: Metrics, opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope
) -> None:
    backend = opened(s3_settings(max_attempts=1))
    ref = backend.serialize_task_state_store_to_ref(value=1, key="k", scope=task)
    with moto.failing(faults.error(503, "ServiceUnavailable")):
        for _ in range(2):
            with pytest.raises(StoreError):
                backend.deserialize_task_state_store_from_ref(ref)
    with pytest.raises(TypeError):
        backend.get(None, "k")  # type: ignore[arg-type]
    # A reference that is refused is no operation of the store.
    with pytest.raises(UntrustedRefError):
        backend.deserialize_task_state_store_from_ref("s3://elsewhere/k")
    points = metrics.points()
    assert points["airflow.async_state.deserialize.errors", "s3", "StoreUnavailableError"][0] == 2
    assert points["airflow.async_state.deserialize.duration", "s3", "StoreUnavailableError"][1] == 2
    assert points["airflow.async_state.get.errors", "s3", "InvalidScopeError"][0] == 1
    assert [key for key in points if key[0].endswith(".errors") and key[2] == "ok"] == []
    assert ("airflow.async_state.serialize.duration", "s3", "ok") in points


@pytest.mark.parametrize("on_missing", ["none", "raise"])
def test_a_value_that_is_gone_is_told(
    metrics: Metrics, spans: InMemorySpanExporter, opened: BackendOf, task: TaskScope, on_missing: str
) -> None:
    """A rule that deletes old objects shows by it. A retry after ``clear_on_success`` reads such references, too."""
    backend = opened(Settings(url=f"memory://{task.dag_id}", on_missing=on_missing))
    ref = backend.serialize_task_state_store_to_ref(value=1, key="k", scope=task)
    backend.purge_task_state(ref)
    with under_a_task(), contextlib.suppress(MissingObjectError):
        assert backend.deserialize_task_state_store_from_ref(ref) is None
    points = metrics.points()
    assert points["airflow.async_state.deserialize.duration", "memory", "missing"][1] == 1
    assert not [key for key in points if key[0].endswith(".errors")]
    span = spans.get_finished_spans()[0]
    assert (span.attributes or {})["outcome"] == "missing"
    assert span.status.status_code is StatusCode.UNSET


def test_a_value_that_stays_inline_in_an_outage_is_an_error(
    metrics: Metrics, opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope
) -> None:
    backend = opened(s3_settings(max_attempts=1, outage_inline_threshold=100))
    with moto.failing(faults.error(503, "ServiceUnavailable")):
        assert backend.serialize_task_state_store_to_ref(value=1, key="k", scope=task) == "1"
    assert metrics.points()["airflow.async_state.serialize.errors", "s3", "StoreUnavailableError"][0] == 1


@pytest.mark.anyio
async def test_waiting_for_a_slot_counts_and_a_cancelled_operation_is_no_error(
    metrics: Metrics, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope
) -> None:
    async with AsyncStateBackend(s3_settings(max_concurrency=1, timeout=20)) as backend:
        await backend.aget(task, "k")
        arrived = anyio.Event()
        loop_token = anyio.lowlevel.current_token()
        release = threading.Event()

        def hold(_: object) -> None:
            anyio.from_thread.run_sync(arrived.set, token=loop_token)
            release.wait(30)

        moto.intercept = hold
        async with anyio.create_task_group() as group:
            group.start_soon(backend.aget, task, "k")
            await arrived.wait()
            group.cancel_scope.cancel()
        moto.intercept = None
        release.set()
    points = await anyio.to_thread.run_sync(metrics.points)
    assert points["airflow.async_state.get.duration", "s3", "cancelled"][1] == 1
    assert not [key for key in points if key[0].endswith(".errors")]


@contextmanager
def under_a_task() -> Iterator[Any]:
    """As the task runner: a span that the task's code finds in its context."""
    with trace.get_tracer("airflow.sdk.execution_time.task_runner").start_as_current_span("worker.task") as span:
        yield span


def test_the_spans_of_every_operation(spans: InMemorySpanExporter, opened: BackendOf, task: TaskScope) -> None:
    backend = opened(Settings(url=f"memory://{task.dag_id}"))
    with under_a_task() as parent:
        every_operation(backend, task)
    *found, _ = spans.get_finished_spans()
    assert [span.name for span in found] == [f"async_state.{name}" for name in OPERATIONS]
    for span in found:
        assert span.parent is not None
        assert span.parent.span_id == parent.get_span_context().span_id
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
        assert {"scheme": "memory", "outcome": "ok"}.items() <= dict(span.attributes or {}).items()
        assert set(span.attributes or {}) == {"scheme", "outcome", "bytes"}
        assert "secret" not in span.to_json()
        assert task.dag_id not in span.to_json()


@pytest.mark.anyio
async def test_spans_of_coroutines_are_under_their_own_task(spans: InMemorySpanExporter, task: TaskScope) -> None:
    async def one(i: int) -> None:
        with under_a_task():
            await backend.aset(task, f"k{i}", "1")

    async with (
        AsyncStateBackend(Settings(url=f"memory://{task.dag_id}")) as backend,
        anyio.create_task_group() as group,
    ):
        for i in range(5):
            group.start_soon(one, i)
    found = spans.get_finished_spans()
    parents = {span.context.span_id for span in found if span.name == "worker.task"}
    of_ours = [span for span in found if span.name == "async_state.set"]
    assert {span.parent.span_id for span in of_ours if span.parent} == parents
    assert len(parents) == len(of_ours) == 5


def test_a_span_of_a_failure_names_its_class_alone(
    spans: InMemorySpanExporter, opened: BackendOf, tmp_path: Path, task: TaskScope
) -> None:
    backend = opened(Settings(url=tmp_path.as_uri()))
    ref = backend.serialize_task_state_store_to_ref(value=1, key="secret", scope=task)
    next(file for file in tmp_path.rglob("*") if file.is_file()).write_bytes(b"\xff")
    with under_a_task(), pytest.raises(CorruptObjectError):
        backend.deserialize_task_state_store_from_ref(ref)
    span = spans.get_finished_spans()[0]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "CorruptObjectError")
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("fails", ["on_start", "on_end"])
def test_spans_that_fail_fail_no_operation(
    spans: InMemorySpanExporter,
    opened: BackendOf,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: TaskScope,
    fails: str,
) -> None:
    monkeypatch.setattr(Broken, "fails", fails)
    monkeypatch.setattr(telemetry, "_warned_of_spans", False)
    backend = opened(Settings(url=f"memory://{task.dag_id}"))
    with under_a_task():
        every_operation(backend, task)
    assert [record.message for record in caplog.records] == [
        "Spans of state can't be made; this is said once: RuntimeError('no spans today')"
    ]


def test_no_span_without_one_that_records(spans: InMemorySpanExporter, opened: BackendOf, task: TaskScope) -> None:
    backend = opened(Settings(url=f"memory://{task.dag_id}"))
    every_operation(backend, task)
    not_sampled = NonRecordingSpan(SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(0)))
    with trace.use_span(not_sampled):
        every_operation(backend, task)
    assert spans.get_finished_spans() == ()


def test_nothing_is_measured_where_nothing_is_on(opened: BackendOf, task: TaskScope) -> None:
    stats.initialize(factory=NoStatsLogger, export_legacy_names=True)
    assert telemetry.start("get", "s3://bucket") is None
    every_operation(opened(Settings(url=f"memory://{task.dag_id}")), task)


class Recorder(NoStatsLogger):
    """Stands for a logger of metrics whose sending can be held up, which no real one lets a test do."""

    threads: set[int] = set()  # noqa: RUF012
    sent: Counter[str] = Counter()  # noqa: RUF012
    entered = threading.Event()
    go_on = threading.Event()
    error: Exception | None = None

    @classmethod
    def reset(cls, *, held: bool = False) -> None:
        cls.threads, cls.sent, cls.error = set(), Counter(), None
        cls.entered, cls.go_on = threading.Event(), threading.Event()
        if not held:
            cls.go_on.set()
        stats.initialize(factory=cls, export_legacy_names=False)

    @classmethod
    def timing(cls, stat: str, dt: Any, **_: Any) -> None:
        cls.entered.set()
        assert cls.go_on.wait(30)
        if cls.error:
            raise cls.error
        cls.threads.add(threading.get_ident())
        cls.sent[stat] += 1

    @classmethod
    def incr(cls, stat: str, count: int = 1, *_: Any, **__: Any) -> None:
        cls.sent[stat] += count


@pytest.mark.anyio
async def test_nobody_waits_for_metrics_that_are_sent(task: TaskScope) -> None:
    Recorder.reset(held=True)
    async with AsyncStateBackend(Settings(url=f"memory://{task.dag_id}")) as backend:
        await backend.aset(task, "k", "1")
        assert await anyio.to_thread.run_sync(Recorder.entered.wait, 30)
        assert backend.get(task, "k") == "1" == await backend.aget(task, "k")
    Recorder.go_on.set()
    await anyio.to_thread.run_sync(telemetry.flush, 30)
    assert Recorder.sent["async_state.set.duration"] == 1
    assert Recorder.sent["async_state.get.duration"] == 2
    assert threading.get_ident() not in Recorder.threads
    assert len(Recorder.threads) == 1


def test_what_finds_the_queue_full_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "QUEUE_SIZE", 3)
    Recorder.reset(held=True)

    def measure() -> None:
        measurement = telemetry.start("get", "s3://bucket")
        assert measurement is not None
        measurement.end("ok", 0)

    measure()
    assert Recorder.entered.wait(30)
    for _ in range(10):
        measure()
    Recorder.go_on.set()
    telemetry.flush(30)
    assert Recorder.sent == {"async_state.get.duration": 4, "async_state.telemetry.dropped": 7}


def test_a_logger_that_fails_is_told_once(task: TaskScope, opened: BackendOf, caplog: pytest.LogCaptureFixture) -> None:
    Recorder.reset()
    Recorder.error = OSError("no route to host")
    telemetry.flush(30)
    telemetry._sender = None  # whoever warned before
    every_operation(opened(Settings(url=f"memory://{task.dag_id}")), task)
    telemetry.flush(30)
    assert [record.message for record in caplog.records if "no route to host" in record.message] == [
        "Metrics of state can't be sent; this is said once: OSError('no route to host')"
    ]


def test_without_airflows_module(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setitem(sys.modules, "airflow.sdk.observability", None)
    telemetry._airflow.cache_clear()
    try:
        assert telemetry.start("get", "s3://bucket") is None
    finally:
        telemetry._airflow.cache_clear()
    assert "airflow.sdk.observability can't be used" in caplog.text


def test_without_the_private_names(spans: InMemorySpanExporter) -> None:
    """A later version may lack them: what is handed over goes its way. Such a version can't be had here."""
    later = telemetry._Airflow(
        stats, SimpleNamespace(), SimpleNamespace(get_current_span=trace.get_current_span), trace.get_tracer("test")
    )
    assert later.sends_metrics()
    assert not later.is_off()
    assert not later.has_span()
    with under_a_task():
        assert later.has_span()


@contextmanager
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(30)
        yield receiver


@contextmanager
def statsd() -> Iterator[socket.socket]:
    """Have metrics sent to a socket as Airflow sends them to statsd."""
    client = pytest.importorskip("statsd", reason="Airflow sends to statsd by apache-airflow-task-sdk[statsd]")
    made: list[Any] = []

    def make() -> Any:
        made.append(
            SafeStatsdLogger(
                client.StatsClient(host="localhost", port=receiver.getsockname()[1], prefix="airflow"),
                influxdb_tags_enabled=True,
                statsd_influxdb_enabled=True,
            )
        )
        return made[-1]

    with udp() as receiver:
        stats.initialize(factory=make, export_legacy_names=True)
        yield receiver
        telemetry.flush(30)
        for logger in made:
            logger.statsd.close()


def test_statsd_with_its_tags(opened: BackendOf, task: TaskScope) -> None:
    with statsd() as receiver:
        opened(Settings(url=f"memory://{task.dag_id}")).set(task, "secret", "1234")
        packets = {receiver.recv(1000).decode() for _ in range(2)}
    tags = "operation=set,scheme=memory,outcome=ok"
    assert f"airflow.async_state.set.bytes,{tags}:4|c" in packets
    assert any(packet.startswith(f"airflow.async_state.set.duration,{tags}:") for packet in packets)
    assert not any("secret" in packet for packet in packets)


def test_a_fork_has_a_thread_and_a_socket_of_its_own(opened: BackendOf, task: TaskScope) -> None:
    with statsd() as receiver:
        backend = opened(Settings(url=f"memory://{task.dag_id}"))
        for _ in range(5):
            backend.get(task, "k")

            def child() -> None:
                backend.get(task, "k")
                telemetry.flush(30)

            assert outcome(fork(child, "task")) == "fine"
        packets = [receiver.recv(1000) for _ in range(10)]
    assert all(packet.startswith(b"airflow.async_state.get.duration") for packet in packets)


def test_a_fork_waits_for_what_is_being_sent(monkeypatch: pytest.MonkeyPatch, task: TaskScope) -> None:
    """A library may hold a lock meanwhile, as glibc does when it looks up a name."""
    # On a busy machine, the other thread takes its time.
    monkeypatch.setattr(telemetry, "_FORK_PATIENCE", 60)
    Recorder.reset(held=True)
    measurement = telemetry.start("get", "memory://x")
    assert measurement is not None
    measurement.end("ok", 0)
    assert Recorder.entered.wait(30)
    threading.Timer(0.1, Recorder.go_on.set).start()
    assert outcome(fork(lambda: None if Recorder.sent else os._exit(3), "task")) == "fine"


def test_the_end_of_a_process_sends_what_waits() -> None:
    """At the end of an interpreter, and of a task's process, which runs what it registered and then ends at once."""
    pytest.importorskip("statsd")
    program = """
import atexit, os, sys
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import statsd_logger
from airflow.sdk.state import TaskScope
from async_state import AsyncStateBackend, Settings
stats.initialize(factory=statsd_logger.get_statsd_logger, export_legacy_names=False)
backend = AsyncStateBackend(Settings(url="memory://x"))
def use():
    for _ in range(20):
        backend.get(TaskScope("d", "r", "t"), "k")
if not (child := os.fork()):
    atexit._clear()
    use()
    atexit._run_exitfuncs()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
use()
"""
    with udp() as receiver:
        configured = {
            "AIRFLOW__METRICS__STATSD_HOST": "localhost",
            "AIRFLOW__METRICS__STATSD_PORT": str(receiver.getsockname()[1]),
            "_AIRFLOW__AS_LIBRARY": "1",
        }
        subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | configured)
        packets = [receiver.recv(1000) for _ in range(40)]
    assert all(b"async_state.get.duration" in packet for packet in packets)


def test_a_slow_slot_counts(metrics: Metrics, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope) -> None:
    """An operation that never gets its slot has taken all of its time."""

    async def both() -> None:
        async with AsyncStateBackend(s3_settings(max_concurrency=1, timeout=0.3)) as backend:
            with moto.failing(faults.never_answers()):
                async with anyio.create_task_group() as group:
                    for _ in range(2):
                        group.start_soon(fails, backend)

    async def fails(backend: AsyncStateBackend) -> None:
        with pytest.raises(StoreTimeoutError):
            await backend.aget(task, "k")

    anyio.run(both)
    total, count = metrics.points()["airflow.async_state.get.duration", "s3", "StoreTimeoutError"]
    assert count == 2
    # An attempt may end with so little left of the 300 ms that there is no other. Without the wait, it would be half.
    assert total >= 2 * 250
