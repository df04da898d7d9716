"""Which max_concurrency: throughput of sets started at once, and the lag of the loop that starts them.

    python -m bench.concurrency [delay in ms, default 20] [sets, default 2000]

The server is a process of its own that answers every PUT after the delay. Rounds are interleaved over the limits.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import statistics
import subprocess
import sys
import time

from airflow.sdk.state import AssetScope

from async_state import AsyncStateBackend, Settings
from bench.gaps import worst_gap

LIMITS = (4, 8, 16, 24, 32, 64, 128)
ROUNDS = 5


async def serve(delay: float) -> None:
    """Answer every request on every connection with 200 after ``delay`` seconds, and print the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                await reader.readexactly(length)
                await asyncio.sleep(delay)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def measure(backend: AsyncStateBackend, sets: int) -> tuple[float, float]:
    """Return sets a second, and the worst gap of a ticker that shares the loop, in milliseconds."""
    scope = AssetScope(name="bench")
    await backend.aset(scope, "warm", "1")
    took = 0.0

    async def all_sets() -> None:
        nonlocal took
        begun = time.perf_counter()
        await asyncio.gather(*(backend.aset(scope, f"k{i}", '"spark_app_001"') for i in range(sets)))
        took = time.perf_counter() - begun

    gap = await worst_gap(all_sets())
    return sets / took, gap * 1000


def main(delay_ms: float, sets: int) -> None:
    """Measure every limit ``ROUNDS`` times and print medians, with the least and the most."""
    logging.disable(logging.INFO)
    # Otherwise the gaps are those of full collections, which walk all that Airflow has imported (150 ms).
    gc.freeze()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "bench.concurrency", "serve", str(delay_ms / 1000)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"  # type: ignore[union-attr]
        found: dict[int, list[tuple[float, float]]] = {limit: [] for limit in LIMITS}
        for _ in range(ROUNDS):
            for limit in LIMITS:
                settings = Settings(url="s3://bench/state", endpoint_url=endpoint, max_concurrency=limit)
                with AsyncStateBackend(settings) as backend:
                    found[limit].append(asyncio.run(measure(backend, sets)))
    finally:
        server.kill()
        server.wait()
    print(f"{sets} sets at {delay_ms:g} ms a response, {ROUNDS} rounds: median (least to most)")
    for limit, rounds in found.items():
        rates, gaps = zip(*rounds, strict=True)
        # What the delay alone would take, `limit` at a time.
        ideal = -(-sets // limit) * delay_ms / 1000
        walls = tuple(sets / rate / ideal for rate in rates) if ideal else ()
        print(f"{limit:4}: {_spread(rates)} sets/s, worst gap {_spread(gaps)} ms, of the ideal time {_spread(walls)}")


def _spread(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):7.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(float(sys.argv[2])))
    else:
        given = sys.argv[1:]
        main(float(given[0]) if given else 20, int(given[1]) if len(given) > 1 else 2000)
