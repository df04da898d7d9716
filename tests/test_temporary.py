"""What a command has to remember, where the disk lets it write nothing."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from async_state.sweep.snapshot import Header, lines


def test_a_disk_that_is_full_ends_a_sweep_with_what_to_do(tmp_path: Path) -> None:
    url = (tmp_path / "state").as_uri()
    # More than SQLite keeps in memory. A limit for the sizes of files stands for the end of the disk.
    refs = [f"{url}/v1/task/dag/run/task/-1/worker/{number}{'x' * 900}" for number in range(60_000)]
    snapshot = "".join(f"{line}\n" for line in lines(Header(datetime.now(timezone.utc), url), refs))
    swept = subprocess.run(
        [sys.executable, "-m", "async_state", "sweep", "--refs", "-"],
        env={**os.environ, "AIRFLOW__ASYNC_STATE__URL": url},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        input=snapshot,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (swept.returncode, swept.stdout) == (1, "")
    assert swept.stderr.startswith("SQLite could not write its temporary file: ")
    assert "Set TMPDIR to a directory" in swept.stderr
    assert swept.stderr.count("\n") == 1
