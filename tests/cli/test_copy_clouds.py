"""``copy`` between clouds: interrupted and continued, written to meanwhile, and where each takes its address from."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import uuid
from concurrent.futures import Future
from typing import Any
from urllib.parse import unquote

import pytest

from async_state import Settings, connections
from async_state.stores import cloud
from async_state.testing.faults import Answer, Exchange, Fault, Request
from tests import cloud_places
from tests.cli.test_copy import Place, Run, environment_of, name_of, wait_for_the_next_second
from tests.cli.test_copy import run as run
from tests.programs.runner import Command, Runner
from tests.programs.wire import PATIENCE

SERVERS = {"s3": "moto", "gs": "gcs", "az": "azure"}
PAIRS = [
    pair for pair in ("s3 to gs", "gs to az", "az to s3") if set(pair.split()) <= {"s3", "to", *cloud_places.CLOUDS}
]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[Place, Place]:
    """A prefix in one cloud, and one in another. Both buckets have the same name."""
    source, target = request.param.split(" to ")
    return place(request, source, "old"), place(request, target, "new")


def place(request: pytest.FixtureRequest, scheme: str, name: str) -> Place:
    path = f"copy-{uuid.uuid4().hex}/{name}"
    if scheme == "s3":
        return Place(f"s3://state/{path}", request.getfixturevalue("moto").url)
    return Place(**cloud_places.options(request, scheme, path))


def server_of(request: pytest.FixtureRequest, place: Place) -> Any:
    return request.getfixturevalue(SERVERS[place.scheme])


def writes(request: Request) -> bool:
    return request.method in ("PUT", "POST")


def test_a_copy_that_is_killed_and_run_again(
    run: Run, pair: tuple[Place, Place], request: pytest.FixtureRequest, python: Runner
) -> None:
    source, target = pair
    ours = source.fill()
    written, killed = itertools.count(), threading.Event()
    process: Future[Command] = Future()
    environment = {**os.environ, **environment_of(source, target), "AIRFLOW__ASYNC_STATE__MAX_CONCURRENCY": "1"}

    def kill(exchange: Exchange) -> Answer:
        answer = exchange.carry_out(exchange.body)
        if next(written) == 2:
            process.result().send_signal(signal.SIGKILL)
            killed.set()
        return answer

    server = server_of(request, target)
    with (
        server.failing(Fault(kill), when=writes),
        Command(python, "copy", "--to", target.url, "--yes", environment=environment) as copying,
    ):
        process.set_result(copying)
        assert killed.wait(PATIENCE)
    assert copying.returncode == -signal.SIGKILL
    there = len(target.objects())
    assert 3 <= there < len(ours)
    server.requests.clear()
    assert run(source, target, "--yes") == 0
    assert len([sent for sent in server.requests if writes(sent)]) == len(ours) - there
    assert target.objects() == ours


@pytest.mark.parametrize("was_there", [True, False], ids=["over an older one", "over nothing"])
def test_what_is_set_below_the_target_after_the_look_is_kept(
    run: Run, pair: tuple[Place, Place], request: pytest.FixtureRequest, *, was_there: bool
) -> None:
    source, target = pair
    if was_there:
        target.fill()
        wait_for_the_next_second()
    ours = source.fill()
    name = name_of(source)
    # Else the second copy could not tell that the target's is newer.
    wait_for_the_next_second()
    looked, found = threading.Event(), itertools.count()

    def set_first(exchange: Exchange) -> Answer:
        # Not before what is set here.
        if name.rpartition("/")[2].encode() not in carried(exchange) or next(found):
            return exchange.carry_out(exchange.body)
        looked.set()
        target.put(name, b'"newer"')
        return exchange.carry_out(exchange.body)

    with server_of(request, target).failing(Fault(set_first), when=writes):
        assert run(source, target, "--yes") == 0
    assert looked.is_set()
    assert target.objects() == {**ours, name: b'"newer"'}
    again = run(source, target, "--yes")
    assert (again, target.objects()) == (0, {**ours, name: b'"newer"'})


def carried(exchange: Exchange) -> bytes:
    """Return what names the object: Google's upload has it in its body."""
    return exchange.body if exchange.request.path.startswith("/upload/") else unquote(exchange.request.path).encode()


def test_what_is_set_below_the_source_while_it_is_copied(
    run: Run, pair: tuple[Place, Place], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = pair
    ours = source.fill()
    name = name_of(source)
    newer = b" " * len(ours[name])
    done = itertools.count()

    def set_meanwhile(exchange: Exchange) -> Answer:
        answer = exchange.carry_out(exchange.body)
        if name.rpartition("/")[2].encode() in carried(exchange) and next(done) == 0:
            source.put(name, newer)
        return answer

    with server_of(request, target).failing(Fault(set_meanwhile), when=writes):
        # Nothing shows it until the end.
        assert run(source, target, "--yes") == 1
    assert "1 object of" in capsys.readouterr().err
    assert run(source, target, "--yes") == 0
    assert target.objects() == {**ours, name: newer}


def test_a_bucket_of_the_same_name_in_s3_is_not_what_is_copied(run: Run, request: pytest.FixtureRequest) -> None:
    """The same keys are there, of the same sizes: only a request to copy inside S3 would take them."""
    if "gs" not in cloud_places.CLOUDS:
        pytest.skip("fake-gcs-server is not installed")
    source, target = place(request, "gs", "old"), place(request, "s3", "new")
    ours = source.fill()
    decoy = Place(source.url.replace("gs://", "s3://"), target.settings.endpoint_url)
    for name, body in ours.items():
        decoy.put(name, b" " * len(body))
    moto = server_of(request, target)
    moto.requests.clear()
    assert run(source, target, "--yes") == 0
    assert not [sent for sent in moto.requests if "x-amz-copy-source" in sent.headers]
    assert target.objects() == ours


def test_the_endpoint_is_that_of_the_schemes_own_url(monkeypatch: pytest.MonkeyPatch) -> None:
    of_s3 = Settings(url="s3://state", endpoint_url="http://minio:9000")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "mine")

    def endpoint(url: str, settings: Settings) -> str:
        return cloud.open_store(url, settings, connections.empty(url)).place.endpoint

    assert endpoint("gs://state", of_s3) == "https://storage.googleapis.com"
    assert endpoint("az://state", of_s3) == "https://mine.blob.core.windows.net"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:4443")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a;BlobEndpoint=http://localhost:10000/a;")
    assert endpoint("gs://state", of_s3) == "http://localhost:4443"
    assert endpoint("az://state", of_s3) == "http://localhost:10000/a"
    of_google = Settings(url="gs://state", endpoint_url="http://emulator:1")
    assert endpoint("gs://state", of_google) == "http://emulator:1"
    assert endpoint("az://state", of_google) == "http://localhost:10000/a"
