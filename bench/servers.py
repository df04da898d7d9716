"""What a run starts beside itself: two S3 servers, a delaying proxy before either, and the processes that measure."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.servers import ACCESS_KEY, SECRET_KEY, rclone_s3

ROOT = Path(__file__).parent.parent
BUCKET = "state"
#: Milliseconds by which the proxy delays each answer.
DELAY = 20
#: Longer than any measuring process takes.
_PATIENCE = 900
_CONFIGURED = ("AIRFLOW_", "AWS_", "AZURE_", "CLOUDSDK_", "GOOGLE_", "STORAGE_EMULATOR_")


@dataclass(frozen=True)
class Processes:
    """Starts the processes that measure.

    Attributes:
        home: for Airflow.
    """

    home: Path

    def environment(self, endpoint: str) -> dict[str, str]:
        """Return the environment of a process that measures: Airflow and the clouds have what is set here alone."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_CONFIGURED)}
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_THRESHOLD": "0",
            **self.client_settings(endpoint),
        }

    def client_settings(self, endpoint: str) -> dict[str, str]:
        """Return what clients find in the environment, to reach ``endpoint``."""
        raise NotImplementedError

    def child(self, function: str, endpoint: str, **arguments: Any) -> Any:
        """Call a function (``module.name`` of this package) in a new interpreter and return what it returns.

        ``endpoint`` is the first of its arguments; clients also find it in the environment.
        """
        with self.process(function, endpoint, **arguments) as process:
            told, _ = process.communicate(timeout=_PATIENCE)
        if process.returncode:
            raise RuntimeError(f"{function} failed: it ended with status {process.returncode}")
        return json.loads(told)

    @contextlib.contextmanager
    def process(self, function: str, endpoint: str, **arguments: Any) -> Iterator[subprocess.Popen[str]]:
        """Run a function as `child` does, and yield its process while it goes on."""
        command = [sys.executable, "-m", "bench.child", function, json.dumps({"endpoint": endpoint, **arguments})]
        environment = self.environment(endpoint)
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@dataclass(frozen=True)
class Servers(Processes):
    """Endpoints by delay in milliseconds, 0 and `DELAY`.

    Attributes:
        rclone: rclone's server, over a temporary directory.
        memory: `bench.server`, which is asked at ``memory[0]`` what it counted.
    """

    rclone: dict[int, str]
    memory: dict[int, str]

    def client_settings(self, endpoint: str) -> dict[str, str]:
        return {
            "AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH": f"s3://{BUCKET}/common-io",
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@contextlib.contextmanager
def running() -> Iterator[Servers]:
    """Start the servers, and stop them in the end."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="async-state-bench-")))
        (home / "buckets" / BUCKET).mkdir(parents=True)
        rclone = stack.enter_context(rclone_s3(home / "buckets"))
        memory = stack.enter_context(_own("bench.server"))
        yield Servers(
            rclone={0: rclone, DELAY: stack.enter_context(delayed(rclone))},
            memory={0: memory, DELAY: stack.enter_context(delayed(memory))},
            home=home,
        )


@contextlib.contextmanager
def _own(module: str, *arguments: str) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def delayed(endpoint: str) -> contextlib.AbstractContextManager[str]:
    """Start `bench.delay` before a server, and yield its address."""
    address = urlsplit(endpoint)
    return _own("bench.delay", str(address.hostname), str(address.port), str(DELAY))
