"""Spans and metrics of real tasks, as docs/telemetry.md has Airflow send them to a collector of OpenTelemetry."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.airflow.dags.async_worker import Run, environment_of

DAGS = Path(__file__).parent / "dags"
PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"
WORKER_SECONDS = 600
TASKS = {"plain": {"serialize": 1, "deserialize": 1}, "coroutines": {"serialize": 5}}


class Collector(ThreadingHTTPServer):
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, bytes]] = []

    def spans(self) -> list[Any]:
        bodies = [body for path, body in self.received if path == "/v1/traces"]
        requests = map(ExportTraceServiceRequest.FromString, bodies)
        return [span for r in requests for s in r.resource_spans for scope in s.scope_spans for span in scope.spans]

    def metrics(self) -> list[Any]:
        requests = [
            ExportMetricsServiceRequest.FromString(body) for path, body in self.received if path == "/v1/metrics"
        ]
        return [m for r in requests for s in r.resource_metrics for scope in s.scope_metrics for m in scope.metrics]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def documented(collector: str) -> dict[str, str]:
    """Return the environment by which the page switches OpenTelemetry on, with this collector."""
    block = PAGE.read_text().partition("<!-- otel -->\n```sh\n")[2].partition("```")[0]
    pairs = (line.removeprefix("export ").partition("=") for line in block.splitlines())
    return {name: value.replace("http://collector:4318", collector) for name, _, value in pairs}


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """A collector that has received what the tasks have sent."""
    home = tmp_path_factory.mktemp("telemetry")
    (home / "dags").mkdir()
    (home / "airflow.cfg").touch()
    shutil.copy(DAGS / "telemetry_tasks.py", home / "dags")
    state = {
        "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
        "AIRFLOW__ASYNC_STATE__URL": f"file://{home}/state",
    }
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment = {
            **environment_of(home),
            **state,
            # All that a process has counted is sent once, when it ends.
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
            **documented(f"http://127.0.0.1:{server.server_port}"),
        }
        try:
            done = subprocess.run(
                [sys.executable, DAGS / "async_worker.py"],
                env=environment,
                cwd=home,
                input=json.dumps([asdict(Run("run", "telemetry"))]),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=WORKER_SECONDS,
                check=False,
            )
            assert done.returncode == 0, done.stdout
            for log in (home / "run" / "logs").glob("*.log"):
                print(f"--- {log.name}", log.read_text(), sep="\n")
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_spans_are_below_their_tasks(collector: Collector) -> None:
    spans = {span.span_id: span for span in collector.spans()}
    found: dict[str, Counter[str]] = {task: Counter() for task in TASKS}
    for span in spans.values():
        if span.name.startswith("async_state."):
            parent = spans[span.parent_span_id]
            assert span.trace_id == parent.trace_id
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
            found[parent.name.removeprefix("worker.")][span.name.removeprefix("async_state.")] += 1
    assert found == TASKS


def test_metrics_of_tasks_are_sent_before_their_processes_end(collector: Collector) -> None:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for metric in collector.metrics():
        if not metric.name.startswith("airflow.async_state."):
            continue
        operation, _, kind = metric.name.removeprefix("airflow.async_state.").partition(".")
        points = metric.exponential_histogram.data_points if kind == "duration" else metric.sum.data_points
        for point in points:
            tags = {pair.key: pair.value.string_value for pair in point.attributes}
            assert tags == {"operation": operation, "scheme": "file", "outcome": "ok"}
            if kind == "duration":
                counts[operation] += point.count
            else:
                assert kind == "bytes"
                sizes[operation] += point.as_int or int(point.as_double)
    assert counts == {"serialize": 6, "deserialize": 1}
    assert sizes["serialize"] >= 6 * len('"secret-value"')
    assert sizes["deserialize"] >= len('"secret-value"')


def test_nothing_of_ours_names_a_key_or_a_value(collector: Collector) -> None:
    sent = [*collector.spans(), *collector.metrics()]
    ours = [item.SerializeToString() for item in sent if "async_state." in item.name]
    assert ours
    assert [item for item in ours if b"secret" in item] == []
