"""The commands of README and the pages are run, and print what the pages show under them.

Each page has a story here: it makes the objects and rows that the page is about, and runs the page's commands in their
order. `python -m tests.docs.test_commands` writes what they print into the pages.

Every command in a block of ``console`` is run, and every ``airflow async-state`` in one of ``sh``. These are left out:

* pip and make, which the Makefile's targets and the workflows run;
* what else is in blocks of ``sh``: the clouds' own tools; and Airflow's own commands in the quick start, which
  `make test-docs` runs as a whole;
* ``kubectl exec`` itself. What it would run in a pod is run here.

``airflow async-state`` is ``python -m async_state`` here, which starts in no time in a fork. That both are the same is
shown by tests/cli.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import functools
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from airflow.sdk.state import AssetScope, TaskScope
from sqlalchemy import Engine

from async_state import AsyncStateBackend, Settings
from async_state.testing import FakeS3, fake_s3, faults
from tests import conftest  # noqa: F401 - for the environment of `main`
from tests.cloud_servers import AzureServer, GcsServer
from tests.docs.commands import SHOWN, Shown, Terminal, comparable
from tests.programs.runner import Runner, runner
from tests.project.test_snippets import PAGES, SNIPPETS
from tests.servers import s3_client
from tests.sweep import test_database
from tests.sweep.databases import engine_of

OLD, NEW = "s3://old-bucket/state", "s3://my-bucket/airflow-state"
BUCKETS: Final = ("old-bucket", "my-bucket", "airflow-state")
#: The address of the server on the pages.
ADDRESS: Final = "http://127.0.0.1:5000"
#: Returns a fixture by its name.
Fixture = Callable[[str], Any]


def options(**given: str) -> dict[str, str]:
    """Return options of ``[async_state]`` as variables."""
    return {f"AIRFLOW__ASYNC_STATE__{name.upper()}": value for name, value in given.items()}


class Ran(NamedTuple):
    """What a command did, and with which code it should end."""

    code: int
    expected: int
    output: str


#: Returns what the commands of a page did.
Told = Callable[[str], dict[Shown, Ran]]


class Story:
    """Runs the commands of a page, and makes what they find.

    Attributes:
        server: Of S3.
        fixture: Returns another server.
        ran: What was run so far.
    """

    def __init__(self, page: str, terminal: Terminal, server: FakeS3, rows: Engine, fixture: Fixture) -> None:
        self.server = server
        self.fixture = fixture
        self.ran: dict[Shown, Ran] = {}
        self._page = page
        self._rows = rows
        self._left = [each for each in SHOWN if each.page == page]
        self._terminal = terminal

    def run(self, beginning: str, environment: Mapping[str, str], code: int = 0) -> None:
        """Run the page's next command.

        Args:
            beginning: Of the command, or of what follows ``airflow async-state``.
            environment: What it needs besides.
            code: With which it should end.
        """
        shown = self._left.pop(0)
        _, _, arguments = shown.command.partition("async-state ")
        assert beginning in (shown.command.split()[0], *arguments.split()[:1]), f"line {shown.line} is not {beginning}"
        answers = [line.partition("[y/N] ")[2] for line in shown.output.splitlines() if "[y/N] " in line]
        script = shown.exports.replace(ADDRESS, self.server.url) + shown.command
        ended, output = self._terminal.run(script, environment, answers)
        self.ran[shown] = Ran(ended, code, output.replace(self.server.url, ADDRESS))

    def configuration(self) -> dict[str, str]:
        """Return the page's first configuration, as variables."""
        parser = configparser.ConfigParser()
        parser.read_string(next(s.text for s in SNIPPETS if s.page == self._page and s.language == "ini"))
        return {
            f"AIRFLOW__{section.replace('.', '_').upper()}__{option.upper()}": value
            for section in parser.sections()
            for option, value in parser[section].items()
        }

    def backend(self, url: str, **options: Any) -> AsyncStateBackend:
        """Return a worker's backend, to be closed."""
        return AsyncStateBackend(Settings(url=url, endpoint_url=self.server.url, **options))

    def age(self, url: str, **ago: float) -> None:
        """Have every object of the bucket be so old."""
        from moto.s3.models import s3_backends

        # Amid the unit in which ages are told.
        then = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(**ago)
        for account in s3_backends.values():
            for stored in account["aws"].buckets[url.split("/")[2]].keys.values():
                stored.last_modified = then

    def refer(self, *refs: str) -> None:
        """Have Airflow's database refer to these objects, and no others, in this order."""
        test_database.clear(self._rows)
        test_database.insert(self._rows, {ref: test_database.row(ref) for ref in refs}, {})


def etl(story: Story, url: str) -> list[str]:
    """Set the state of six runs, three days ago, of which the last one has only begun. Return the references."""
    refs = []
    with story.backend(url) as backend:
        for day in range(1, 7):
            refs.append(set_task(backend, of_etl(day, "submit"), "job_id", f"app_{day:03}"))
            if day < 6:
                refs.append(set_task(backend, of_etl(day, "load"), "watermark", mark(day)))
                refs.append(set_task(backend, of_etl(day, "load"), "batches", list(range(30 * day))))
    story.age(url, days=3, hours=12)
    return refs


def mark(day: int) -> dict[str, str]:
    return {"day": f"2026-11-{day:02}T00:00:00+00:00"}


def set_task(backend: AsyncStateBackend, scope: TaskScope, key: str, value: Any) -> str:
    """Set a key as a worker does, and return the reference."""
    return backend.serialize_task_state_store_to_ref(value=value, key=key, scope=scope)


def of_etl(day: int, task: str) -> TaskScope:
    return TaskScope(dag_id="etl", run_id=f"scheduled__2026-11-{day:02}T00:00:00+00:00", task_id=task)


def moving(story: Story) -> None:
    refs = etl(story, OLD)
    # The rows of two runs are gone, and a key of the third.
    story.refer(*refs[6:8], *refs[9:])
    story.run("copy", options(url=OLD))
    story.run("copy", options(url=OLD))
    with story.backend(OLD) as backend:
        set_task(backend, of_etl(6, "submit"), "job_id", "app_006")
    story.run("copy", options(url=OLD))
    story.age(NEW, days=3, hours=12)
    story.run("get", story.configuration())
    story.run("export-refs", story.configuration())
    story.run("copy", options(url=OLD))
    story.run("sweep", story.configuration(), 1)
    story.run("sweep", options(url=NEW), 1)
    story.run("export-refs", options(url=NEW))


def sweep(story: Story) -> None:
    refs = etl(story, NEW)
    story.refer(*refs[6:8], *refs[9:])
    with story.backend(NEW) as backend:
        young = set_task(backend, of_etl(6, "load"), "watermark", mark(6))
    story.run("export-refs", options(url=NEW))
    story.run("sweep", options(url=NEW), 1)
    story.run("sweep", options(url=NEW), 1)
    # One at a time, so that the report has them in their order.
    story.run("sweep", options(url=NEW, max_concurrency="1"))
    story.run("head", {})
    story.run("head", options(url=NEW), 1)
    story.refer(young)
    story.age(NEW, days=3, hours=12)
    story.run("sweep", options(url=NEW), 1)


def commands(story: Story) -> None:
    url = "s3://airflow-state/prod"
    environment = options(url=url, owner="prod", compression="gzip", endpoint_url=story.server.url)
    for _ in "well", "an option", "a bucket":
        story.run("check", environment)
    # As S3 says it of a wrong key; moto's server takes any.
    reason = "The request signature we calculated does not match the signature you provided."
    wrong = faults.error(403, "SignatureDoesNotMatch", reason, {"x-amz-request-id": "18EB6D22963E3AA1FEE0B03D"})
    with story.server.failing(wrong):
        story.run("check", environment)
    for _ in "an endpoint", "a backend":
        story.run("check", environment)

    def of(dag: str, task: str, map_index: int = -1) -> TaskScope:
        run = "scheduled__2026-11-24T06:00:00+00:00"
        return TaskScope(dag_id=dag, run_id=run, task_id=task, map_index=map_index)

    with story.backend(url, compression="gzip") as backend:
        for number in range(3):
            set_task(backend, of("orders", "export", number), "part", "x" * 300 * (number + 1))
        # Random, so that every gzip makes about the same of it. Not the same, as a value ends in random whitespace: no
        # size here is where a rounded one changes.
        checkpoint = base64.b64encode(random.Random(0).randbytes(1530)).decode()
        set_task(backend, of("orders", "load"), "checkpoint", checkpoint)
        set_task(backend, of("orders", "load"), "job_id", "j_8f3a6")
        set_task(backend, of("billing", "charge"), "job_id", "j_41d7")
        backend.serialize_asset_state_store_to_ref(
            value="2026-11-24T06:00:00Z", key="watermark", scope=AssetScope(name="orders")
        )
    story.age(url, hours=2, minutes=30)
    for command in ("list", "list", "get", "get", "usage", "usage", "delete", "delete"):
        story.run(command, environment)


def local(story: Story) -> None:
    story.run("check", {})
    scope = TaskScope(dag_id="async_state_task", run_id="manual__2026-11-24T06:00:00+00:00", task_id="submit")
    with story.backend(NEW) as backend:
        set_task(backend, scope, "job_id", "job of submit")
    story.run("list", {})
    story.run("get", {})


def from_common_io(story: Story) -> None:
    story.refer(*etl(story, NEW))
    # grep's, which finds nothing.
    story.run("export-refs", story.configuration(), 1)


def checked(**given: str) -> Callable[[Story], None]:
    return lambda story: story.run("check", options(**given))


def google_cloud(story: Story) -> None:
    server: GcsServer = story.fixture("gcs_server")
    server.make_bucket("my-bucket")
    story.run("check", story.configuration() | options(endpoint_url=server.url))


def azure(story: Story) -> None:
    server: AzureServer = story.fixture("azure_server")
    server.make_container("my-container")
    account = options(azure_account=server.account, endpoint_url=server.endpoint)
    story.run("check", story.configuration() | account)


STORIES: Final[dict[str, Callable[[Story], None]]] = {
    "azure.md": azure,
    "celery.md": checked(),
    "commands.md": commands,
    "from-common-io.md": from_common_io,
    "google-cloud.md": google_cloud,
    "kubernetes.md": checked(url=NEW, owner="prod"),
    "local.md": local,
    "moving.md": moving,
    "sweep.md": sweep,
}


def tell(page: str, server: FakeS3, python: Runner, rows: Engine, fixture: Fixture) -> dict[Shown, Ran]:
    """Run a page's commands, with buckets, a directory and a terminal of their own."""
    environment = {
        **os.environ,
        "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": str(rows.url),
        "AWS_ENDPOINT_URL_S3": server.url,
    }
    test_database.clear(rows)
    with contextlib.closing(s3_client(server.url)) as client, tempfile.TemporaryDirectory() as directory:
        for bucket in BUCKETS:
            client.create_bucket(Bucket=bucket)
        try:
            story = Story(page, Terminal(python, Path(directory), environment), server, rows, fixture)
            STORIES[page](story)
        finally:
            for bucket in BUCKETS:
                for stored in client.list_objects_v2(Bucket=bucket).get("Contents", []):
                    client.delete_object(Bucket=bucket, Key=stored["Key"])
                client.delete_bucket(Bucket=bucket)
    return story.ran


@pytest.fixture(scope="module")
def rows() -> Iterator[Engine]:
    with engine_of("sqlite") as engine:
        yield engine


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, moto_server: FakeS3, python: Runner, rows: Engine) -> Told:
    """Tell each page's story once."""
    return functools.cache(lambda page: tell(page, moto_server, python, rows, request.getfixturevalue))


@pytest.mark.parametrize("shown", SHOWN, ids=[f"{shown.page}-{shown.line}" for shown in SHOWN])
def test_a_command_prints_what_its_page_shows(shown: Shown, told: Told) -> None:
    assert shown.page in STORIES, "the page has no story that runs its commands"
    ran = told(shown.page).get(shown)
    assert ran is not None, "the page's story does not run it"
    assert ran.code == ran.expected, ran.output
    if shown.output:
        assert comparable(ran.output) == comparable(shown.output)


def test_commands_are_where_they_are_run() -> None:
    assert {snippet.language for snippet in SNIPPETS if re.search(r"^\$ ", snippet.text, re.MULTILINE)} == {"console"}


def write(page: Path, ran: dict[Shown, Ran]) -> None:
    """Write under each command of the page what it has printed, if the page shows something else there."""
    lines = page.read_text().splitlines()
    for shown in sorted(ran, key=lambda shown: shown.line, reverse=True):
        output = ran[shown].output
        if shown.output and comparable(output) != comparable(shown.output):
            indent = lines[shown.line - 1].partition("$")[0]
            end = shown.line + len(shown.output.splitlines())
            lines[shown.line : end] = [(indent + line).rstrip() for line in output.splitlines()]
    page.write_text("\n".join(lines) + "\n")


def main() -> None:
    with fake_s3([]) as server, runner() as python, engine_of("sqlite") as rows:
        for page in PAGES:
            # Those of the clouds show nothing.
            if page.name in STORIES and STORIES[page.name] not in (azure, google_cloud):
                write(page, tell(page.name, server, python, rows, fixture=str))


if __name__ == "__main__":
    main()
