"""The quick start on one machine, as its page has it, but for the installation: `make test-docs`, half a minute."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sysconfig
from pathlib import Path

from tests.servers import free_port

PAGE = Path(__file__).parents[2] / "docs" / "local.md"
SECONDS = 600


def test_from_nothing_to_state_in_a_bucket(tmp_path: Path) -> None:
    steps = re.findall(r"<!-- run -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(steps) == 4
    # The page's port may be taken here.
    script = "set -eu\n" + "".join(steps).replace("5000", str(free_port()))
    scripts = sysconfig.get_path("scripts")
    environment = {
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = shell.communicate(timeout=SECONDS)
    finally:
        # With the server that it has left running.
        os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, printed
    assert "0 failed" in printed
    assert re.search(r"^value +\| \"job of ", printed, re.MULTILINE), printed
    assert "s3://my-bucket/airflow-state/v1/task/async_state_task/" in printed
