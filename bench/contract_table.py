"""The contract, held against this package's backend and against common-io's: writes docs/contract.md.

    python -m bench.contract_table

Takes a few minutes. Both backends keep their state on moto's S3 server, with the configuration that their documentation
gives for S3. What is about the first use has a process of its own, in which nothing was used before.
Needs the dependency groups ``test`` and ``bench`` (common-io comes with ``apache-airflow-providers-amazon[s3fs]``).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from async_state.testing import FakeS3, SlowStoreContract, StateBackendContract, fake_s3, faults

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "contract.md"
SECONDS = 600


@pytest.fixture(scope="session")
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        os.environ.update(server.environment)
        yield server


class OnS3:
    @pytest.fixture
    def slowed(self, s3: FakeS3) -> Callable[[float], AbstractContextManager[object]]:
        return lambda seconds: s3.failing(faults.never_answers() if math.isinf(seconds) else faults.latency(seconds))


@pytest.fixture
def ours(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from async_state import AsyncStateBackend

    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__URL", "s3://state/ours")
    with AsyncStateBackend() as backend:
        yield backend


class TestOurs(StateBackendContract):
    @pytest.fixture
    def backend(self, ours: Any) -> Any:
        return ours

    @pytest.fixture
    def with_other_compression(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
        def changed() -> Any:
            monkeypatch.setenv("AIRFLOW__ASYNC_STATE__COMPRESSION", "gzip")
            return self.anew()

        return changed

    @pytest.fixture
    def with_other_base(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
        def changed() -> Any:
            monkeypatch.setenv("AIRFLOW__ASYNC_STATE__URL", "s3://state/moved")
            monkeypatch.setenv("AIRFLOW__ASYNC_STATE__TRUSTED_URLS", "s3://state/ours")
            return self.anew()

        return changed

    def anew(self) -> Any:
        from async_state import AsyncStateBackend

        return AsyncStateBackend()


class TestOursSlow(OnS3, SlowStoreContract):
    @pytest.fixture
    def backend(self, ours: Any) -> Any:
        return ours


@pytest.fixture
def common_io(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from airflow.providers.common.io.state_store.backend import StateStoreObjectStorageBackend

    monkeypatch.setenv("AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH", "s3://state/common-io")
    monkeypatch.setenv("AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_THRESHOLD", "0")
    forget_options()
    yield StateStoreObjectStorageBackend()
    forget_options()


def forget_options() -> None:
    """Make common-io read its options again, as a process does that starts after they were changed."""
    from airflow.providers.common.io.state_store import backend

    for option in (backend._get_base_path, backend._get_compression, backend._get_threshold):
        option.cache_clear()


class TestCommonIO(StateBackendContract):
    @pytest.fixture
    def backend(self, common_io: Any) -> Any:
        return common_io

    @pytest.fixture
    def with_other_compression(self, common_io: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
        def changed() -> Any:
            monkeypatch.setenv("AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_COMPRESSION", "gzip")
            forget_options()
            return common_io

        return changed

    @pytest.fixture
    def with_other_base(self, common_io: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
        def changed() -> Any:
            # There is no option for earlier paths.
            monkeypatch.setenv("AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH", "s3://state/moved")
            forget_options()
            return common_io

        return changed


class TestCommonIOSlow(OnS3, SlowStoreContract):
    @pytest.fixture
    def backend(self, common_io: Any) -> Any:
        return common_io


#: Name of a test without its parameters -> what each parameter's test said; empty if it passed.
Outcomes = dict[str, dict[str, str]]


def run_each(classes: tuple[type, ...]) -> Outcomes:
    """Run the tests of the classes."""
    outcomes: Outcomes = {}
    for kind in classes:
        # A process that has used s3fs can't fork, which is row 26's business and not that of these.
        for chosen in ("not first_use and not other_processes", "first_use", "other_processes"):
            outcomes |= run(kind.__name__, chosen)
    return outcomes


def run(kind: str, chosen: str) -> Outcomes:
    """Run the tests of one class that pytest's ``-k`` expression chooses, in a process of their own."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        # Nothing of this repository's pytest options, which make errors of other people's warnings.
        options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(ROOT), f"--junit-xml={report}"]
        home = {"AIRFLOW_HOME": directory, "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AWS_EC2_METADATA_DISABLED": "true"}
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "AIRFLOW_"))}
        command = [sys.executable, "-m", "pytest", *options, "-k", chosen, f"{__file__}::{kind}"]
        ended = subprocess.run(
            command, cwd=ROOT, env=clean | home, timeout=SECONDS, capture_output=True, text=True, check=False
        )
        if not report.exists():
            raise RuntimeError(f"{kind} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
        print(kind, ended.stdout.splitlines()[-1:], file=sys.stderr)
        outcomes: Outcomes = {}
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            name, _, parameter = case.get("name", "").removesuffix("]").partition("[")
            said = outcomes.setdefault(name, {})
            said[parameter] = ""
            for problem in (*case.findall("failure"), *case.findall("error")):
                said[parameter] = reason(problem.get("message") or "")
            for skipped in case.findall("skipped"):
                said[parameter] = f"skipped: {skipped.get('message')}"
        return outcomes


def reason(message: str) -> str:
    """Return the first line of what a test failed with, without what differs from run to run."""
    lines = [line for line in message.splitlines() if line.strip() and not line.startswith("assert ")]
    text = (lines or message.splitlines() or [""])[0]
    text = re.sub(r"^(AssertionError|Failed): ", "", text)
    text = re.sub(r"\b[0-9a-f]{32}\b", "…", text)
    text = re.sub(r"\b0x[0-9a-f]+\b", "…", text)
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 300 else text[:300] + "…"


def cell(said: dict[str, str]) -> str:
    """Return the table's word for one test."""
    failed = {parameter: text for parameter, text in said.items() if text}
    if not failed:
        return "pass"
    first = next(iter(failed.values()))
    if all(text.startswith("skipped") for text in failed.values()):
        return first
    of = f" ({len(failed)} of {len(said)}: {', '.join(failed)})" if len(failed) < len(said) else ""
    return f"**fail**{of}: {first}"


def table(ours: Outcomes, theirs: Outcomes) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| row | rule | async_state | common-io |"
    yield "|---|---|---|---|"
    for name in sorted(ours):
        words = name.removeprefix("test_contract_").split("_")
        rows = ", ".join(word for word in words if word.isdecimal())
        rule = " ".join(word for word in words if not word.isdecimal())
        yield f"| {rows} | {rule} | {cell(ours[name])} | {cell(theirs[name])} |"


HEAD = """# What a state-store backend must honour

This page has every rule that Airflow has for a state-store backend, and which of them two backends keep.

Made by `python -m bench.contract_table` from `async_state.testing.StateBackendContract` and `SlowStoreContract`, which
any author of a `BaseStoreBackend` can subclass. What each row demands, and where in Airflow it comes from, is in the
docstring of its test in `src/async_state/testing/contract.py`.

async_state {ours} and common-io's `StateStoreObjectStorageBackend` ({common_io}, s3fs {s3fs}) with task-sdk {sdk}, both
on moto's S3 server with the configuration that their documentation gives for S3. Most tests run in four ways:
synchronous methods from a thread, coroutines, and synchronous methods on a running event loop, without and with a
greenback portal; where only some of them fail, they are named.

"""


def main() -> None:
    # Side by side, since most of the time is spent waiting for what never answers.
    with ThreadPoolExecutor() as pool:
        ours, theirs = pool.map(run_each, ((TestOurs, TestOursSlow), (TestCommonIO, TestCommonIOSlow)))
    head = HEAD.format(
        ours=version("airflow-async-state"),
        common_io=version("apache-airflow-providers-common-io"),
        s3fs=version("s3fs"),
        sdk=version("apache-airflow-task-sdk"),
    )
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(head + "\n".join(table(ours, theirs)) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
