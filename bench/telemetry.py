"""Microseconds of CPU time that telemetry adds to an operation: ``python -m bench.telemetry [rounds, default 200]``.

The same backend in one process, in turns of a few operations each, in another order in every round: without telemetry
(its `start` does nothing), the same once more, which tells how far figures scatter, with telemetry where Airflow's
metrics and traces are off, with statsd, and with spans. All threads of the process count. The store is rclone's S3
server without delay, and the value has 64 bytes. In brackets is the median of the differences to the first one in the
same round. The last figure is what an operation asks where all is off, by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import socket
import statistics
import time
import timeit
from collections.abc import Iterator
from typing import Any

from bench.clients import CLIENTS, KEYS, Client, opened
from bench.servers import running

_OPERATIONS = 20
_WAYS = ("without", "without, again", "off", "statsd", "spans")


def main(rounds: int) -> None:
    """Measure, and print Markdown."""
    with running() as servers:
        found = servers.child("telemetry.child", servers.rclone[0], rounds=rounds)
    print("| CPU of an operation, µs | put | get |\n|---|---|---|")
    for way in _WAYS:
        cells = []
        for operation in "put", "get":
            samples, base = found[way][operation], found["without"][operation]
            added = statistics.median(ours - theirs for ours, theirs in zip(samples, base, strict=True))
            cells.append(f"{statistics.median(samples):,.0f} ({added:+,.1f})")
        print(f"| {way} | {' | '.join(cells)} |")
    print(f"\nWhere all is off, `telemetry.start` takes {found['start']:.2f} µs.")


def child(endpoint: str, rounds: int) -> dict[str, Any]:
    """Return the microseconds an operation of each round, by way and operation."""
    client = CLIENTS["async_state"](endpoint)
    found: dict[str, Any] = {way: {"put": [], "get": []} for way in _WAYS}
    with opened([client]), _ways() as ways:
        for way in _WAYS:
            ways[way]()
            _take(client, "put"), _take(client, "get")
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            for way in random.sample(_WAYS, len(_WAYS)):
                ways[way]()
                _take(client, "put"), _take(client, "get")
                for operation in "put", "get":
                    found[way][operation].append(_take(client, operation))
        ways["off"]()
        found["start"] = _start()
    return found


def _take(client: Client, operation: str) -> float:
    call = client.put if operation == "put" else client.get
    begun = time.process_time()
    for key in KEYS[:_OPERATIONS]:
        call(key)
    return (time.process_time() - begun) / _OPERATIONS * 1e6


def _start() -> float:
    from async_state import telemetry

    number = 1_000_000
    return min(timeit.repeat(lambda: telemetry.start("get", "s3://state"), number=number, repeat=3)) / number * 1e6


@contextlib.contextmanager
def _ways() -> Iterator[dict[str, Any]]:
    """Yield what switches to each way."""
    from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
    from airflow.sdk._shared.observability.metrics.statsd_logger import get_statsd_logger
    from airflow.sdk.observability import stats
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from statsd import StatsClient

    from async_state import telemetry

    start = telemetry.start
    task = contextlib.ExitStack()
    provider = TracerProvider()
    exporter = InMemorySpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))

    def use(measure: Any, factory: Any, spans: bool = False) -> None:
        telemetry.flush(60)
        provider.force_flush()
        exporter.clear()
        task.close()
        telemetry.start = measure
        stats.initialize(factory=factory, export_legacy_names=False)
        # As a process has it in which [traces] otel_on is set, or not.
        trace._TRACER_PROVIDER = provider if spans else None
        if spans:
            task.enter_context(trace.use_span(provider.get_tracer("task").start_span("worker.task")))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        logger = get_statsd_logger(
            stats_class=StatsClient, host="127.0.0.1", port=receiver.getsockname()[1], prefix="airflow"
        )
        yield {
            "without": lambda: use(lambda *_: None, NoStatsLogger),
            "without, again": lambda: use(lambda *_: None, NoStatsLogger),
            "off": lambda: use(start, NoStatsLogger),
            "statsd": lambda: use(start, lambda: logger),
            "spans": lambda: use(start, NoStatsLogger, spans=True),
        }
        use(start, NoStatsLogger)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=200)
    main(parser.parse_args().rounds)
