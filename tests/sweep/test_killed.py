"""A sweep that is killed at any point has deleted orphans only, and the same command finishes what it began."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.sweep.conftest import Base, snapshot

TASK = "v1/task/dag/run/task/-1/worker"
ORPHANS = 200


def test_a_sweep_that_is_killed_is_taken_up_again(base: Base, tmp_path: Path) -> None:
    refs = [base.put(f"{TASK}/live{number}") for number in range(ORPHANS)]
    for number in range(ORPHANS):
        base.put(f"{TASK}/orphan{number}")
    (tmp_path / "refs").write_bytes(snapshot(base.url, refs))
    report, temporary = tmp_path / "report", tmp_path / "tmp"
    temporary.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(tmp_path),
        "TMPDIR": str(temporary),
        "AIRFLOW__ASYNC_STATE__URL": base.url,
        "AIRFLOW__ASYNC_STATE__MAX_CONCURRENCY": "2",
    }
    command = [sys.executable, "-m", "async_state", "sweep", "--refs", str(tmp_path / "refs"), "--delete"]
    command += ["--report", str(report)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        # How much further it gets is a matter of luck.
        while process.poll() is None and (not report.exists() or report.read_text().count("\n") < ORPHANS // 2):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert list(temporary.iterdir()) == []
    left = set(base.names())
    assert {ref.removeprefix(f"{base.url}/") for ref in refs} <= left
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(base.names()) == sorted(ref.removeprefix(f"{base.url}/") for ref in refs)
