"""Why blocking callers do not cross to the I/O thread by anyio's ``BlockingPortal``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.programs.wire import PATIENCE


def test_a_signal_handler_that_uses_a_portal_may_wait_for_ever() -> None:
    # Once this fails, anyio's portal keeps what ours keeps, and could replace it.
    command = [sys.executable, "-m", "tests.programs.portal"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.stdout, done.stderr, done.returncode) == ("the handler waits for ever\n", "", 0)
