"""The command ``copy``, between real stores."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from airflow.sdk.state import AssetScope, TaskScope

from async_state import AsyncStateBackend, Settings, codec, connections, iothread
from async_state.cli import copy as command
from async_state.cli import definition, output, runner
from async_state.copying import Copying
from async_state.stores import Store, open_store
from async_state.stores.file import FileStore
from async_state.testing import Answer, FakeS3, Request, faults
from async_state.testing.faults import Exchange, Fault
from tests import cloud_places, cloud_servers
from tests.programs.runner import Command, Runner
from tests.programs.wire import PATIENCE

#: What a copy inside S3 says of where it comes from.
COPY_SOURCE = "x-amz-copy-source"
VALUES: dict[str, Any] = {f"key {number}/%": {"value": number, "text": "x" * 200 * number} for number in range(4)}


class Place:
    """A base URL, and what is below it."""

    def __init__(self, url: str, endpoint_url: str | None = None, azure_account: str | None = None) -> None:
        self.settings = Settings(
            url=url,
            endpoint_url=endpoint_url,
            azure_account=azure_account,
            compression="gzip",
            compression_threshold=300,
        )

    @property
    def environment(self) -> dict[str, str]:
        """What names the store where ``url`` is of another scheme."""
        endpoint, account = self.settings.endpoint_url or "", self.settings.azure_account
        string = f"AccountName={account};AccountKey={cloud_servers.AZURE_KEY};BlobEndpoint={endpoint}"
        of_schemes = {
            "s3": {"AWS_ENDPOINT_URL": endpoint},
            "gs": {"STORAGE_EMULATOR_HOST": endpoint},
            "az": {"AZURE_STORAGE_CONNECTION_STRING": string},
        }
        return of_schemes.get(self.scheme, {})

    @property
    def options(self) -> dict[str, str]:
        """What names the store where ``url`` is of its scheme."""
        given = {"ENDPOINT_URL": self.settings.endpoint_url, "AZURE_ACCOUNT": self.settings.azure_account}
        return {f"AIRFLOW__ASYNC_STATE__{name}": value for name, value in given.items() if value}

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def url(self) -> str:
        return self.settings.url

    def fill(self) -> dict[str, bytes]:
        """Write state of both sides, and return what is stored by name."""
        scope = TaskScope(dag_id="dag", run_id="run", task_id="task")
        with AsyncStateBackend(self.settings) as backend:
            for key, value in VALUES.items():
                backend.serialize_task_state_store_to_ref(value=value, key=key, scope=scope)
            backend.serialize_asset_state_store_to_ref(value=1, key="key", scope=AssetScope(name="asset"))
            backend.set(scope, "row", "[1]")
        return self.objects()

    def objects(self) -> dict[str, bytes]:
        async def read(store: Store) -> dict[str, bytes]:
            names = [entry.name async for page in store.entries("", timeout=20) for entry in page]
            return {name: await store.get(name, timeout=20) or b"" for name in names}

        found: dict[str, bytes] = self._with(read)
        return found

    def put(self, name: str, body: bytes) -> None:
        self._with(lambda store: store.put(name, body, codec.content_encoding(body), timeout=20))

    def delete(self, name: str) -> None:
        self._with(lambda store: store.delete([name], timeout=20))

    def encodings(self) -> dict[str, str]:
        async def look(store: Store) -> dict[str, str]:
            names = [entry.name async for page in store.entries("", timeout=20) for entry in page]
            seen = {name: await store.head(name, timeout=20) for name in names}
            return {name: details.content_encoding for name, details in seen.items() if details is not None}

        found: dict[str, str] = self._with(look)
        return found

    def _with(self, function: Callable[[Store], Any]) -> Any:
        async def run() -> Any:
            store = open_store(self.url, self.settings, connections.empty(self.url))
            try:
                return await function(store)
            finally:
                await store.aclose()

        return iothread.run(iothread.arun, run)


def environment_of(source: Place, target: Place | str) -> dict[str, str]:
    """Return what the command reads: the options are of ``url``'s scheme, the variables of any other."""
    given = {"AIRFLOW__ASYNC_STATE__URL": source.url, **source.options}
    if isinstance(target, Place) and target.scheme != source.scheme:
        # A directory has no address.
        given |= target.options if source.scheme == "file" else target.environment
    return given


Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, and return its exit code."""

    def run(source: Place, target: Place | str, *options: str) -> int:
        for name, value in environment_of(source, target).items():
            monkeypatch.setenv(name, value)
        to = target.url if isinstance(target, Place) else target
        args = definition.parser().parse_args(["copy", "--to", to, *options])
        monkeypatch.setattr(runner, "_log_to_stderr", lambda *, verbose: None)
        return runner.run(command.run, args)

    return run


#: From each cloud to another one, and within one, as far as their servers are installed.
BETWEEN_CLOUDS = [
    pair
    for pair in ("s3 to gs", "gs to az", "az to s3", "file to gs", "gs to gs")
    if {"gs", "az"} & set(pair.split()) <= set(cloud_places.CLOUDS)
]


@pytest.fixture(params=["s3 to s3", "file to s3", "s3 to file", "file to file", "rclone to rclone", *BETWEEN_CLOUDS])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, Place]:
    """A source and a target of each two kinds of store."""
    kinds = request.param.split(" to ")
    server: str | None = None
    if "rclone" in kinds:
        server = request.getfixturevalue("rclone_url")
    elif "s3" in kinds:
        server = request.getfixturevalue("moto_server").url

    def place(kind: str, name: str) -> Place:
        if kind == "file":
            return Place((tmp_path / name).as_uri())
        if kind in cloud_places.CLOUDS:
            return Place(**cloud_places.options(request, kind, f"copy-{uuid.uuid4().hex}/{name}"))
        return Place(f"s3://state/copy-{uuid.uuid4().hex}/{name}", server)

    return place(kinds[0], "old"), place(kinds[1], "new")


@pytest.fixture
def s3(moto: FakeS3) -> tuple[Place, Place]:
    """Two prefixes of one bucket."""
    root = f"s3://state/copy-{uuid.uuid4().hex}"
    return Place(f"{root}/old", moto.url), Place(f"{root}/new", moto.url)


def test_every_object_of_ours_is_copied(
    run: Run, places: tuple[Place, Place], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = places
    ours = source.fill()
    source.put("v1/owner", b"{}")
    source.put("v1/task/foreign", b"1")
    encodings = {name: encoding for name, encoding in source.encodings().items() if name in ours}
    assert set(encodings.values()) == {"", "gzip"}

    assert run(source, target, "--yes") == 0
    assert target.objects() == ours
    assert target.encodings() == encodings
    out, err = capsys.readouterr()
    assert f"{source.url} has 6 objects of async_state.\n" in out
    stored = output.size(sum(map(len, ours.values())))
    assert f"6 objects ({stored}) to copy to {target.url}.\n" in out
    assert "1 object not of async_state, and not copied.\n" in out
    assert out.endswith(f"Copied 6 objects.\nEvery object of {source.url} is below {target.url}.\n")
    assert err == ""

    assert run(source, target, "--yes") == 0
    out, err = capsys.readouterr()
    assert f"0 objects (0 B) to copy to {target.url}" in out
    assert "6 objects there already.\n" in out
    assert out.endswith(f"Every object of {source.url} is below {target.url}.\n")
    assert target.objects() == ours


def test_inside_s3_no_object_is_read(run: Run, s3: tuple[Place, Place], moto: FakeS3) -> None:
    source, target = s3
    source.fill()
    moto.requests.clear()
    assert run(source, target, "--yes") == 0
    assert {request.method for request in moto.requests if not request.query.startswith("list-type")} == {"HEAD", "PUT"}
    assert len([request for request in moto.requests if COPY_SOURCE in request.headers]) == 6


def test_copies_are_encrypted_as_configured(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__SSE_KMS_KEY_ID", "alias/state")
    source, target = s3
    ours = source.fill()
    assert run(source, target, "--yes") == 0
    copies = [request.headers for request in moto.requests if COPY_SOURCE in request.headers]
    assert {headers["x-amz-server-side-encryption"] for headers in copies} == {"aws:kms"}
    assert {headers["x-amz-server-side-encryption-aws-kms-key-id"] for headers in copies} == {"alias/state"}
    assert target.objects() == ours


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented")])
def test_where_s3_can_not_copy_objects_are_read_and_put(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, status: int, code: str
) -> None:
    source, target = s3
    ours = source.fill()
    encodings = source.encodings()
    with moto.failing(faults.error(status, code), when=lambda request: COPY_SOURCE in request.headers) as hit:
        assert run(source, target, "--yes") == 0
    # What knows no condition is asked without one as well.
    assert len(hit.requests) == (12 if status == 501 else 6)
    assert target.objects() == ours
    assert target.encodings() == encodings


def test_a_dry_run_copies_nothing(run: Run, places: tuple[Place, Place], capsys: pytest.CaptureFixture[str]) -> None:
    source, target = places
    source.fill()
    assert run(source, target, "--dry-run") == 0
    assert target.objects() == {}
    assert "6 objects" in capsys.readouterr().out


def test_without_a_yes_nothing_is_copied(
    run: Run, s3: tuple[Place, Place], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = s3
    source.fill()
    reading, writing = os.pipe()
    os.write(writing, b"n\n")
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run(source, target) == 1
    assert target.objects() == {}
    assert "Copy 6 objects? [y/N] Nothing was copied.\n" in capsys.readouterr().err


def test_nothing_to_copy(run: Run, s3: tuple[Place, Place], capsys: pytest.CaptureFixture[str]) -> None:
    source, target = s3
    assert run(source, target) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{source.url} has 0 objects of async_state."


@pytest.mark.parametrize(("step", "carried_out"), [(0, False), (2, True)], ids=["before a copy", "after a copy"])
def test_a_copy_that_is_killed_and_run_again(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, python: Runner, tmp_path: Path, step: int, *, carried_out: bool
) -> None:
    source, target = s3
    ours = source.fill()
    copies, killed = itertools.count(), threading.Event()
    process: Future[Command] = Future()
    environment = {
        **os.environ,
        "AIRFLOW__ASYNC_STATE__URL": source.url,
        "AIRFLOW__ASYNC_STATE__ENDPOINT_URL": moto.url,
        "AIRFLOW__ASYNC_STATE__MAX_CONCURRENCY": "1",
        "TMPDIR": str(tmp_path),
    }

    def kill(exchange: Exchange) -> Answer:
        if next(copies) < step:
            return exchange.carry_out(exchange.body)
        if carried_out:
            exchange.carry_out(exchange.body)
        process.result().send_signal(signal.SIGKILL)
        killed.set()
        return "500 Killed", [], b""

    with (
        moto.failing(Fault(kill), when=lambda request: COPY_SOURCE in request.headers),
        Command(python, "copy", "--to", target.url, "--yes", environment=environment) as copying,
    ):
        process.set_result(copying)
        assert killed.wait(PATIENCE)
    assert copying.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())
    there = step + carried_out
    assert len(target.objects()) == there
    moto.requests.clear()
    assert run(source, target, "--yes") == 0
    assert len([request for request in moto.requests if COPY_SOURCE in request.headers]) == 6 - there
    assert target.objects() == ours


def is_copy(request: Request, name: str) -> bool:
    return COPY_SOURCE in request.headers and unquote(request.path).endswith(f"/{name}")


def name_of(place: Place) -> str:
    return next(name for name in place.objects() if "key" in name)


def test_what_was_set_below_the_target_since_is_kept(
    run: Run, places: tuple[Place, Place], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = places
    ours = source.fill()
    name = name_of(source)
    wait_for_the_next_second()
    target.put(name, b"newer")
    assert run(source, target, "--yes") == 0
    assert target.objects() == {**ours, name: b"newer"}
    assert "1 object written later below the target, and kept there.\n" in capsys.readouterr().out


def test_what_was_set_below_the_source_since_is_copied_again(run: Run, places: tuple[Place, Place]) -> None:
    source, target = places
    ours = source.fill()
    assert run(source, target, "--yes") == 0
    name = name_of(source)
    newer = b" " * len(ours[name])
    wait_for_the_next_second()
    source.put(name, newer)
    assert run(source, target, "--yes") == 0
    assert target.objects() == source.objects() == {**ours, name: newer}


def before_copying(monkeypatch: pytest.MonkeyPatch, change: Callable[[Store], Awaitable[Any]]) -> None:
    """Have something happen to the target between the survey and the first copy."""
    copy = Copying.copy

    async def change_and_copy(copying: Copying, progress: Callable[[int], None]) -> dict[str, str]:
        await change(copying._target)
        return await copy(copying, progress)

    monkeypatch.setattr(Copying, "copy", change_and_copy)


over = pytest.mark.parametrize("was_there", [True, False], ids=["over an older one", "over nothing"])


def fill_both(source: Place, target: Place) -> dict[str, bytes]:
    """Return what is below the source, which is newer than what is below the target."""
    target.fill()
    wait_for_the_next_second()
    return source.fill()


@over
def test_what_is_set_below_the_target_after_the_survey_is_kept(
    run: Run,
    places: tuple[Place, Place],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    was_there: bool,
) -> None:
    """Also in the second of the original, in which S3 does not tell which of the two is the later one."""
    source, target = places
    ours = fill_both(source, target) if was_there else source.fill()
    name = name_of(source)
    before_copying(monkeypatch, lambda store: store.put(name, b'"newer"', "", timeout=20))
    assert run(source, target, "--yes") == 0
    assert target.objects() == {**ours, name: b'"newer"'}
    out = capsys.readouterr().out
    # A row of the API server's is the same on both sides.
    copied = f"Copied {4 if was_there else 5} objects.\n"
    assert f"{copied}1 object was written below the target meanwhile, and is kept there.\n" in out
    assert out.endswith(f"Every object of {source.url} is below {target.url}.\n")


def is_copy_of(request: Request, name: str) -> bool:
    return request.method == "PUT" and unquote(request.path).endswith(f"/new/{name}")


@over
@pytest.mark.parametrize("is_read", [True, False], ids=["read and put", "copied by S3"])
def test_what_is_set_below_the_target_after_the_look_is_kept(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, *, was_there: bool, is_read: bool
) -> None:
    """Where S3 obeys conditions. moto does so for a PutObject, and for a CopyObject what AWS does is added here."""
    source, target = s3
    ours = fill_both(source, target) if was_there else source.fill()
    name = name_of(source)
    # Else the second copy could not tell that the target's is newer.
    wait_for_the_next_second()
    asked = itertools.count()

    def set_first(exchange: Exchange) -> Answer:
        if COPY_SOURCE in exchange.request.headers:
            if is_read:
                return "403 Forbidden", [], b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            condition = exchange.request.headers["if-match" if was_there else "if-none-match"]
            assert (condition == "*") != was_there
        if next(asked) == 0:
            target.put(name, b'"newer"')
            if not is_read:
                return "412 Precondition Failed", [], b"<Error><Code>PreconditionFailed</Code></Error>"
        return exchange.carry_out(exchange.body)

    with moto.failing(Fault(set_first), when=lambda request: is_copy_of(request, name)) as hit:
        assert run(source, target, "--yes") == 0
    assert len(hit.requests) >= 2
    assert target.objects() == {**ours, name: b'"newer"'}
    again = run(source, target, "--yes")
    assert (again, target.objects()) == (0, {**ours, name: b'"newer"'})


@over
@pytest.mark.parametrize("kind", ["file to file", "s3 to file"])
def test_what_is_set_in_a_directory_after_the_look_is_kept(
    kind: str, run: Run, tmp_path: Path, moto_server: FakeS3, monkeypatch: pytest.MonkeyPatch, *, was_there: bool
) -> None:
    target = Place((tmp_path / "new").as_uri())
    source = Place((tmp_path / "old").as_uri())
    if kind.startswith("s3"):
        source = Place(f"s3://state/copy-{uuid.uuid4().hex}", moto_server.url)
    ours = fill_both(source, target) if was_there else source.fill()
    name = name_of(source)
    put_over = FileStore.put_over

    async def set_first(self: FileStore, to: str, *args: Any, **kwargs: Any) -> None:
        if to == name:
            await self.put(name, b'"newer"', "", timeout=20)
        await put_over(self, to, *args, **kwargs)

    monkeypatch.setattr(FileStore, "put_over", set_first)
    assert run(source, target, "--yes") == 0
    assert target.objects() == {**ours, name: b'"newer"'}


def test_what_is_deleted_below_the_target_after_the_survey_is_copied(
    run: Run, s3: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can't be told from what is not there yet; where its row has gone as well, a sweep finds it."""
    source, target = s3
    ours = fill_both(source, target)
    name = name_of(source)
    before_copying(monkeypatch, lambda store: store.delete([name], timeout=20))
    assert run(source, target, "--yes") == 0
    assert target.objects() == ours


@pytest.mark.parametrize("before", [True, False], ids=["before its copy", "after its copy"])
def test_what_is_set_below_the_source_while_it_is_copied(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, capsys: pytest.CaptureFixture[str], *, before: bool
) -> None:
    source, target = s3
    ours = source.fill()
    name = name_of(source)
    # Of the same size, so that no listing shows the difference.
    newer = b" " * len(ours[name])
    copies = itertools.count()

    def set_meanwhile(exchange: Exchange) -> Answer:
        first = next(copies) == 0
        if first and before:
            source.put(name, newer)
        answer = exchange.carry_out(exchange.body)
        if first and not before:
            source.put(name, newer)
        return answer

    with moto.failing(Fault(set_meanwhile), when=lambda request: is_copy(request, name)):
        # After its copy, nothing shows it until the end.
        assert run(source, target, "--yes") == (0 if before else 1)
    assert ("1 object of" in capsys.readouterr().err) != before
    assert run(source, target, "--yes") == 0
    assert target.objects() == {**ours, name: newer}


def test_what_appears_while_others_are_copied_is_counted(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = s3
    source.fill()
    copies = itertools.count()

    def set_another(exchange: Exchange) -> Answer:
        if next(copies) == 0:
            source.put("v1/task/dag/run/task/-1/worker/another", b"1")
        return exchange.carry_out(exchange.body)

    with moto.failing(Fault(set_another), when=lambda request: COPY_SOURCE in request.headers):
        assert run(source, target, "--yes") == 1
    assert f"1 object of {source.url} changed while this command ran" in capsys.readouterr().err
    assert run(source, target, "--yes") == 0
    assert target.objects() == source.objects()


def test_what_disappears_below_the_target_is_counted(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = s3
    source.fill()
    name = name_of(source)
    listings = itertools.count()

    def delete_before_the_count(exchange: Exchange) -> Answer:
        # Of the target, the source, and then the target again.
        if next(listings) == 2:
            target.delete(name)
        return exchange.carry_out(exchange.body)

    with moto.failing(Fault(delete_before_the_count), when=lambda request: request.query.startswith("list-type")):
        assert run(source, target, "--yes") == 1
    assert f"1 object of {source.url} changed while this command ran" in capsys.readouterr().err


def test_a_copy_that_is_not_the_same_fails(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = s3
    ours = source.fill()
    name = name_of(source)

    def do_nothing(request: Request) -> Answer | None:
        if not is_copy(request, name):
            return None
        return "200 OK", [], b'<CopyObjectResult><ETag>"0"</ETag></CopyObjectResult>'

    moto.intercept = do_nothing
    assert run(source, target, "--yes") == 1
    out, err = capsys.readouterr()
    assert "Copied 5 objects.\n" in out
    assert f"{source.url}/{name} is not copied: its copy was never the same.\n" in err
    assert "1 object could not be copied" in err
    moto.intercept = None
    assert run(source, target, "--yes") == 0
    assert target.objects() == ours


def test_a_store_that_fails_ends_the_copy(
    run: Run, s3: tuple[Place, Place], moto: FakeS3, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__MAX_ATTEMPTS", "1")
    source, target = s3
    ours = source.fill()
    with moto.failing(faults.error(500, "InternalError"), when=lambda request: COPY_SOURCE in request.headers):
        assert run(source, target, "--yes") == 1
    assert f"could not copy to {target.url}/v1/" in capsys.readouterr().err
    assert run(source, target, "--yes") == 0
    assert target.objects() == ours


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("ftp://bucket", "must start with"),
        ("s3://key:secret@bucket/x", "must not hold credentials"),
        ("s3://state/copy", "is [async_state] url itself"),
        ("s3://state/copy/", "is [async_state] url itself"),
        ("s3://state/copy/deeper", "one below the other"),
        ("s3://state", "one below the other"),
    ],
)
def test_a_target_that_can_not_be(run: Run, to: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Place("s3://state/copy"), to) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "secret" not in err
    assert out == ""


def test_a_directory_has_several_names(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "old")
    for to in ("link", "old/../old", "link/deeper"):
        assert run(Place((tmp_path / "old").as_uri()), f"{tmp_path.as_uri()}/{to}") == 2
    with contextlib.suppress(FileNotFoundError):
        assert list((tmp_path / "old").iterdir()) == []
    assert run(Place((tmp_path / "old").as_uri()), f"{tmp_path.as_uri()}/old-2", "--yes") == 0


def wait_for_the_next_second() -> None:
    """S3 says to the second when an object was written."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.01)
