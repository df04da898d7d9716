"""Metrics and spans of the operations, by Airflow's own means: where they go is set in ``[metrics]`` and ``[traces]``.

A span is started and ended where the caller is, below the span of its task; Airflow exports spans from a thread. A
metric may be sent through a blocking socket, for which a name is looked up, so no caller sends one: a thread of its own
takes them from a bounded queue. What finds the queue full is dropped and counted. Whatever fails here is logged once,
and fails no operation.

Nothing here names a key, a DAG or an object. ``docs/telemetry.md`` lists what is sent.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import importlib
import logging
import os
import queue
import sys
import threading
import time
from datetime import timedelta
from functools import cache
from typing import Any, Final, Literal, NamedTuple, get_args

log = logging.getLogger(__name__)

#: What is measured. ``docs/telemetry.md`` says what each one is.
OperationName = Literal[
    "get",
    "set",
    "delete",
    "clear",
    "cleanup",
    "serialize",
    "deserialize",
    "purge",
    "update",
    "exists",
    "keys",
]
OPERATIONS: Final[tuple[OperationName, ...]] = get_args(OperationName)

#: As logs name the thread.
THREAD_NAME: Final = "async_state-telemetry"
#: How many operations wait to be sent at most.
QUEUE_SIZE: Final = 10_000
#: Seconds that the end of a process waits for what is not sent yet.
_FLUSH_SECONDS: Final = 1.0
#: Seconds that a fork waits for a metric that is being sent, since libraries hold locks meanwhile.
_FORK_PATIENCE: Final = 2.0


class _Airflow(NamedTuple):
    """What Airflow sends with.

    Attributes:
        stats: ``airflow.sdk.observability.stats``.
        core: The module that holds its functions, and what they were initialized with.
        trace: ``airflow.sdk.observability.trace``, which is OpenTelemetry's.
        tracer: Makes spans.
    """

    stats: Any
    core: Any
    trace: Any
    tracer: Any

    def is_off(self) -> bool:
        """Tell whether neither metrics nor spans go anywhere. Every operation asks this, so it takes little time."""
        try:
            if self.core._factory is self.core.NoStatsLogger and self.trace._TRACER_PROVIDER is None:
                return True
        except AttributeError:  # they are private names
            pass
        return not (self.sends_metrics() or self.has_span())

    def sends_metrics(self) -> bool:
        """Tell whether metrics go anywhere, as far as that can be told."""
        factory = getattr(self.core, "_factory", self)
        return factory is not None and factory is not getattr(self.core, "NoStatsLogger", None)

    def has_span(self) -> bool:
        """Tell whether there is a span that records here, under which others can be."""
        recording: bool = self.trace.get_current_span().is_recording()
        return recording


@cache
def _airflow() -> _Airflow | None:
    try:
        from airflow.sdk.observability import stats, trace

        return _Airflow(stats, sys.modules[stats.incr.__module__], trace, trace.get_tracer("async_state"))
    except Exception as e:  # state does not depend on it
        log.warning("No metrics and spans of state are sent: airflow.sdk.observability can't be used: %r", e)
        return None


class _Measured(NamedTuple):
    """One operation that is over."""

    operation: str
    scheme: str
    outcome: str
    failed: bool
    seconds: float
    bytes: int


class Measurement:
    """One operation that is measured.

    Args:
        airflow: What to send with.
        operation: What is done.
        url: Where; its scheme alone is sent.
    """

    def __init__(self, airflow: _Airflow, operation: str, url: str) -> None:
        self._airflow = airflow
        self._operation = operation
        self._scheme = url.partition("://")[0]
        self._span = self._start_span() if airflow.has_span() else None
        self._began = time.monotonic()

    def end(self, outcome: str, size: int) -> None:
        """End the measurement, and hand it over.

        Args:
            outcome: ``ok``; ``missing``, where a reference's object is gone; ``cancelled``; or the class of the error
                that the operation ended with.
            size: How many bytes of objects were read or written.
        """
        seconds = time.monotonic() - self._began
        failed = outcome not in ("ok", "missing", "cancelled")
        if self._span is not None:
            self._end_span(self._span, outcome, size, failed)
        if self._airflow.sends_metrics():
            _hand_over(_Measured(self._operation, self._scheme, outcome, failed, seconds, size))

    def _start_span(self) -> Any:
        try:
            return self._airflow.tracer.start_span(
                f"async_state.{self._operation}",
                kind=self._airflow.trace.SpanKind.CLIENT,
                attributes={"scheme": self._scheme},
            )
        except Exception as e:  # of a sampler or a processor that somebody has added
            _warn_of_spans(e)
            return None

    def _end_span(self, span: Any, outcome: str, size: int, failed: bool) -> None:
        try:
            span.set_attributes({"outcome": outcome, "bytes": size})
            if failed:
                # Without the error's message, which names objects.
                span.set_status(self._airflow.trace.StatusCode.ERROR, outcome)
            span.end()
        except Exception as e:
            _warn_of_spans(e)


def prepare() -> None:
    """Import what operations are measured with, for processes forked from this one to inherit."""
    with contextlib.suppress(Exception):  # the first operation warns of it
        importlib.import_module("airflow.sdk.observability.stats")
        importlib.import_module("airflow.sdk.observability.trace")


def start(operation: OperationName, url: str) -> Measurement | None:
    """Start to measure an operation; return ``None`` where neither metrics nor spans are on.

    Args:
        operation: What is done.
        url: The base URL where it is done.
    """
    airflow = _airflow()
    if airflow is None or airflow.is_off():
        return None
    return Measurement(airflow, operation, url)


_warned_of_spans = False


def _warn_of_spans(error: Exception) -> None:
    global _warned_of_spans
    if not _warned_of_spans:
        _warned_of_spans = True
        log.warning("Spans of state can't be made; this is said once: %r", error)


def flush(seconds: float = _FLUSH_SECONDS) -> None:
    """Wait until what was handed over before is sent, but no longer than ``seconds``."""
    sender = _sender
    if sender is not None:
        sent = threading.Event()
        sender.queue.put(sent)
        sent.wait(seconds)


class _Sender:
    """The thread that sends metrics, and what waits for it."""

    def __init__(self) -> None:
        # It takes no lock that a signal handler could find taken.
        self.queue: queue.SimpleQueue[_Measured | threading.Event] = queue.SimpleQueue()
        self.dropped = 0
        self._dropped_before = 0
        self._warned = False
        atexit.register(flush)
        # Not a `threading.Thread`, whose `start` waits for the thread. It does not start while the interpreter exits.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(self._main, ())

    def _main(self) -> None:
        threading.current_thread().name = THREAD_NAME
        while True:
            item = self.queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            with _sending:
                self._send(item)

    def _send(self, measured: _Measured) -> None:
        airflow = _airflow()
        if airflow is None:
            return
        stats, name = airflow.stats, f"async_state.{measured.operation}"
        tags = {"operation": measured.operation, "scheme": measured.scheme, "outcome": measured.outcome}
        dropped = self.dropped - self._dropped_before
        try:
            stats.timing(f"{name}.duration", timedelta(seconds=measured.seconds), tags=tags)
            if measured.failed:
                stats.incr(f"{name}.errors", 1, tags=tags)
            if measured.bytes:
                stats.incr(f"{name}.bytes", measured.bytes, tags=tags)
            if dropped:
                stats.incr("async_state.telemetry.dropped", dropped)
                self._dropped_before += dropped
        except Exception as e:  # of whatever Airflow sends with
            if not self._warned:
                self._warned = True
                log.warning("Metrics of state can't be sent; this is said once: %r", e)


def _hand_over(measured: _Measured) -> None:
    sender = _sender or _start()
    if sender.queue.qsize() < QUEUE_SIZE:
        sender.queue.put(measured)
    else:
        sender.dropped += 1


def _start() -> _Sender:
    global _sender
    with _starting:
        if _sender is None:
            _sender = _Sender()
        return _sender


_sender: _Sender | None = None
# Reentrant, since a signal handler may use state where it interrupts the start.
_starting = threading.RLock()
# Held while a metric is sent, and by whoever forks; nobody else waits for it.
_sending = threading.Lock()


class _Fork(threading.local):
    """Whether this thread holds `_sending` for a fork."""

    waits = False


_fork: Final = _Fork()


def _before_fork() -> None:
    if _sender is not None:
        _fork.waits = _sending.acquire(timeout=_FORK_PATIENCE)


def _after_fork_in_parent() -> None:
    if _fork.waits:
        _fork.waits = False
        _sending.release()


def _after_fork_in_child() -> None:
    # No thread survives a fork. What waited in the queue is the parent's to send.
    global _sender, _starting, _sending
    _fork.waits = False
    _sender, _starting, _sending = None, threading.RLock(), threading.Lock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
