"""Mixed load at a fixed rate against a store that keeps failing: is memory flat, are descriptors, is anything lost?

    python -m bench.soak [minutes, default 30] [operations a second, default 40] [--report FILE]

One process does what Airflow's processes do: coroutines on an event loop, synchronous calls on threads, and a forked
process now and then. The store is moto's S3 server in a process of its own, where a share of the requests meets a
fault. Each key has one writer, which knows what a get may return: after an operation that failed, the value from before
it or from after it. In the end faults stop, and every key is read once more. With ``--report`` the outcome is written
as Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.errors import AsyncStateError
from async_state.testing import fake_s3, faults

FAULTS_PER_REQUEST = 0.03
WRITERS = 24
KEYS_EACH = 4
TIMEOUT_SECONDS = 3.0
SAMPLE_SECONDS = 60.0
FORK_SECONDS = 20.0
#: Neither a value nor anything that a set could have stored.
ABSENT: Any = None


def serve() -> None:
    """Run the failing server until standard input ends; its first line ends the faults."""
    chosen = [
        faults.error(500, "InternalError"),
        faults.slow_down(),
        faults.latency(0.5),
        faults.reset_before_answer(),
        faults.reset_after_carrying_out(),
        faults.reset_after_headers(),
        faults.reset_in_body(),
        faults.truncated_body(),
        faults.corrupted_body(),
        faults.slow_drip(64, 0.02),
        faults.never_answers(),
    ]
    chance = random.Random(0)
    with fake_s3(keep_alive=True) as s3, contextlib.ExitStack() as failing:

        def unlucky(_: object) -> bool:
            # The server's record of requests would grow for as long as this runs.
            s3.requests.clear()
            return chance.random() < FAULTS_PER_REQUEST / len(chosen)

        for fault in chosen:
            failing.enter_context(s3.failing(fault, when=unlucky))
        print(s3.url, flush=True)
        sys.stdin.readline()
        failing.close()
        print("calm", flush=True)
        sys.stdin.readline()


@dataclass
class Tally:
    """What happened so far."""

    done: collections.Counter[str] = field(default_factory=collections.Counter)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    late: int = 0


class Writer:
    """The only one to change its keys: one map index of a task."""

    def __init__(self, backend: AsyncStateBackend, number: int, tally: Tally) -> None:
        self.scope = TaskScope(dag_id="soak", run_id="run", task_id="task", map_index=number)
        self._backend = backend
        self._tally = tally
        self._random = random.Random(number)
        # As Airflow's rows: the reference of each key.
        self._refs: dict[str, str] = {}
        self._permitted: dict[str, list[Any]] = {f"key-{n}": [ABSENT] for n in range(KEYS_EACH)}
        self._count = 0

    async def operate(self, *, synchronous: bool) -> None:
        """Do one operation, chosen by chance, and note how it went."""
        key = self._random.choice(list(self._permitted))
        kind = self._random.choices(["set", "get", "delete", "clear"], [45, 45, 9, 1])[0]
        begun = time.perf_counter()
        try:
            await {"set": self._set, "get": self._get, "delete": self._delete, "clear": self._clear}[kind](
                key, synchronous
            )
            self._tally.done[kind] += 1
        except AsyncStateError as e:
            self._tally.errors[f"{kind}: {type(e).__name__}"] += 1
        took = time.perf_counter() - begun
        self._tally.seconds.append(took)
        self._tally.late += took > TIMEOUT_SECONDS + 1

    async def check(self) -> None:
        """Read every key."""
        for key in self._permitted:
            await self._get(key, False)

    async def _set(self, key: str, synchronous: bool) -> None:
        self._count += 1
        value = {"count": self._count, "of": key, "filler": "x" * self._random.choice([10, 1000, 100_000])}
        self._permitted[key].append(value)
        arguments: Any = {"value": value, "key": key, "scope": self.scope}
        if synchronous:
            ref = await asyncio.to_thread(self._backend.serialize_task_state_store_to_ref, **arguments)
        else:
            ref = await self._backend.aserialize_task_state_store_to_ref(**arguments)
        self._refs[key] = ref
        self._permitted[key] = [value]

    async def _get(self, key: str, synchronous: bool) -> None:
        ref = self._refs.get(key)
        if ref is None:
            found = ABSENT
        elif synchronous:
            found = await asyncio.to_thread(self._backend.deserialize_task_state_store_from_ref, ref)
        else:
            found = await self._backend.adeserialize_task_state_store_from_ref(ref)
        if found not in self._permitted[key]:
            self._tally.wrong.append(f"{self.scope.map_index}/{key}")
        # What was read once stays.
        self._permitted[key] = [found]

    async def _delete(self, key: str, synchronous: bool) -> None:
        # The row goes first, so the key is gone for its readers whatever becomes of the object.
        self._refs.pop(key, None)
        self._permitted[key] = [ABSENT]
        if synchronous:
            await asyncio.to_thread(self._backend.delete, self.scope, key)
        else:
            await self._backend.adelete(self.scope, key)

    async def _clear(self, _: str, synchronous: bool) -> None:
        self._refs.clear()
        self._permitted = {key: [ABSENT] for key in self._permitted}
        if synchronous:
            await asyncio.to_thread(self._backend.clear, self.scope)
        else:
            await self._backend.aclear(self.scope)


async def load(
    backend: AsyncStateBackend, writers: list[Writer], seconds: float, rate: float, tally: Tally
) -> list[dict[str, float]]:
    """Start ``rate`` operations a second, and return a sample of this process for every minute."""
    free = collections.deque(writers)
    running: set[asyncio.Task[None]] = set()
    samples: list[dict[str, float]] = []
    begun = time.monotonic()
    started = 0
    next_sample = next_fork = begun
    chance = random.Random(1)

    async def one(writer: Writer) -> None:
        await writer.operate(synchronous=chance.random() < 0.3)
        free.append(writer)

    while (now := time.monotonic()) < begun + seconds:
        if now >= next_sample:
            samples.append(_sample(now - begun, tally))
            print(samples[-1], dict(tally.errors), flush=True)
            tally.seconds.clear()
            next_sample += SAMPLE_SECONDS
        if now >= next_fork:
            tally.done["forked process"] += await asyncio.to_thread(_fork, backend)
            next_fork += FORK_SECONDS
        while started < (now - begun) * rate and free:
            task = asyncio.create_task(one(free.popleft()))
            running.add(task)
            task.add_done_callback(running.discard)
            started += 1
        await asyncio.sleep(0.005)
    if running:
        await asyncio.wait(running)
    samples.append(_sample(time.monotonic() - begun, tally))
    return samples


def _fork(backend: AsyncStateBackend) -> int:
    """Use the backend in a forked process, and return 1 if all was well there."""
    child = os.fork()
    if not child:
        status = 1
        try:
            scope = TaskScope(dag_id="soak", run_id="run", task_id="forked", map_index=os.getpid())
            for attempt in range(5):
                try:
                    ref = backend.serialize_task_state_store_to_ref(value=attempt, key="k", scope=scope)
                    found = backend.deserialize_task_state_store_from_ref(ref)
                    backend.clear(scope)
                    status = 0 if found == attempt else 2
                    break
                except AsyncStateError:
                    continue
        finally:
            os._exit(status)
    return int(os.waitpid(child, 0)[1] == 0)


def _sample(seconds: float, tally: Tally) -> dict[str, float]:
    rollup = dict(
        line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:] if ":" in line
    )
    private = sum(int(rollup[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
    took = tally.seconds or [0.0]
    return {
        "minute": round(seconds / 60, 1),
        "private_mb": round(private / 1024, 1),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "operations": sum(tally.done.values()),
        "errors": sum(tally.errors.values()),
        "median_ms": round(statistics.median(took) * 1000, 1),
        "worst_ms": round(max(took) * 1000),
    }


def main(minutes: float, rate: float, report: Path | None) -> int:
    """Run the load, and return the exit status: 0 if nothing was wrong."""
    logging.disable(logging.WARNING)
    gc.freeze()
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.soak", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    tally = Tally()

    async def run(backend: AsyncStateBackend) -> list[dict[str, float]]:
        writers = [Writer(backend, number, tally) for number in range(WRITERS)]
        samples = await load(backend, writers, minutes * 60, rate, tally)
        print("calm", file=server.stdin, flush=True)
        assert server.stdout.readline() == "calm\n"  # type: ignore[union-attr]
        for writer in writers:
            await writer.check()
        return samples

    try:
        endpoint = server.stdout.readline().strip()  # type: ignore[union-attr]
        os.environ |= {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak", "AWS_DEFAULT_REGION": "us-east-1"}
        settings = Settings(
            url="s3://state/soak", endpoint_url=endpoint, timeout=TIMEOUT_SECONDS, max_attempts=3, compression="gzip"
        )
        with AsyncStateBackend(settings) as backend:
            samples = asyncio.run(run(backend))
    finally:
        server.kill()
        server.wait()
    text = render(minutes, rate, samples, tally)
    print(text)
    if report is not None:
        report.write_text(text)
    return int(bool(tally.wrong or tally.late))


def render(minutes: float, rate: float, samples: list[dict[str, float]], tally: Tally) -> str:
    """Return the outcome as Markdown."""
    warm = [sample for sample in samples if sample["minute"] >= min(5, minutes / 3)]
    columns = list(samples[0])
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    rows += ["| " + " | ".join(f"{sample[name]:g}" for name in columns) + " |" for sample in samples]
    spans = {name: [sample[name] for sample in warm] for name in ("private_mb", "descriptors", "threads")}
    lines = [
        "# Soak",
        "",
        "This page shows half an hour of mixed load against a store that keeps failing: what was lost, and what grew.",
        "",
        f"`python -m bench.soak {minutes:g} {rate:g}`: {rate:g} operations a second for {minutes:g} minutes by "
        f"{WRITERS} writers, three in ten of them synchronous calls on threads; {FAULTS_PER_REQUEST:.0%} of the "
        "requests met a fault "
        "(500, 503, latency, resets before, after and in the answer, cut, damaged and dripping bodies, no answer at "
        f"all); timeout {TIMEOUT_SECONDS:g} s, 3 attempts. Python {platform.python_version()}, {os.cpu_count()} cores.",
        "",
        f"- Wrong or lost values: **{len(tally.wrong)}**. Operations that overran their deadline by more than a "
        f"second: **{tally.late}**.",
        f"- Done: {_counts(tally.done)}. Failed loudly: {_counts(tally.errors) or 'none'}.",
        "- From minute {:g} on, least to most: private memory {} MB, descriptors {}, threads {}.".format(
            warm[0]["minute"], *(f"{min(span):g} to {max(span):g}" for span in spans.values())
        ),
        "",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _counts(counter: collections.Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("minutes", type=float, nargs="?", default=30)
        parser.add_argument("rate", type=float, nargs="?", default=40)
        parser.add_argument("--report", type=Path)
        given = parser.parse_args()
        raise SystemExit(main(given.minutes, given.rate, given.report))
