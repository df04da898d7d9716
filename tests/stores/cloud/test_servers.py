"""What the servers do that tests of the clouds' stores rest on, shown with plain HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from async_state.testing import faults
from async_state.testing.server import FakeServer
from tests.azure_keys import VERSION
from tests.cloud_faults import azure_batch_errors, azure_error, gcs_batch_errors, gcs_error
from tests.cloud_servers import AzureServer, GcsServer
from tests.cloud_tokens import AzureTokens, GoogleTokens, azure_tokens, google_tokens

_STORAGE = "https://storage.azure.com/.default"


@dataclass(frozen=True)
class Answered:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def send(
    server: FakeServer, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Answered:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    try:
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return Answered(response.status, response.headers, response.read())
    finally:
        connection.close()


class Azure:
    """Requests to Azurite, signed with its key unless they have headers for that."""

    def __init__(self, server: AzureServer) -> None:
        self.server = server

    def send(
        self, method: str, path: str, body: bytes = b"", authorized: Mapping[str, str] | None = None, **headers: str
    ) -> Answered:
        target = f"/{self.server.account}/{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if authorized is None:
            return send(self.server, method, target, self.server.signed(method, target, named, len(body)), body)
        return send(self.server, method, target, {"x-ms-version": VERSION, **named, **authorized}, body)

    def put(self, name: str, body: bytes = b"x", container: str = "state", **headers: str) -> Answered:
        headers |= {"x_ms_blob_type": "BlockBlob", "content_type": "application/octet-stream"}
        return self.send("PUT", f"{container}/{name}", body, None, **headers)

    def batch(self, names: list[str], container: str = "state", sas: str = "", bearer: str = "") -> Answered:
        calls = []
        for index, name in enumerate(names):
            target = f"/{self.server.account}/{container}/{name}{'?' if sas else ''}{sas}"
            if sas:
                headers = {}
            elif bearer:
                headers = {"Authorization": bearer}
            else:
                headers = self.server.signed("DELETE", target, in_batch=True)
            lines = [f"DELETE {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "Content-Length: 0"]
            calls.append((str(index), lines))
        authorized = {"Authorization": bearer} if bearer else {} if sas else None
        path = f"{container}?restype=container&comp=batch{'&' if sas else ''}{sas}"
        return self.send("POST", path, multipart(calls), authorized, content_type="multipart/mixed; boundary=calls")


class Google:
    """Requests to fake-gcs-server."""

    def __init__(self, server: GcsServer) -> None:
        self.server = server

    def put(self, name: str, body: bytes = b"x", bucket: str = "state", query: str = "") -> Answered:
        metadata = json.dumps({"name": name, "metadata": {"a_b": "1"}}).encode()
        parts = [b"Content-Type: application/json\r\n\r\n" + metadata]
        parts += [b"Content-Type: application/octet-stream\r\n\r\n" + body]
        content = b"".join(b"--parts\r\n" + part + b"\r\n" for part in parts) + b"--parts--\r\n"
        target = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart{query}"
        return send(self.server, "POST", target, {"Content-Type": "multipart/related; boundary=parts"}, content)

    def send(self, method: str, name: str, query: str = "", bucket: str = "state") -> Answered:
        return send(self.server, method, f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}{query}")

    def get(self, name: str, bucket: str = "state") -> Answered:
        return self.send("GET", name, "?alt=media", bucket)

    def batch(self, names: list[str], bucket: str = "state") -> Answered:
        calls = [
            (f"<call+{index}>", [f"DELETE /storage/v1/b/{bucket}/o/{quote(name, safe='')} HTTP/1.1"])
            for index, name in enumerate(names)
        ]
        headers = {"Content-Type": "multipart/mixed; boundary=calls"}
        return send(self.server, "POST", "/batch/storage/v1", headers, multipart(calls))


def multipart(calls: list[tuple[str, list[str]]]) -> bytes:
    parts = [
        "\r\n".join(
            [
                "--calls",
                "Content-Type: application/http",
                "Content-Transfer-Encoding: binary",
                f"Content-ID: {content_id}",
                "",
                *lines,
                "",
                "",
            ]
        )
        for content_id, lines in calls
    ]
    return "\r\n".join([*parts, "--calls--", ""]).encode()


def statuses(answer: Answered) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer.body)]


@pytest.fixture
def on_azure(azure: AzureServer) -> Azure:
    return Azure(azure)


@pytest.fixture
def on_google(gcs: GcsServer) -> Google:
    return Google(gcs)


def at_once(count: int, put: Callable[[int], Answered]) -> Counter[int]:
    """Return how often each status is answered to so many writers, who begin together."""
    barrier = threading.Barrier(count)

    def write(index: int) -> int:
        barrier.wait()
        return put(index).status

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(write, range(count)))


def test_azure_carries_contents_and_metadata_exactly(on_azure: Azure) -> None:
    content = bytes(range(256)) * 5000
    name = quote("a/b c%+é?")
    assert on_azure.put(name, content, x_ms_meta_key="1").status == 201
    got = on_azure.send("GET", f"state/{name}")
    assert (got.status, got.body, got.headers["x-ms-meta-key"]) == (200, content, "1")
    assert [request.method for request in on_azure.server.requests] == ["PUT", "GET"]


def test_google_carries_contents_and_metadata_exactly(on_google: Google) -> None:
    content = bytes(range(256)) * 5000
    assert on_google.put("a/b c%+é?", content).status == 200
    got = on_google.get("a/b c%+é?")
    assert (got.status, got.body, got.headers["x-goog-meta-a_b"]) == (200, content, "1")
    assert [request.method for request in on_google.server.requests] == ["POST", "GET"]


def test_azure_obeys_conditions(on_azure: Azure) -> None:
    first = on_azure.put("conditions", b"1", If_None_Match="*")
    assert first.status == 201
    again = on_azure.put("conditions", b"2", If_None_Match="*")
    assert (again.status, again.headers["x-ms-error-code"]) == (409, "BlobAlreadyExists")
    second = on_azure.put("conditions", b"2", If_Match=first.headers["etag"])
    assert second.status == 201
    for refused in (
        on_azure.put("conditions", b"3", If_Match=first.headers["etag"]),
        on_azure.put("missing", b"3", If_Match=first.headers["etag"]),
        on_azure.send("DELETE", "state/conditions", If_Match=first.headers["etag"]),
    ):
        assert (refused.status, refused.headers["x-ms-error-code"]) == (412, "ConditionNotMet")
    assert on_azure.send("GET", "state/conditions").body == b"2"
    assert on_azure.send("DELETE", "state/conditions", If_Match=second.headers["etag"]).status == 202


def test_google_obeys_conditions(on_google: Google) -> None:
    first = on_google.put("conditions", b"1", query="&ifGenerationMatch=0")
    assert first.status == 200
    assert on_google.put("conditions", b"2", query="&ifGenerationMatch=0").status == 412
    stale = json.loads(first.body)["generation"]
    second = on_google.put("conditions", b"2", query=f"&ifGenerationMatch={stale}")
    assert second.status == 200
    assert on_google.put("conditions", b"3", query=f"&ifGenerationMatch={stale}").status == 412
    assert on_google.put("missing", b"3", query=f"&ifGenerationMatch={stale}").status == 412
    assert on_google.send("DELETE", "conditions", f"?ifGenerationMatch={stale}").status == 412
    assert on_google.get("conditions").body == b"2"
    current = json.loads(second.body)["generation"]
    assert on_google.send("DELETE", "conditions", f"?ifGenerationMatch={current}").status == 200
    assert on_google.send("DELETE", "conditions", f"?ifGenerationMatch={current}").status == 404


def test_one_of_fifty_writers_wins_on_azure(on_azure: Azure) -> None:
    created = at_once(50, lambda i: on_azure.put("race", b"%d" % i, If_None_Match="*"))
    assert created == {201: 1, 409: 49}
    etag = on_azure.send("GET", "state/race").headers["etag"]
    assert at_once(50, lambda i: on_azure.put("race", b"%d" % i, If_Match=etag)) == {201: 1, 412: 49}


def test_one_of_fifty_writers_wins_on_google(on_google: Google) -> None:
    created = at_once(50, lambda i: on_google.put("race", b"%d" % i, query="&ifGenerationMatch=0"))
    assert created == {200: 1, 412: 49}
    generation = on_google.get("race").headers["x-goog-generation"]
    replaced = at_once(50, lambda i: on_google.put("race", b"%d" % i, query=f"&ifGenerationMatch={generation}"))
    assert replaced == {200: 1, 412: 49}


def test_what_is_missing_on_azure(on_azure: Azure) -> None:
    def named(answer: Answered) -> tuple[int, str]:
        return answer.status, answer.headers["x-ms-error-code"]

    for method in ("GET", "HEAD", "DELETE"):
        assert named(on_azure.send(method, "state/missing")) == (404, "BlobNotFound")
        assert named(on_azure.send(method, "no-such/missing")) == (404, "ContainerNotFound")
    assert named(on_azure.put("missing", container="no-such")) == (404, "ContainerNotFound")
    listed = on_azure.send("GET", "no-such?restype=container&comp=list")
    assert named(listed) == (404, "ContainerNotFound")


def test_what_is_missing_on_google(on_google: Google) -> None:
    # Nothing tells a missing bucket from a missing object, but that uploads and listings name no object.
    assert on_google.get("missing").status == on_google.get("missing", "no-such").status == 404
    assert (
        on_google.send("DELETE", "missing").status == on_google.send("DELETE", "missing", "", "no-such").status == 404
    )
    assert on_google.put("missing", bucket="no-such").status == 404
    assert send(on_google.server, "GET", "/storage/v1/b/no-such/o?prefix=a").status == 404
    assert send(on_google.server, "GET", "/storage/v1/b/no-such").status == 404


@pytest.mark.parametrize("by", ["key", "sas"])
def test_a_batch_on_azure(on_azure: Azure, by: str) -> None:
    on_azure.put("batch/0")
    on_azure.put("batch/2")
    sas = on_azure.server.sas_token() if by == "sas" else ""
    answer = on_azure.batch(["batch/0", "batch/1", "batch/2"], sas=sas)
    assert (answer.status, statuses(answer)) == (202, [202, 404, 202])
    assert re.findall(rb"Content-ID: (\S+)", answer.body) == [b"0", b"1", b"2"]
    missing = on_azure.batch(["a"], container="no-such")
    assert (missing.status, statuses(missing)) == (202, [404])
    assert b"ContainerNotFound" in missing.body


def test_a_batch_under_a_signature_that_does_not_permit_it(on_azure: Azure) -> None:
    on_azure.put("kept")
    assert statuses(on_azure.batch(["kept"], sas=on_azure.server.sas_token("r"))) == [403]
    assert statuses(on_azure.batch(["kept"], sas=on_azure.server.sas_token(lifetime=-60))) == [403]
    assert on_azure.send("GET", "state/kept").status == 200


def test_a_batch_on_google(on_google: Google) -> None:
    on_google.put("batch/0")
    on_google.put("batch/2")
    answer = on_google.batch(["batch/0", "batch/1", "batch/2"])
    assert (answer.status, statuses(answer)) == (200, [200, 404, 200])
    found = re.findall(rb"Content-Id: (\S+)", answer.body)
    # Without the angle brackets that the call's own has, which Google keeps.
    assert found == [b"<response-call+0>", b"<response-call+1>", b"<response-call+2>"]
    assert on_google.get("batch/0").status == 404


def test_azure_calls_that_fail_are_not_carried_out(on_azure: Azure, azure: AzureServer) -> None:
    names = ["part/0", "part/1", "part/2"]
    for name in names:
        on_azure.put(name)
    with azure.failing(azure_batch_errors({"part/1"}), method="POST") as failing:
        answer = on_azure.batch(names)
        assert statuses(answer) == [202, 500, 202]
        assert re.findall(rb"Content-ID: (\S+)", answer.body) == [b"0", b"1", b"2"]
        assert statuses(on_azure.batch(["part/1"])) == [500]
    assert len(failing.requests) == 2
    assert [on_azure.send("GET", f"state/{name}").status for name in names] == [404, 200, 404]


def test_google_calls_that_fail_are_not_carried_out(on_google: Google, gcs: GcsServer) -> None:
    names = ["part/0", "part/1", "part/2"]
    for name in names:
        on_google.put(name)
    with gcs.failing(gcs_batch_errors(lambda key: key == "part/1", 429, "rateLimitExceeded"), method="POST"):
        answer = on_google.batch(names)
        assert statuses(answer) == [200, 429, 200]
        assert statuses(on_google.batch(["part/1"])) == [429]
    assert [on_google.get(name).status for name in names] == [404, 200, 404]


def test_azure_fails_as_it_is_told(on_azure: Azure, azure: AzureServer) -> None:
    busy = azure_error(503, "ServerBusy", headers={"Retry-After": "7"})
    with azure.failing(busy, times=1, method="PUT") as failing:
        answer = on_azure.put("told")
        assert (answer.status, answer.headers["x-ms-error-code"], answer.headers["Retry-After"]) == (
            503,
            "ServerBusy",
            "7",
        )
        assert b"<Code>ServerBusy</Code>" in answer.body
        assert on_azure.put("told").status == 201
    assert [request.path for request in failing.requests] == [f"/{azure.account}/state/told"]


def test_google_fails_as_it_is_told(on_google: Google, gcs: GcsServer) -> None:
    with gcs.failing(gcs_error(429, "rateLimitExceeded", headers={"Retry-After": "7"}), times=1, method="POST"):
        answer = on_google.put("told")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
        assert json.loads(answer.body)["error"]["errors"][0]["reason"] == "rateLimitExceeded"
        assert on_google.put("told").status == 200
    with gcs.failing(faults.corrupted_body(), method="GET"):
        assert on_google.get("told").body == b"y"
    with gcs.failing(faults.truncated_body(), method="GET"), pytest.raises(http.client.IncompleteRead):
        on_google.get("told")
    with gcs.failing(faults.reset_after_carrying_out(), method="DELETE"), pytest.raises(ConnectionResetError):
        on_google.send("DELETE", "told")
    gcs.intercept = lambda request: ("418 Teapot", [], b"") if request.method == "HEAD" else None
    assert on_google.send("HEAD", "told").status == 418
    assert on_google.get("told").status == 404


def test_connections_are_kept(gcs: GcsServer) -> None:
    connection = http.client.HTTPConnection(gcs.url.removeprefix("http://"))
    connection.connect()
    kept = connection.sock
    for _ in range(3):
        connection.request("GET", "/storage/v1/b/state")
        assert connection.getresponse().read()
        assert connection.sock is kept
    connection.close()
    gcs.wait_until_idle()


@pytest.fixture(scope="module")
def google() -> Iterator[GoogleTokens]:
    with google_tokens() as tokens:
        yield tokens


@pytest.fixture(scope="module")
def identity() -> Iterator[AzureTokens]:
    with azure_tokens() as tokens:
        yield tokens


def test_google_auth_gets_tokens(
    google: GoogleTokens, gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = pytest.importorskip("google.auth")
    requests = pytest.importorskip("google.auth.transport.requests")
    scope = "https://www.googleapis.com/auth/devstorage.read_write"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.write(tmp_path / "credentials.json")))
    credentials, project = auth.default(scopes=[scope])
    with requests.requests.Session() as session:
        credentials.refresh(requests.Request(session))
    assert (project, google.scopes) == ("tests", [scope])
    with gcs.demanding(google.accepts):
        assert send(gcs, "GET", "/storage/v1/b/state").status == 401
        authorized = {"Authorization": f"Bearer {credentials.token}"}
        assert send(gcs, "GET", "/storage/v1/b/state", authorized).status == 200
        google.revoke()
        assert send(gcs, "GET", "/storage/v1/b/state", authorized).status == 401


def test_azure_identity_gets_tokens(
    identity: AzureTokens, on_azure: Azure, azure: AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("azure.identity")
    for name, value in identity.environment.items():
        monkeypatch.setenv(name, value)
    with library.ManagedIdentityCredential() as credential:
        bearer = f"Bearer {credential.get_token(_STORAGE).token}"
    assert len(identity.requests) == 1
    on_azure.put("identity")
    with azure.demanding(identity.accepts) as failing:
        refused = on_azure.send("GET", "state/identity")
        assert (refused.status, refused.headers["x-ms-error-code"]) == (401, "InvalidAuthenticationInfo")
        assert on_azure.send("GET", "state/identity", authorized={"Authorization": bearer}).body == b"x"
        assert statuses(on_azure.batch(["identity", "none"], bearer=bearer)) == [202, 404]
        assert len(failing.requests) == 1
    # Azurite itself knows no bearer token.
    assert on_azure.send("GET", "state/identity", authorized={"Authorization": bearer}).status == 403


def test_tokens_expire_and_can_fail(identity: AzureTokens) -> None:
    def ask(header: str = identity.header) -> Answered:
        resource = quote("https://storage.azure.com", safe="")
        return send(identity, "GET", f"/msi/token?resource={resource}", {"X-IDENTITY-HEADER": header})

    identity.lifetime = 0
    token = json.loads(ask().body)["access_token"]
    identity.lifetime = 3600
    assert not identity.accepts(f"Bearer {token}")
    assert ask("guessed").status == 401
    with identity.failing(faults.respond("500 Internal Server Error", {}, b"{}"), times=1):
        assert ask().status == 500
        assert identity.accepts(f"Bearer {json.loads(ask().body)['access_token']}")


def test_the_machines_clouds_are_hidden() -> None:
    left = [name for name in os.environ if name.startswith(("AZURE_", "CLOUDSDK_", "GOOGLE_", "STORAGE_EMULATOR_"))]
    assert sorted(left) == ["AZURE_CONFIG_DIR", "AZURE_STORAGE_KEY", "CLOUDSDK_CONFIG"]
