"""Where the first operation of a forked task spends its time: ``python -m bench.startup [--report FILE]``.

The parent holds what a scheduler holds of Airflow, frozen (``gc.freeze``), and forks a child for each round. "before"
is a parent that has prepared nothing, "after" one that has called `async_state.stores.prepare`, as our plugin does in
the scheduler. Profiled with cProfile, which makes everything slower, by about the same factor on both sides; the whole
without a profile is what ``python -m bench first`` measures. Times are cumulative, and medians of five rounds: a step
that contains another contains its time, and imports happen in several. Certificates are loaded on a thread that is not
profiled.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from async_state.testing import CREDENTIALS, fake_s3
from bench.first import load_airflow

ROUNDS = 5
#: Part of the file's path, the function, and what it is.
STEPS = [
    ("<frozen importlib._bootstrap>", "_find_and_load", "imports"),
    ("aiobotocore/session.py", "get_credentials", "credentials"),
    ("aiobotocore/session.py", "_create_client", "the client, with the models"),
    ("stores/s3/store.py", "_send", "the request"),
]


def profiled(endpoint: str) -> dict[str, float]:
    """Do the first set of this process under a profile, and return milliseconds by step, and the modules imported."""
    from airflow.sdk.state import AssetScope

    from async_state import AsyncStateBackend, Settings, iothread

    before = set(sys.modules)
    profile = cProfile.Profile()

    async def profile_on() -> None:
        profile.enable()

    async def profile_off() -> None:
        profile.disable()

    backend = AsyncStateBackend(Settings(url="s3://state/startup", endpoint_url=endpoint))
    iothread.run(iothread.arun, profile_on)
    backend.set(AssetScope(name="startup"), "key", "1")
    iothread.run(iothread.arun, profile_off)
    found: dict[str, float] = dict.fromkeys((step for _, _, step in STEPS), 0.0)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, function), (_, _, _, cumulative, _) in stats.items():
        for part, name, step in STEPS:
            if part in file and name == function:
                found[step] = max(found[step], cumulative * 1000)
    found["modules imported"] = len(set(sys.modules) - before)
    return found


def parent(endpoint: str, prepared: bool) -> None:
    """Print what each of `ROUNDS` forked children found, a line of JSON for each."""
    load_airflow()
    if prepared:
        from async_state import Settings
        from async_state.stores import prepare

        prepare(Settings(url="s3://state/startup", endpoint_url=endpoint))
    gc.collect()
    gc.freeze()
    for _ in range(ROUNDS):
        if not os.fork():
            print(json.dumps(profiled(endpoint)), flush=True)
            os._exit(0)
        os.wait()


def main(report: Path | None) -> None:
    """Run both parents, and print or write the table."""
    found: dict[str, list[dict[str, float]]] = {}
    with fake_s3(keep_alive=True) as s3:
        for name in ("before", "after"):
            command = [sys.executable, "-m", "bench.startup", "--parent", s3.url, name]
            environment = {**os.environ, **s3.environment, **CREDENTIALS}
            told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[name] = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    lines = [
        "# Start-up",
        "",
        "This page shows where the first operation of a task spends its time.",
        "",
        "Where the first operation of a forked task spends its time, and what preparing the parent takes away: made by",
        "`python -m bench.startup`, which says how. Milliseconds under cProfile, medians of five processes.",
        "",
        "| | before | after |",
        "|---|---|---|",
    ]
    for step in found["before"][0]:
        before, after = (statistics.median(sample[step] for sample in found[name]) for name in ("before", "after"))
        lines.append(f"| {step} | {before:.1f} | {after:.1f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if report is not None:
        report.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--parent"]:
        parent(sys.argv[2], sys.argv[3] == "after")
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--report", type=Path, help="where to write the table")
        main(parser.parse_args().report)
