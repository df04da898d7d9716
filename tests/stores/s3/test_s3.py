"""S3 in particular: what an operation costs, what goes over the wire, and what is said when it fails."""

from __future__ import annotations

import gc
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import pytest
from airflow.sdk._shared.secrets_masker import SecretsMasker
from airflow.sdk.state import AssetScope, TaskScope
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from async_state import AsyncStateBackend, Settings
from async_state.errors import (
    CorruptObjectError,
    PurgeError,
    StoreAccessError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from async_state.stores.s3.operations import S3Error
from async_state.testing import Answer, FakeS3, faults
from async_state.testing.faults import Exchange, Fault
from tests import servers
from tests.programs.wire import PATIENCE

SettingsOf = Callable[..., Settings]
BackendOf = Callable[..., AsyncStateBackend]


@pytest.fixture(scope="session")
def on_moto(s3_settings: SettingsOf) -> Iterator[AsyncStateBackend]:
    """One backend for the tests that need no settings of their own."""
    with AsyncStateBackend(s3_settings(max_attempts=4)) as backend:
        yield backend


@pytest.fixture(scope="session")
def client(moto_server: FakeS3) -> Iterator[Any]:
    """Another S3 client, to look at objects and damage them with."""
    s3 = servers.s3_client(moto_server.url)
    yield s3
    s3.close()


def store(backend: AsyncStateBackend, task: TaskScope, key: str, value: Any) -> str:
    return backend.serialize_task_state_store_to_ref(value=value, key=key, scope=task)


def place(ref: str) -> dict[str, str]:
    bucket, _, key = ref.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


def counted(server: FakeS3) -> list[str]:
    """What was asked since the last time, as the words of S3's API."""
    words = []
    for request in server.requests:
        if request.method == "POST" and request.query.startswith("delete"):
            words.append("DeleteObjects")
        elif request.method == "GET" and "list-type=2" in request.query:
            words.append("ListObjectsV2")
        else:
            words.append(f"{request.method.title()}Object")
    server.requests.clear()
    return words


def test_every_operation_takes_one_request(on_moto: AsyncStateBackend, moto: FakeS3, task: TaskScope) -> None:
    on_moto.get(task, "k")
    assert counted(moto) == ["GetObject"]
    on_moto.set(task, "k", "1")
    assert counted(moto) == ["PutObject"]
    on_moto.get(task, "k")
    assert counted(moto) == ["GetObject"]
    ref = store(on_moto, task, "k", "value")
    assert counted(moto) == ["PutObject"]
    on_moto.deserialize_task_state_store_from_ref(ref)
    assert counted(moto) == ["GetObject"]
    on_moto.delete(task, "k")
    assert counted(moto) == ["DeleteObjects"]
    on_moto.purge_task_state(ref)
    assert counted(moto) == ["DeleteObject"]
    on_moto.clear(task)
    assert counted(moto) == ["ListObjectsV2"]
    on_moto.deserialize_task_state_store_from_ref('"inline"')
    assert counted(moto) == []


def test_an_inline_value_takes_no_request(
    opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope
) -> None:
    backend = opened(s3_settings(inline_threshold=100))
    assert backend.deserialize_task_state_store_from_ref(store(backend, task, "k", "small")) == "small"
    assert counted(moto) == []


@pytest.mark.anyio
@pytest.mark.parametrize(("count", "most"), [(1, 3), (1000, 3), (1001, 5), (3500, 9)])
async def test_a_clear_takes_two_requests_for_a_thousand_keys(
    on_moto: AsyncStateBackend, moto: FakeS3, client: Any, task: TaskScope, count: int, most: int
) -> None:
    prefix = place(store(on_moto, task, "k", "value"))["Key"].removesuffix("k")
    for i in range(1, count):
        # Into the server's own state, since only their number matters.
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("state", f"{prefix}k{i}", b"1")
    assert client.list_objects_v2(Bucket="state", Prefix=prefix)["KeyCount"] == min(count, 1000)
    counted(moto)
    await on_moto.aclear(task)
    asked = counted(moto)
    assert len(asked) <= most
    assert set(asked) <= {"ListObjectsV2", "DeleteObjects", "DeleteObject"}
    assert client.list_objects_v2(Bucket="state", Prefix=prefix)["KeyCount"] == 0


def test_purge_many_takes_one_request_for_a_thousand_refs(
    on_moto: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    ref = store(on_moto, task, "k", "value")
    asked: list[int] = []

    def count(exchange: Exchange) -> Answer:
        asked.append(exchange.body.count(b"<Key>"))
        return exchange.carry_out(exchange.body)

    with moto.failing(Fault(count)):
        on_moto.purge_many(f"{ref}{i}" for i in range(2002))
    # What S3 takes is 1,000; moto takes more.
    assert sorted(asked) == [2, 1000, 1000]


def test_nobody_is_asked_first_whether_a_body_is_welcome(
    on_moto: AsyncStateBackend, moto: FakeS3, task: TaskScope
) -> None:
    for size in 10, 5 * 1024 * 1024:
        store(on_moto, task, "k", "x" * size)
        assert "expect" not in moto.requests.pop().headers


def test_the_object_describes_itself(opened: BackendOf, s3_settings: SettingsOf, client: Any, task: TaskScope) -> None:
    for compression, encoding in (("none", None), ("gzip", "gzip"), ("zstd", "zstd")):
        backend = opened(s3_settings(compression=compression, compression_threshold=100))
        ref = store(backend, task, "k", "x" * 98)
        found = client.get_object(**place(ref))
        assert (found["ContentType"], found.get("ContentEncoding")) == ("application/json", encoding)
        small = client.get_object(**place(store(backend, task, "k", "x" * 97)))
        assert "ContentEncoding" not in small
        assert json.loads(small["Body"].read()) == "x" * 97


def test_encryption_is_asked_for(opened: BackendOf, s3_settings: SettingsOf, client: Any, task: TaskScope) -> None:
    backend = opened(s3_settings(server_side_encryption="aws:kms", sse_kms_key_id="alias/state"))
    found = client.head_object(**place(store(backend, task, "k", 1)))
    assert (found["ServerSideEncryption"], found["SSEKMSKeyId"]) == ("aws:kms", "alias/state")


def test_a_store_without_bulk_delete(opened: BackendOf, s3_settings: SettingsOf, moto: FakeS3, task: TaskScope) -> None:
    """moto has it; the answer of one that has not stands in (Google's XML API says NotImplemented)."""
    backend = opened(s3_settings(max_concurrency=4))
    refs = [store(backend, task, f"k{i}", i) for i in range(30)]
    moto.intercept = lambda request: s3_error(501, "NotImplemented") if request.method == "POST" else None
    counted(moto)
    backend.clear(task)
    assert sorted(counted(moto)) == ["DeleteObject"] * 30 + ["DeleteObjects", "ListObjectsV2"]
    assert [backend.deserialize_task_state_store_from_ref(ref) for ref in refs] == [None] * 30
    counted(moto)
    backend.delete(task, "k")
    assert counted(moto) == ["DeleteObject"] * 2


def s3_error(status: int, code: str, message: str = "said by the test") -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return f"{status} {code}", [("Content-Type", "application/xml"), ("x-amz-request-id", "REQ1")], body.encode()


def deleted_but(keys: list[str]) -> Answer:
    errors = "".join(
        f"<Error><Key>{key}</Key><Code>InternalError</Code><Message>try again</Message></Error>" for key in keys
    )
    body = f"<?xml version='1.0'?><DeleteResult>{errors}</DeleteResult>"
    return "200 OK", [("Content-Type", "application/xml")], body.encode()


def test_keys_that_fail_once_are_tried_again(on_moto: AsyncStateBackend, moto: FakeS3, task: TaskScope) -> None:
    refs = [store(on_moto, task, f"k{i}", i) for i in range(3)]
    failing = [[place(ref)["Key"] for ref in refs[:2]], [place(refs[1])["Key"]]]
    moto.intercept = lambda request: deleted_but(failing.pop(0)) if failing and request.method == "POST" else None
    counted(moto)
    # The first answer deletes nothing, so refs[2], which it does not complain of, stays.
    on_moto.clear(task)
    assert counted(moto) == ["ListObjectsV2", "DeleteObjects", "DeleteObjects", "DeleteObjects"]
    assert on_moto.deserialize_task_state_store_from_ref(refs[1]) is None


def test_keys_that_go_on_failing_are_named(on_moto: AsyncStateBackend, moto: FakeS3, task: TaskScope) -> None:
    refs = [store(on_moto, task, f"k{i}", i) for i in range(10)]
    left = [place(ref)["Key"] for ref in refs[3:5]]
    moto.intercept = lambda request: deleted_but(left) if request.method == "POST" else None
    with pytest.raises(PurgeError, match="InternalError: try again") as caught:
        on_moto.clear(task)
    assert sorted(caught.value.remaining) == sorted(key.removeprefix("s3/") for key in left)
    assert all(name in str(caught.value) for name in caught.value.remaining)
    moto.intercept = None
    on_moto.clear(task)
    assert [on_moto.deserialize_task_state_store_from_ref(ref) for ref in refs] == [None] * 10


def test_contract_28_a_failed_clear_raises_or_is_left_to_a_sweep(
    on_moto: AsyncStateBackend,
    moto: FakeS3,
    task: TaskScope,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ref = store(on_moto, task, "k", "value")
    moto.intercept = lambda _: s3_error(403, "AccessDenied")
    with pytest.raises(StoreAccessError):
        on_moto.clear(task)
    monkeypatch.setenv("AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS", "True")
    caplog.clear()
    on_moto.clear(task)
    (record,) = (r for r in caplog.records if r.name == "async_state.backend")
    assert record.levelname == "ERROR"
    assert task.dag_id in record.getMessage()
    assert "AccessDenied" in record.getMessage()
    with pytest.raises(TypeError):
        on_moto.clear("no scope")  # type: ignore[arg-type]
    moto.intercept = None
    on_moto.clear(task)
    assert on_moto.deserialize_task_state_store_from_ref(ref) is None


OPERATIONS: dict[str, Callable[[AsyncStateBackend, TaskScope], object]] = {
    "get": lambda backend, task: backend.get(task, "key"),
    "set": lambda backend, task: backend.set(task, "key", "1"),
    "delete": lambda backend, task: backend.delete(task, "key"),
    "clear": lambda backend, task: backend.clear(task),
    "serialize": lambda backend, task: store(backend, task, "key", "sentinel-value"),
    "deserialize": lambda backend, task: backend.deserialize_task_state_store_from_ref(
        f"s3://state/s3/v1/task/{task.dag_id}/run/task/-1/worker/key"
    ),
    "purge": lambda backend, task: backend.purge_task_state(
        f"s3://state/s3/v1/task/{task.dag_id}/run/task/-1/worker/key"
    ),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@each_operation
def test_denied(
    on_moto: AsyncStateBackend,
    moto: FakeS3,
    task: TaskScope,
    operation: Callable[[AsyncStateBackend, TaskScope], object],
) -> None:
    moto.intercept = lambda _: s3_error(403, "AccessDenied")
    with pytest.raises(StoreError) as caught:
        operation(on_moto, task)
    cause = caught.value if not isinstance(caught.value, PurgeError) else caught.value.__cause__
    assert isinstance(cause, StoreAccessError)
    assert isinstance(cause, PermissionError)
    said = str(caught.value)
    for expected in (
        f"s3://state/s3/v1/task/{task.dag_id}/",
        moto.url,
        "AccessDenied",
        "REQ1",
        f", {len(moto.requests)} attempt",
        "Grant s3:",
    ):
        assert expected in said
    assert "sentinel-value" not in said
    moto.intercept = None
    operation(on_moto, task)


@each_operation
def test_a_failing_server_is_tried_again_and_then_named(
    opened: BackendOf,
    s3_settings: SettingsOf,
    moto: FakeS3,
    task: TaskScope,
    operation: Callable[[AsyncStateBackend, TaskScope], object],
) -> None:
    backend = opened(s3_settings(max_attempts=2))
    answers = [s3_error(503, "SlowDown")]
    moto.intercept = lambda _: answers.pop() if answers else None
    operation(backend, task)
    moto.requests.clear()
    moto.intercept = lambda _: s3_error(500, "InternalError")
    with pytest.raises(StoreError, match="InternalError") as caught:
        operation(backend, task)
    assert "2 attempts" in str(caught.value)
    assert len(moto.requests) == 2
    cause = caught.value.__cause__ if isinstance(caught.value, PurgeError) else caught.value
    assert isinstance(cause, StoreUnavailableError)
    assert isinstance(cause, ConnectionError)


def test_bad_credentials(rclone_url: str, monkeypatch: pytest.MonkeyPatch, opened: BackendOf, task: TaskScope) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-key")
    backend = opened(Settings(url="s3://state/p", endpoint_url=rclone_url))
    with pytest.raises(StoreAccessError, match=r"SignatureDoesNotMatch.*credentials") as caught:
        backend.set(task, "k", "1")
    assert "not-the-secret-key" not in str(caught.value)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, opened: BackendOf, moto: FakeS3, task: TaskScope) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    backend = opened(Settings(url="s3://state/p", endpoint_url=moto.url, timeout=1.5))
    with pytest.raises(StoreAccessError, match="aws_conn_id"):
        backend.set(task, "k", "1")
    assert counted(moto) == []


def test_garbage_is_collected_while_credentials_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, opened: BackendOf, moto: FakeS3, task: TaskScope
) -> None:
    """A process forked meanwhile would otherwise never collect any."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        backend = opened(Settings(url="s3://state/p", endpoint_url=moto.url, timeout=1))
        with ThreadPoolExecutor(1) as executor:
            found = executor.submit(backend.get, task, "k")
            with listener.accept()[0]:
                assert gc.isenabled()
                with pytest.raises(StoreTimeoutError):
                    found.result()


def test_no_such_bucket(opened: BackendOf, moto: FakeS3, task: TaskScope) -> None:
    backend = opened(Settings(url="s3://missing/p", endpoint_url=moto.url))
    for operation in (OPERATIONS["get"], OPERATIONS["set"], OPERATIONS["clear"]):
        with pytest.raises(StoreError, match=r"s3://missing/p/v1/task/.*NoSuchBucket.*\[async_state\] url"):
            operation(backend, task)


def test_unreachable(opened: BackendOf, task: TaskScope) -> None:
    endpoint = f"http://127.0.0.1:{servers.free_port()}"
    backend = opened(Settings(url="s3://state/p", endpoint_url=endpoint, max_attempts=1))
    with pytest.raises(StoreUnavailableError, match=rf"s3://state/p/.*{endpoint}.*endpoint_url"):
        backend.set(task, "k", "1")


@each_operation
def test_contract_30_a_server_that_never_answers(
    opened: BackendOf,
    s3_settings: SettingsOf,
    moto: FakeS3,
    task: TaskScope,
    operation: Callable[[AsyncStateBackend, TaskScope], object],
) -> None:
    # What is imported at the first use may take longer than the deadline.
    operation(opened(s3_settings()), task)
    backend = opened(s3_settings(timeout=1))
    operation(backend, task)
    answered = threading.Event()
    moto.intercept = lambda _: None if answered.wait(PATIENCE) else s3_error(500, "TestTimedOut")
    # The server still waits then, and so it was not the server that ended it.
    with pytest.raises(StoreError, match=r"within 1 s.*\[async_state\] timeout") as caught:
        operation(backend, task)
    cause = caught.value.__cause__ if isinstance(caught.value, PurgeError) else caught.value
    assert isinstance(cause, StoreTimeoutError)
    assert isinstance(cause, TimeoutError)
    assert task.dag_id in str(caught.value)
    answered.set()
    moto.intercept = None
    operation(backend, task)


def test_a_server_that_never_accepts(opened: BackendOf, task: TaskScope) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        backend = opened(Settings(url="s3://state/p", endpoint_url=f"http://127.0.0.1:{port}", timeout=0.5))
        with pytest.raises(StoreTimeoutError, match="s3://state/p/"):
            backend.get(task, "k")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_damaged_objects(
    opened: BackendOf, s3_settings: SettingsOf, client: Any, task: TaskScope, compression: str
) -> None:
    backend = opened(s3_settings(compression=compression, compression_threshold=1))
    ref = store(backend, task, "k", 1234567890)
    found = client.get_object(**place(ref))
    body = found["Body"].read()
    for damaged in (body[:-1], body[:5], b"", body[:-1] + bytes([body[-1] ^ 1]), b"not what was written"):
        # As a fault of the store leaves it: what describes the object is there, its content is not.
        client.put_object(**place(ref), Body=damaged, Metadata=found["Metadata"])
        with pytest.raises(CorruptObjectError) as caught:
            backend.deserialize_task_state_store_from_ref(ref)
        assert ref in str(caught.value)
        assert "1234567" not in str(caught.value)
    # As another program writes it.
    client.put_object(**place(ref), Body=b"{truncated")
    with pytest.raises(CorruptObjectError, match="delete the key") as caught:
        backend.deserialize_task_state_store_from_ref(ref)
    assert ref in str(caught.value)
    client.put_object(**place(ref), Body=b'"restored by hand"')
    assert backend.deserialize_task_state_store_from_ref(ref) == "restored by hand"
    assert store(backend, task, "k", "anew") == ref
    assert backend.deserialize_task_state_store_from_ref(ref) == "anew"


def test_a_body_that_is_cut_off(on_moto: AsyncStateBackend, moto: FakeS3, task: TaskScope) -> None:
    ref = store(on_moto, task, "k", "x" * 1000)
    # Without the object's checksum.
    whole = faults.respond("200 OK", {"Content-Type": "application/json"}, b'"' + b"x" * 1000 + b'"')
    with moto.failing(faults.truncated_body(whole, missing=998)), pytest.raises(StoreError) as caught:
        on_moto.deserialize_task_state_store_from_ref(ref)
    assert ref in str(caught.value)
    assert on_moto.deserialize_task_state_store_from_ref(ref) == "x" * 1000


def test_airflow_masks_secrets_in_what_s3_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecretsMasker, "mask_secrets_in_logs", True)
    masker = SecretsMasker()  # type: ignore[no-untyped-call]
    masker.add_mask("password-of-a-connection")
    error = S3Error("BadDigest", "not password-of-a-connection", status=400)
    masker.filter(logging.makeLogRecord({"exc_info": (S3Error, error, None)}))
    assert str(error) == "BadDigest: not ***"


def test_control_characters_in_keys_do_not_reach_messages(
    on_moto: AsyncStateBackend, moto: FakeS3, asset: AssetScope
) -> None:
    moto.intercept = lambda _: s3_error(403, "AccessDenied")
    with pytest.raises(StoreAccessError) as caught:
        on_moto.set(asset, "k\n2026-01-01 ERROR forged\x1b[31m", "1")
    assert str(caught.value).isprintable()
    assert "k\n2026" in unquote(str(caught.value))
