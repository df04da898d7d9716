"""What a process prepares for those that are forked from it."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.stores.cloud.clouds import Cloud

#: Prepares, forks, and says what the child has imported for its first operation.
_PROGRAM = """
import json, os, sys, threading
from airflow.sdk.state import AssetScope
from async_state import Settings
from async_state.backend import AsyncStateBackend
from async_state.stores import prepare

settings = Settings(**json.loads(sys.argv[1]))
prepare(settings)
assert threading.active_count() == 1
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
before = set(sys.modules)
AsyncStateBackend(settings).set(AssetScope(name="prefork"), "key", "value")
print(json.dumps(sorted(set(sys.modules) - before)), flush=True)
os._exit(0)
"""


def test_a_forked_process_has_nothing_of_ours_to_import(cloud: Cloud) -> None:
    given = {"url": f"{cloud.scheme}://state/prefork", "endpoint_url": cloud.endpoint}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(given)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    assert [name for name in imported if name.partition(".")[0] in ("async_state", "anyio", "aiohttp")] == []
