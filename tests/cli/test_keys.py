"""``list``, ``get``, ``usage`` and ``delete``, on real stores."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk.state import AssetScope, TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.cli import context, definition, runner
from async_state.testing import FakeS3, Request, faults
from async_state.testing.server import FakeServer
from tests import cloud_places
from tests.cloud_faults import azure_error, gcs_error
from tests.programs.runner import Command, Runner, wait_until_asleep
from tests.programs.wire import PATIENCE

LONG = "x" * 400
#: What the fixture stores: owner, key, value.
STATE: list[tuple[Any, str, Any]] = [
    (TaskScope("etl", "r1", "load"), "job_id", "app_001"),
    (TaskScope("etl", "r1", "load"), "a/b", {"rows": ["y" * 40] * 20}),
    (TaskScope("etl", "r1", "load", 0), "job_id", 1),
    (TaskScope("etl", "r1", "load", 10), "job_id", 2),
    (TaskScope("etl", "r2", "load2"), "job_id", 3),
    (TaskScope("etl 2", "r1", "load"), "job_id", 4),
    (TaskScope("assets", "r1", "load"), LONG, 5),
    (AssetScope(name="orders"), "cursor", 6),
    (AssetScope(uri="s3://orders/daily"), "cursor", 7),
]


class Cli:
    """Runs commands in this process, on one store."""

    def __init__(self, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
        self.settings = settings
        self._capsys = capsys
        self.err = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run the command, and return what it prints."""
        args = definition.parser().parse_args(arguments)
        with pytest.raises(SystemExit) as ended:
            args.func(args)
        out, self.err = self._capsys.readouterr()
        assert ended.value.code == code, (arguments, ended.value.code, out, self.err)
        return out

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self(*arguments, "--output", "json"))
        return found


DAY = timedelta(days=1)


@pytest.fixture(params=["memory", "file", "moto", *cloud_places.CLOUDS])
def cli(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    name = uuid.uuid4().hex
    options: dict[str, Any] = {"url": f"memory://{name}"}
    if request.param == "file":
        options = {"url": (tmp_path / "state").as_uri()}
    elif request.param == "moto":
        options = {"url": f"s3://state/{name}", "endpoint_url": request.getfixturevalue("moto").url}
    elif request.param in cloud_places.CLOUDS:
        options = cloud_places.options(request, request.param, name)
    settings = Settings(**options, compression="gzip", compression_threshold=500)
    monkeypatch.setattr(context, "settings", lambda: settings)
    # It replaces the root logger's handlers, which are pytest's here.
    monkeypatch.setattr(runner, "_log_to_stderr", lambda **_: None)
    with AsyncStateBackend(settings) as backend:
        for scope, key, value in STATE:
            store(backend, scope)(value=value, key=key, scope=scope)
        backend.set(TaskScope("etl", "r1", "served"), "row", '"text"', expires_at=datetime.now(timezone.utc) + DAY)
    return Cli(settings, capsys)


def store(backend: AsyncStateBackend, scope: Any) -> Callable[..., str]:
    of_task = isinstance(scope, TaskScope)
    return backend.serialize_task_state_store_to_ref if of_task else backend.serialize_asset_state_store_to_ref


@pytest.mark.parametrize(
    ("filters", "values"),
    [
        ((), 10),
        (("--dag-id", "etl"), 6),
        (("--dag-id", "etl", "--run-id", "r1"), 5),
        (("--dag-id", "etl", "--run-id", "r1", "--task-id", "load"), 4),
        (("--dag-id", "etl", "--task-id", "load", "--map-index", "0"), 1),
        (("--map-index", "-1"), 6),
        (("--run-id", "r1"), 7),
        (("--task-id", "load"), 6),
        (("--key", "job_id"), 5),
        (("--dag-id", "assets", "--key", LONG), 1),
        (("--key", "a/b"), 1),
        (("--asset-name", "orders"), 1),
        (("--asset-uri", "s3://orders/daily", "--key", "cursor"), 1),
        (("--asset-name", "s3://orders/daily"), 0),
        (("--dag-id", "none"), 0),
    ],
)
def test_filters_select(cli: Cli, filters: tuple[str, ...], values: int) -> None:
    assert len(cli.rows("list", *filters)) == values
    refs = [row["ref"] for row in cli.rows("list", *filters, "--no-encoding")]
    assert refs == sorted(refs)
    assert len(set(refs)) == values


def test_a_row_says_what_an_object_is(cli: Cli) -> None:
    (row,) = cli.rows("list", "--dag-id", "etl", "--key", "a/b")
    modified = datetime.fromisoformat(row.pop("modified"))
    assert abs(datetime.now(timezone.utc) - modified) < timedelta(hours=1)
    assert 0 < row.pop("size") < 500
    assert row == {
        "dag_id": "etl",
        "run_id": "r1",
        "task_id": "load",
        "map_index": -1,
        "asset": None,
        "key": "a/b",
        "encoding": "gzip",
        "plane": "worker",
        "ref": f"{cli.settings.url}/v1/task/etl/r1/load/-1/worker/a%2Fb",
    }
    assert {row["plane"] for row in cli.rows("list", "--task-id", "served")} == {"server"}
    assert {row["encoding"] for row in cli.rows("list", "--key", "job_id")} == {"none"}
    assert {row["encoding"] for row in cli.rows("list", "--no-encoding")} == {None}


def test_each_format(cli: Cli) -> None:
    assert len(yaml.safe_load(cli("list", "-o", "yaml"))) == 10
    assert len(cli("list", "-o", "plain").splitlines()) == 11
    table = cli("list", "--asset-name", "orders").splitlines()
    assert table[0].split(" | ")[0].strip() == "asset"
    assert len(table) == 3
    assert cli("list", "--dag-id", "none") == "No data found\n"
    assert cli("list", "--dag-id", "none", "-o", "json") == "[]\n"


def test_usage_is_largest_first(cli: Cli) -> None:
    by_dag = cli.rows("usage")
    assert {row["dag_id"]: row["objects"] for row in by_dag} == {"etl": 6, "etl 2": 1, "assets": 1}
    assert [row["bytes"] for row in by_dag] == sorted((row["bytes"] for row in by_dag), reverse=True)
    assert sum(row["bytes"] for row in by_dag) == sum(row["size"] for row in cli.rows("list") if row["dag_id"])
    by_run = {(row["dag_id"], row["run_id"]): row["objects"] for row in cli.rows("usage", "--by", "run")}
    assert by_run == {("etl", "r1"): 5, ("etl", "r2"): 1, ("etl 2", "r1"): 1, ("assets", "r1"): 1}
    assert {row["asset"] for row in cli.rows("usage", "--by", "asset")} == {"orders", "s3://orders/daily"}
    assert len(cli.rows("usage", "--by", "run", "--dag-id", "etl")) == 2


def test_get_shows_a_value_only_if_asked_to(cli: Cli) -> None:
    ref = f"{cli.settings.url}/v1/task/etl/r1/load/-1/worker/job_id"
    for arguments in ((ref,), ("--dag-id", "etl", "--run-id", "r1", "--map-index", "-1", "--key", "job_id")):
        for output in "table", "json", "yaml", "plain":
            assert "app_001" not in cli("get", *arguments, "-o", output)
            assert "app_001" in cli("get", *arguments, "-o", output, "--show-value")
        found = json.loads(cli("get", *arguments, "-o", "json", "--show-value"))
        assert (found["ref"], found["value"], found["key"]) == (ref, "app_001", "job_id")
    served = json.loads(cli("get", "--task-id", "served", "-o", "json"))
    assert datetime.fromisoformat(served["expires_at"]) > datetime.now(timezone.utc)


def test_get_of_none_and_of_several(cli: Cli) -> None:
    cli("get", f"{cli.settings.url}/v1/task/etl/r1/load/-1/worker/none", code=1)
    assert "There is no object" in cli.err
    cli("get", "--dag-id", "none", code=1)
    cli("get", "--dag-id", "etl", code=2)
    assert "The filters select several keys" in cli.err
    cli("get", "s3://elsewhere/v1/task/etl/r1/load/-1/worker/none", code=1)
    assert "is not an object below" in cli.err
    cli("get", code=2)
    cli("get", "ref", "--dag-id", "etl", code=2)


def test_delete_deletes_what_is_selected_and_nothing_else(cli: Cli) -> None:
    before = {row["ref"] for row in cli.rows("list")}
    selected = {row["ref"] for row in cli.rows("list", "--dag-id", "etl", "--task-id", "load")}
    assert "Would delete 4 objects" in cli("delete", "--dag-id", "etl", "--task-id", "load", "--dry-run")
    assert {row["ref"] for row in cli.rows("list")} == before
    assert cli("delete", "--dag-id", "etl", "--task-id", "load", "--yes") == "Deleted 4 objects\n"
    assert {row["ref"] for row in cli.rows("list")} == before - selected
    assert cli("delete", "--dag-id", "etl", "--task-id", "load", "--yes") == "No data found\n"


def test_delete_of_everything_is_refused(cli: Cli) -> None:
    cli("delete", "--yes", code=2)
    assert "never deletes everything" in cli.err
    cli("delete", "--dag-id", "etl", "--asset-name", "orders", "--yes", code=2)
    cli("delete", "--asset-uri", "etl", "--asset-name", "orders", "--yes", code=2)
    assert len(cli.rows("list")) == 10


@pytest.mark.parametrize(
    ("scheme", "server", "fault", "said"),
    [
        ("s3", "moto", faults.error(403, "AccessDenied"), "AccessDenied"),
        ("gs", "gcs", gcs_error(403, "forbidden"), "Storage Object User"),
        ("az", "azure", azure_error(403, "AuthorizationFailure"), "Storage Blob Data Contributor"),
    ],
    ids=["s3", "gs", "az"],
)
def test_a_failure_names_itself_and_the_next_try_takes_up_the_rest(
    scheme: str, server: str, fault: faults.Fault, said: str, request: pytest.FixtureRequest, python: Runner
) -> None:
    store: FakeServer = request.getfixturevalue(server)
    path = uuid.uuid4().hex
    if scheme == "s3":
        settings = Settings(url=f"s3://state/{path}", endpoint_url=store.url)
    else:
        settings = Settings(**cloud_places.options(request, scheme, path))
    with AsyncStateBackend(settings) as backend:
        for number in range(3):
            backend.serialize_task_state_store_to_ref(value=1, key=str(number), scope=TaskScope("d", "r", "t"))
    environment = environment_of(settings)
    command = ("delete", "--dag-id", "d", "--yes")
    with (
        store.failing(fault, method="POST"),
        Command(python, *command, environment=environment) as failed,
    ):
        out, err = failed.communicate()
    assert failed.returncode == 1
    assert said in err
    assert out == ""
    with Command(python, *command, environment=environment) as done:
        assert done.communicate()[0] == "Deleted 3 objects\n"
    assert done.returncode == 0


def environment_of(settings: Settings) -> dict[str, str]:
    given = {
        "AIRFLOW__ASYNC_STATE__URL": settings.url,
        "AIRFLOW__ASYNC_STATE__ENDPOINT_URL": settings.endpoint_url or "",
        "AIRFLOW__ASYNC_STATE__AZURE_ACCOUNT": settings.azure_account or "",
    }
    return {**os.environ, **given, "AIRFLOW__ASYNC_STATE__TIMEOUT": str(settings.timeout)}


def test_in_a_process_of_its_own(tmp_path: Path, python: Runner) -> None:
    settings = Settings(url=(tmp_path / "state").as_uri())
    environment = environment_of(settings)
    with AsyncStateBackend(settings) as backend:
        # So long that the listing is more than a pipe holds.
        for number in range(300):
            key = f"{number}{'x' * 150}"
            backend.serialize_task_state_store_to_ref(value=1, key=key, scope=TaskScope("d", "r", "t"))
    with Command(python, "list", "--no-such-option", environment=environment) as wrong:
        assert wrong.communicate()[0] == ""
    assert wrong.returncode == 2
    # What reads it has enough after one line.
    listing = f"{sys.executable} -m async_state list -o plain --no-encoding | head -1"
    piped = subprocess.run(["sh", "-c", listing], env=environment, check=True, capture_output=True, text=True)
    assert piped.stdout.startswith("dag_id")
    assert piped.stderr == ""
    # The disk that it is written to is full: at the first thousands of characters, or at the end.
    for options in [], ["--key", f"7{'x' * 150}"]:
        command = [sys.executable, "-m", "async_state", "list", "-o", "json", *options]
        with Path("/dev/full").open("w") as full:
            refused = subprocess.run(command, env=environment, check=False, stdout=full, stderr=subprocess.PIPE)
        assert refused.stderr == b"standard output can't be written: No space left on device\n"
        assert refused.returncode == 1
    command = [sys.executable, "-m", "airflow", "async-state", "list", "--key", f"7{'x' * 150}", "-o", "json"]
    airflow = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert airflow.returncode == 0, airflow.stderr
    # On Python 3.14, Airflow warns of itself on standard output.
    listed = "\n".join(line for line in airflow.stdout.splitlines() if "[py.warnings]" not in line)
    assert [row["key"] for row in json.loads(listed)] == [f"7{'x' * 150}"]


def test_ctrl_c_ends_it(moto: FakeS3, python: Runner) -> None:
    settings = Settings(url="s3://state/endless", endpoint_url=moto.url, timeout=2 * PATIENCE)
    arrived = threading.Event()

    def is_any(_: Request) -> bool:
        arrived.set()
        return True

    with (
        moto.failing(faults.never_answers(), when=is_any),
        Command(python, "list", environment=environment_of(settings)) as process,
    ):
        assert arrived.wait(PATIENCE)
        wait_until_asleep(process.pid)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    assert process.returncode == 130
    assert out == ""


def test_the_definition_imports_nothing_heavy() -> None:
    """Every ``airflow`` command imports it."""
    code = (
        "import sys; before = set(sys.modules); import async_state.cli.definition; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"aiobotocore", "aiohttp", "airflow", "anyio", "asyncio", "botocore", "httpx", "rich", "sqlalchemy", "yaml"}
    assert not heavy & set(done.stdout.split())


def test_both_command_lines_have_the_same_options() -> None:
    group = definition.group()
    parsers = definition.parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert isinstance(parsers, dict)
    for command in group.subcommands:
        parser: argparse.ArgumentParser = parsers[command.name]
        ours = {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
        assert ours == {flag for arg in command.args for flag in arg.flags if flag.startswith("-")}
