"""That `bench.clouds` works, in both clouds. How fast anything is, no test asks.

By `make test-bench`, in the environment of `make bench-clouds`, which has the servers and all clients.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cloud_servers import azurite_is_installed, fake_gcs_is_installed

ROOT = Path(__file__).parents[2]
#: Whose figures each measure has, in either cloud.
_CLIENTS = {
    "first": {"async_state", "async_state, unprepared", "common-io"},
    "latency": {"async_state", "common-io", "aiohttp"},
    "throughput": {"async_state", "async_state, 64 at once", "common-io", "aiohttp"},
    "cpu": {"async_state", "common-io", "aiohttp"},
    "clear": {"async_state", "common-io", "aiohttp"},
}

pytestmark = pytest.mark.skipif(
    not (azurite_is_installed() and fake_gcs_is_installed()), reason="Azurite or fake-gcs-server is not installed"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What a run that is as small as it gets has found, and what it has printed."""
    directory = tmp_path_factory.mktemp("clouds")
    command = [sys.executable, "-m", "bench.clouds", "--smoke", "--output", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((directory / "clouds.json").read_text()), done.stdout


@pytest.mark.parametrize("cloud", ["gs", "az"])
@pytest.mark.parametrize("measure", _CLIENTS)
def test_every_client_is_measured(measure: str, cloud: str, run: tuple[dict[str, Any], str]) -> None:
    pytest.importorskip("adlfs")
    pytest.importorskip("gcsfs")
    found = [each for each in run[0]["series"] if each["measure"] == measure and each["case"]["cloud"] == cloud]
    assert {each["client"] for each in found} == _CLIENTS[measure]
    assert all(each["samples"] and min(each["samples"]) >= 0 for each in found)


def test_the_report_has_targets_tables_and_a_warning(run: tuple[dict[str, Any], str]) -> None:
    text = run[1]
    assert "--smoke" in text
    for title in "first operation", "one operation", "puts a second", "clear", "CPU time":
        assert title.lower() in text.lower()
