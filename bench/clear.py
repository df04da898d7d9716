"""Seconds, requests and memory that it takes to delete all keys of a scope: ``python -m bench clear``.

On the server of `bench.server`, whose objects are in its memory, without delay and behind the proxy that holds back
answers by 20 ms. It fills the scope before each clear, counts the requests that reach it, and is asked afterwards
whether anything is left. aiobotocore lists a page and deletes it, one after the other; obstore's list and bulk delete
are the limit. The largest scopes are cleared in the first round only; common-io, which needs two requests a key, clears
fewer of them.

Memory is what private pages a process has more than before, at the most, while it clears: a new process for each clear,
which has put and cleared a key before. It looks every 10 ms. Rounds alternate between the clients, and Airflow is
frozen (``gc.freeze``) as in its executors.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from bench.clients import CLIENTS, installed
from bench.samples import Found, Sizes, rotated
from bench.servers import BUCKET, Servers

_NAMES = ("async_state", "common-io", "aiobotocore", "obstore")
_MEMORY_NAMES = ("async_state", "common-io", "aiobotocore")


def measure(servers: Servers, sizes: Sizes, found: Found) -> None:
    """Measure time and requests with every delay, and then memory."""
    control = servers.memory[0]
    for delay, endpoint in servers.memory.items():
        counts, (often, once) = sizes.clears, sizes.common_io_clears
        if delay:
            often, once = sizes.common_io_delayed_clears
            counts = tuple(sorted({*sizes.delayed_clears, often or once}))
        limits = {"common-io": (often, once), "others": (sizes.clears_often, counts[-1])}
        arguments = {"rounds": sizes.rounds, "counts": counts, "limits": limits}
        for name, keys, seconds, requests in servers.child("clear.child", endpoint, control=control, **arguments):
            found.add("clear", name, "s", seconds, keys=keys, delay=delay)
            found.add("clear", name, "requests", requests, keys=keys, delay=delay)
    for number in range(sizes.rounds):
        for keys in sizes.memory_clears:
            for name in rotated(installed(*_MEMORY_NAMES), number):
                if _skips(name, keys, number, sizes):
                    continue
                grown = servers.child("clear.memory_child", servers.memory[0], name=name, keys=keys)
                found.add("clear", name, "MB", grown, keys=keys)


def _skips(name: str, keys: int, number: int, sizes: Sizes) -> bool:
    """Tell whether a clear takes too long to watch its memory in this round."""
    if number and keys > sizes.memory_often:
        return True
    return name != "async_state" and keys > (sizes.common_io_clears[0] if name == "common-io" else 100_000)


def child(endpoint: str, control: str, rounds: int, counts: list[int], limits: dict[str, list[int]]) -> list[Any]:
    """Return client, keys, seconds and requests of each clear.

    ``limits`` says of common-io, and of the others, up to how many keys they clear in each round, and in the first.
    """
    clients = [CLIENTS[name](endpoint) for name in installed(*_NAMES)]
    samples = []
    for client in clients:
        _fill(control, client.prefix("warm"), 1)
        client.clear("warm")
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        for keys in counts:
            for client in rotated(clients, number):
                often, once = limits.get(client.name, limits["others"])
                if keys > (often if number else once):
                    continue
                scope = uuid.uuid4().hex
                _fill(control, client.prefix(scope), keys)
                _ask(control, "GET", "/_requests")
                begun = time.perf_counter()
                client.clear(scope)
                took = time.perf_counter() - begun
                samples.append((client.name, keys, took, _ask(control, "GET", "/_requests")))
                _check(control, client.prefix(scope))
    for client in clients:
        client.close()
    return samples


def memory_child(endpoint: str, name: str, keys: int) -> float:
    """Clear, and return by how many megabytes (millions of bytes) of private pages the process grew at the most."""
    client = CLIENTS[name](endpoint)
    _fill(endpoint, client.prefix("warm"), 1)
    client.clear("warm")
    gc.collect()
    gc.freeze()
    scope = uuid.uuid4().hex
    _fill(endpoint, client.prefix(scope), keys)
    with _watched() as peak:
        client.clear(scope)
    _check(endpoint, client.prefix(scope))
    client.close()
    return peak[0] / 1e6


def private_bytes() -> int:
    """Return the size of the pages that this process shares with no other."""
    with Path("/proc/self/smaps_rollup").open() as rollup:
        return sum(
            int(line.split()[1]) * 1024 for line in rollup if line.startswith(("Private_Dirty", "Private_Clean"))
        )


@contextlib.contextmanager
def _watched() -> Iterator[list[int]]:
    before = private_bytes()
    peak = [0]
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], private_bytes() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield peak
    done.set()
    thread.join()
    peak[0] = max(peak[0], private_bytes() - before)


def _fill(control: str, prefix: str, keys: int) -> None:
    _ask(control, "POST", f"/_fill?prefix={BUCKET}/{prefix}&count={keys}")


def _check(control: str, prefix: str) -> None:
    left = _ask(control, "GET", f"/_count?prefix={BUCKET}/{prefix}")
    assert left == 0, f"{left} keys left below {prefix}"


def _ask(control: str, method: str, what: str) -> int:
    with urlopen(Request(control + what, method=method)) as answer:
        return int(answer.read())
