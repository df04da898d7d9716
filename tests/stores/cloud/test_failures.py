"""What is said when a cloud refuses, stalls, or hands out something else than what was stored, and how soon."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend
from async_state.errors import (
    CorruptObjectError,
    PurgeError,
    StoreAccessError,
    StoreCredentialsError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from async_state.stores import retry
from async_state.testing import faults
from async_state.testing.faults import Fault
from tests.cloud_servers import AzureServer
from tests.servers import free_port
from tests.stores.cloud.clouds import Cloud, key_of, store

BackendOf = Callable[..., AsyncStateBackend]

OPERATIONS: dict[str, Callable[[AsyncStateBackend, TaskScope, str], object]] = {
    "set": lambda backend, task, _: backend.set(task, "key", '"sentinel"'),
    "deserialize": lambda backend, _, ref: backend.deserialize_task_state_store_from_ref(ref),
    "delete": lambda backend, task, _: backend.delete(task, "key"),
    "purge": lambda backend, _, ref: backend.purge_task_state(ref),
    "clear": lambda backend, task, _: backend.clear(task),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
Run = Callable[[AsyncStateBackend, TaskScope, str], object]


def cause_of(error: BaseException) -> BaseException | None:
    return error.__cause__ if isinstance(error, PurgeError) else error


# What the cloud refuses.


@each_operation
def test_denied(backend: AsyncStateBackend, cloud: Cloud, task: TaskScope, operation: Run) -> None:
    ref = store(backend, task, "key", "value")
    cloud.asked()
    with cloud.server.failing(cloud.error(*cloud.denied)), pytest.raises(StoreError) as caught:
        operation(backend, task, ref)
    # Trying again would not help.
    assert len(cloud.asked()) == 1
    assert isinstance(cause_of(caught.value), StoreAccessError)
    assert not isinstance(cause_of(caught.value), StoreCredentialsError)
    said = str(caught.value)
    for expected in (
        f"{cloud.scheme}://state/cloud/v1/task/{task.dag_id}/",
        f"endpoint {cloud.endpoint}",
        f"{cloud.denied[1]}: said by a fault (HTTP 403, 1 attempt in",
        "Grant storage.objects.get" if cloud.scheme == "gs" else "Grant the role Storage Blob Data Contributor",
    ):
        assert expected in said
    assert "sentinel" not in said
    operation(backend, task, ref)


@each_operation
def test_refused_credentials_are_read_anew_once(
    backend: AsyncStateBackend, cloud: Cloud, task: TaskScope, operation: Run
) -> None:
    ref = store(backend, task, "key", "value")
    cloud.asked()
    with cloud.server.failing(cloud.error(*cloud.refused)) as failing:
        with pytest.raises(StoreError, match=cloud.refused[1]) as caught:
            operation(backend, task, ref)
        assert len(failing.requests) == 2
    assert isinstance(cause_of(caught.value), StoreCredentialsError)
    with cloud.server.failing(cloud.error(*cloud.refused), times=1):
        operation(backend, task, ref)


@each_operation
def test_no_such_bucket(opened: BackendOf, cloud: Cloud, task: TaskScope, operation: Run) -> None:
    url = f"{cloud.scheme}://missing/prefix"
    backend = opened(cloud.settings(url=url))
    # fake-gcs-server words both alike, what Google says of an object and of its bucket.
    said = '{"error":{"code":404,"message":"The specified bucket does not exist.","errors":[{"reason":"notFound"}]}}'
    fault = faults.respond("404 Not Found", {"Content-Type": "application/json"}, said.encode())
    ref = f"{url}/v1/task/{task.dag_id}/r/t/-1/worker/key"
    with (
        cloud.server.failing(fault if cloud.scheme == "gs" else Fault()),
        pytest.raises(
            StoreError, match=rf"{url}/v1/task/.*(notFound|ContainerNotFound).*Create the .*\[async_state\] url"
        ),
    ):
        operation(backend, task, ref)


def test_a_page_that_says_404_is_no_missing_object(opened: BackendOf, cloud: Cloud, task: TaskScope) -> None:
    """Whoever took it for one would begin anew, and submit a job twice."""
    backend = opened(cloud.settings(max_attempts=1))
    ref = store(backend, task, "key", "value")
    page = faults.respond("404 Not Found", {"Content-Type": "text/html"}, b"\r\n<!DOCTYPE html><title>No such page")
    for operation in OPERATIONS.values():
        with cloud.server.failing(page), pytest.raises(StoreError, match="No such page"):
            operation(backend, task, ref)
    assert backend.deserialize_task_state_store_from_ref(ref) == "value"


# A batch of which some calls fail.


def filled(backend: AsyncStateBackend, task: TaskScope, count: int = 5) -> list[str]:
    return [store(backend, task, f"k{number}", number) for number in range(count)]


def left(backend: AsyncStateBackend, refs: list[str]) -> list[str]:
    return [ref for ref in refs if backend.deserialize_task_state_store_from_ref(ref) is not None]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["failing", "throttled", "denied"])
def test_calls_of_a_batch_that_go_on_failing_are_named(
    opened: BackendOf, cloud: Cloud, task: TaskScope, kind: str
) -> None:
    backend = opened(cloud.settings(max_attempts=2))
    refs = filled(backend, task)
    failing = [refs[1], refs[3]]
    status, word = getattr(cloud, kind)
    cloud.asked()
    fault = cloud.batch_errors([key_of(ref) for ref in failing], status, word)
    with (
        cloud.server.failing(fault, when=cloud.is_("batch")),
        pytest.raises(PurgeError, match=f"{word}: said by a fault") as caught,
    ):
        backend.clear(task)
    # Those that pass are tried again, without the others.
    assert cloud.asked() == ["list", "batch"] + ["batch"] * (kind != "denied")
    names = [key_of(ref).removeprefix("cloud/") for ref in failing]
    assert sorted(caught.value.remaining) == names
    assert all(
        f"{cloud.scheme}://state/cloud/{name} (endpoint" in said for name, said in caught.value.remaining.items()
    )
    assert left(backend, refs) == failing
    backend.clear(task)
    assert left(backend, refs) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["failing", "refused"])
def test_calls_of_a_batch_that_fail_once(backend: AsyncStateBackend, cloud: Cloud, task: TaskScope, kind: str) -> None:
    refs = filled(backend, task)
    fault = cloud.batch_errors(lambda key: key.endswith("3"), *getattr(cloud, kind))
    with cloud.server.failing(fault, when=cloud.is_("batch"), times=1) as failing:
        backend.clear(task)
    assert len(failing.requests) == 1
    assert left(backend, refs) == []


def test_a_batch_whose_calls_fail_for_good_and_for_a_while(
    backend: AsyncStateBackend, cloud: Cloud, task: TaskScope
) -> None:
    refs = filled(backend, task)
    for_good = cloud.batch_errors([key_of(refs[0])], *cloud.denied)
    for_a_while = cloud.batch_errors([key_of(ref) for ref in refs[1:3]], *cloud.failing)

    def both(exchange: faults.Exchange) -> faults.Answer:
        """Have each fault carry out what the other one lets pass."""
        rest = replace(exchange, carry_out=lambda body: for_good.answer(replace(exchange, body=body)))
        return for_a_while.answer(rest)

    with cloud.server.failing(Fault(both), when=cloud.is_("batch"), times=1), pytest.raises(PurgeError) as caught:
        backend.clear(task)
    assert list(caught.value.remaining) == [key_of(refs[0]).removeprefix("cloud/")]
    assert left(backend, refs) == refs[:1]


def carried_out(exchange: faults.Exchange) -> faults.Answer:
    """Have a request carried out, and return the answer without the length of its body."""
    status, headers, body = exchange.carry_out(exchange.body)
    return status, [(name, value) for name, value in headers if name.lower() != "content-length"], body


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_batchs_answer_with_parts_missing(opened: BackendOf, cloud: Cloud, task: TaskScope, kept: int) -> None:
    backend = opened(cloud.settings(max_attempts=2))
    refs = filled(backend, task)

    def some(exchange: faults.Exchange) -> faults.Answer:
        status, headers, body = carried_out(exchange)
        content_type = next(value for name, value in headers if name.lower() == "content-type")
        delimiter = b"--" + content_type.partition("boundary=")[2].encode()
        first, *parts, last = body.split(delimiter)
        return status, headers, delimiter.join([first, *parts[:kept], last])

    is_batch = cloud.is_("batch")
    with (
        cloud.server.failing(Fault(some), when=is_batch),
        pytest.raises(PurgeError, match=f"a batch of 5 requests has {kept} answers.*2 attempts") as caught,
    ):
        backend.clear(task)
    assert len(caught.value.remaining) == 5
    refs = filled(backend, task)
    with cloud.server.failing(Fault(some), when=is_batch, times=1):
        backend.clear(task)
    assert left(backend, refs) == []


@pytest.mark.usefixtures("quick")
def test_a_listing_that_is_cut_off(opened: BackendOf, cloud: Cloud, task: TaskScope) -> None:
    backend = opened(cloud.settings(max_attempts=2))
    refs = filled(backend, task)

    def half(exchange: faults.Exchange) -> faults.Answer:
        status, headers, body = carried_out(exchange)
        return status, headers, body[: len(body) // 2]

    with (
        cloud.server.failing(Fault(half), when=cloud.is_("list")),
        pytest.raises(StoreUnavailableError, match=r"the answer is no (JSON|XML).*2 attempts.*endpoint_url"),
    ):
        backend.clear(task)
    assert left(backend, refs) == refs
    with cloud.server.failing(Fault(half), when=cloud.is_("list"), times=1):
        backend.clear(task)
    assert left(backend, refs) == []


# Damage.


def test_damage_on_the_way(backend: AsyncStateBackend, cloud: Cloud, task: TaskScope) -> None:
    ref = store(backend, task, "key", "value")
    cloud.asked()
    with (
        cloud.server.failing(faults.corrupted_body()),
        pytest.raises(CorruptObjectError, match="does not match the checksum") as caught,
    ):
        backend.deserialize_task_state_store_from_ref(ref)
    assert ref in str(caught.value)
    # Once, it is read again.
    assert cloud.asked() == ["get", "get"]
    with cloud.server.failing(faults.corrupted_body(), times=1):
        assert backend.deserialize_task_state_store_from_ref(ref) == "value"


def test_what_another_program_has_written(backend: AsyncStateBackend, cloud: Cloud, task: TaskScope) -> None:
    ref = store(backend, task, "key", "value")
    cloud.damage(ref, b"{truncated")
    with pytest.raises(CorruptObjectError, match="delete the key") as caught:
        backend.deserialize_task_state_store_from_ref(ref)
    assert ref in str(caught.value)
    cloud.damage(ref, b'"restored by hand"')
    assert backend.deserialize_task_state_store_from_ref(ref) == "restored by hand"
    assert store(backend, task, "key", "anew") == ref
    assert backend.deserialize_task_state_store_from_ref(ref) == "anew"


# Time.

STALLS = {
    "never answers": faults.never_answers(),
    "never ends its answer": faults.stalled_body(),
    "slow drip": faults.slow_drip(1, 0.1),
}


@pytest.mark.parametrize("fault", STALLS.values(), ids=STALLS)
def test_a_service_that_stalls(fault: Fault, opened: BackendOf, cloud: Cloud, task: TaskScope) -> None:
    """Every operation at once, since all that they do is wait: only the deadline ends them."""
    backend = opened(cloud.settings(timeout=1))
    ref = store(backend, task, "key", "value")

    def run(operation: Run) -> BaseException | None:
        with pytest.raises(StoreError, match=rf"{task.dag_id}.*within (0.5|1) s|{task.dag_id}.*attempts? in") as caught:
            operation(backend, task, ref)
        return cause_of(caught.value)

    with cloud.server.failing(fault), ThreadPoolExecutor(len(OPERATIONS)) as pool:
        began = time.monotonic()
        causes = list(pool.map(run, OPERATIONS.values()))
        # On a busy machine it is late, but never for as long as the service takes.
        assert time.monotonic() - began < 30
    assert all(isinstance(cause, (StoreTimeoutError, StoreUnavailableError)) for cause in causes), causes
    assert any(isinstance(cause, StoreTimeoutError) for cause in causes)
    assert backend.deserialize_task_state_store_from_ref(ref) in ("value", None)


def test_a_service_that_does_not_accept(opened: BackendOf, cloud: Cloud, task: TaskScope) -> None:
    backend = opened(cloud.settings(timeout=1))
    with cloud.server.not_accepting(), pytest.raises(StoreError, match=rf"{task.dag_id}.*\[async_state\] timeout"):
        backend.get(task, "key")
    backend.get(task, "key")


def test_nothing_listens(opened: BackendOf, cloud: Cloud, task: TaskScope) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}" + cloud.endpoint.removeprefix(cloud.server.url)
    backend = opened(cloud.settings(endpoint_url=endpoint, max_attempts=1))
    with pytest.raises(StoreUnavailableError, match=rf"{cloud.scheme}://state/.*{endpoint}.*endpoint_url"):
        backend.set(task, "k", "1")


def test_an_outage_shorter_than_the_timeout(
    backend: AsyncStateBackend, cloud: Cloud, task: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten seconds, were the pauses not a hundredth of what they are."""
    for pause in "FIRST_PAUSE", "FIRST_THROTTLED_PAUSE", "LEAST_THROTTLED_PAUSE", "LONGEST_PAUSE":
        monkeypatch.setattr(retry, pause, getattr(retry, pause) / 100)
    ref = store(backend, task, "key", "value")
    gone = faults.reset_before_answer()
    for operation in OPERATIONS.values():
        ends = time.monotonic() + 0.1
        with cloud.server.failing(gone, when=lambda _, ends=ends: time.monotonic() < ends) as failing:  # type: ignore[misc]
            operation(backend, task, ref)
        assert len(failing.requests) > 1


def test_retry_after_is_obeyed_until_the_deadline(opened: BackendOf, cloud: Cloud, task: TaskScope) -> None:
    backend = opened(cloud.settings(timeout=6))
    fault = cloud.error(*cloud.throttled, headers={"Retry-After": "60"})
    began = time.monotonic()
    with cloud.server.failing(fault, times=1) as failing:
        # A tenth of the time is left for the request after the wait.
        backend.set(task, "key", "1")
    assert len(failing.requests) == 1
    assert time.monotonic() - began > 5


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("kind", ["failing", "refused", "denied"])
@pytest.mark.usefixtures("quick")
def test_requests_never_exceed_the_attempts(
    opened: BackendOf, cloud: Cloud, task: TaskScope, kind: str, attempts: int
) -> None:
    backend = opened(cloud.settings(max_attempts=attempts))
    for operation in OPERATIONS.values():
        with cloud.server.failing(cloud.error(*getattr(cloud, kind))) as failing, pytest.raises(StoreError) as caught:
            operation(backend, task, f"{cloud.scheme}://state/cloud/v1/task/{task.dag_id}/r/t/-1/worker/key")
        assert len(failing.requests) <= attempts
        assert f"{len(failing.requests)} attempt" in str(caught.value)


# Secrets.


def all_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


GARBAGE = {
    "no HTTP": Fault(send=lambda exchange, _: exchange.send_bytes(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
    "a page that repeats the address": Fault(
        lambda exchange: (
            "404 Not Found",
            [("Content-Type", "text/html")],
            f"<html>No page {exchange.request.path}?{exchange.request.query.replace('&', '&amp;')} here".encode(),
        )
    ),
}


@pytest.mark.parametrize("fault", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("by", ["key", "sas"])
@pytest.mark.parametrize("cloud", ["az"], indirect=True)
def test_no_secret_of_an_account_is_in_an_error(
    fault: Fault,
    by: str,
    opened: BackendOf,
    cloud: Cloud,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert isinstance(cloud.server, AzureServer)
    caplog.set_level("DEBUG")
    secret = cloud.server.key
    if by == "sas":
        sas = cloud.server.sas_token()
        secret = sas.partition("sig=")[2]
        monkeypatch.delenv("AZURE_STORAGE_KEY")
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", sas)
    backend = opened(cloud.settings(max_attempts=1))
    ref = store(backend, task, "key", "sentinel-of-a-value")
    for operation in OPERATIONS.values():
        with cloud.server.failing(fault) as failing, pytest.raises(StoreError) as caught:
            operation(backend, task, ref)
        assert failing.requests
        assert (secret in repr(failing.requests)) == (by == "sas")
        assert secret not in all_said(caught.value)
        assert secret[:20] not in all_said(caught.value)
    assert secret not in caplog.text
    assert "sentinel" not in caplog.text
