"""``check`` of ``gs://`` and ``az://``, against fake-gcs-server and Azurite.

These servers have neither retention, lifecycle rules, soft deletion nor holds. Where a test is about these, the proxy
before the server answers in its stead as the cloud's documentation says, and the rest is the server's.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest

from async_state import Settings
from async_state.testing import faults
from async_state.testing.faults import Answer, Exchange, Fault, Request
from tests import cloud_servers, servers
from tests.cli.conftest import OPTION, Check, Checked
from tests.cloud_faults import azure_error, gcs_error
from tests.cloud_servers import AzureServer, GcsServer
from tests.cloud_tokens import azure_tokens, google_tokens
from tests.stores.s3 import tls
from tests.sweep.conftest import Base

NOBODY = "from nobody, as a token is never sent to an endpoint without TLS"


class Cloud(NamedTuple):
    """A server, and what is said of it."""

    server: Any
    scheme: str
    bucket: str
    endpoint: str
    credentials: str

    def options(self, path: str, **options: str) -> dict[str, str]:
        """Return the variables that have the command use ``path``, which begins with a bucket."""
        given = {"url": f"{self.scheme}://{path}", "endpoint_url": self.endpoint, **options}
        if self.scheme == "az":
            given["azure_account"] = cloud_servers.AZURE_ACCOUNT
        return {f"{OPTION}{name.upper()}": value for name, value in given.items()}

    def names(self, path: str) -> list[str]:
        """Return the names of the objects below ``path``."""
        account = cloud_servers.AZURE_ACCOUNT if self.scheme == "az" else None
        settings = Settings(url=f"{self.scheme}://{path}", endpoint_url=self.endpoint, azure_account=account)
        base = Base(settings, None)
        try:
            return base.names()
        finally:
            base.run(base.store.aclose)


def gs(server: GcsServer) -> Cloud:
    return Cloud(server, "gs", "bucket", server.url, NOBODY)


def az(server: AzureServer) -> Cloud:
    return Cloud(server, "az", "container", server.endpoint, "from the environment (AZURE_STORAGE_*)")


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    """Each cloud in turn."""
    if request.param == "gs":
        return gs(request.getfixturevalue("gcs"))
    return az(request.getfixturevalue("azure"))


def test_all_is_well(check: Check, cloud: Cloud) -> None:
    checked = check(**cloud.options("state/well"))
    assert (checked.code, checked.wrong) == (0, {})
    assert checked.one("credentials")["detail"] == cloud.credentials
    assert checked.one("endpoint")["detail"] == cloud.endpoint
    assert checked.one("tls")["detail"] == "none, on this machine"
    assert checked.one("soft delete")["detail"] == "off"
    for operation in "put", "get", "list", "delete", "bulk delete":
        assert checked.one(operation)["ms"] > 0
    for condition in "conditional writes", "conditional deletes":
        assert "obeyed" in checked.one(condition)["detail"]
    assert checked.one({"gs": "google-auth", "az": "azure-identity"}[cloud.scheme])["detail"]
    assert cloud_servers.AZURE_KEY not in checked.out
    assert cloud.names("state/well") == []


def test_a_bucket_that_is_not_there(check: Check, cloud: Cloud) -> None:
    checked = check(**cloud.options("none/well"))
    assert checked.code == 1
    assert checked.wrong[cloud.bucket] == f"there is no {cloud.bucket} none at {cloud.endpoint}"
    assert checked.one(cloud.bucket)["advice"] == "Create it, or correct [async_state] url"
    assert "put" not in checked.findings


def test_an_endpoint_that_is_not_there(check: Check, cloud: Cloud) -> None:
    endpoint = f"http://127.0.0.1:{servers.free_port()}"
    checked = check(**{**cloud.options("state/none"), f"{OPTION}ENDPOINT_URL": endpoint})
    assert checked.code == 1
    assert "could not connect to" in checked.wrong["endpoint"]
    assert endpoint in checked.wrong["endpoint"]
    assert "endpoint_url" in checked.wrong["endpoint"]
    assert "put" not in checked.findings


def test_a_certificate_that_nobody_knows(check: Check, cloud: Cloud, tmp_path: Path) -> None:
    bundle, chain = tls.authority(tmp_path)
    with google_tokens() as tokens, tls.terminator(cloud.server.url) as terminator:
        terminator.show(chain)
        endpoint = terminator.url + ("/" + cloud_servers.AZURE_ACCOUNT if cloud.scheme == "az" else "")
        environment = {**cloud.options("state/tls"), f"{OPTION}ENDPOINT_URL": endpoint}
        environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(tokens.write(tmp_path / "key.json"))
        trusted = check(**environment, REQUESTS_CA_BUNDLE=str(bundle))
        assert (trusted.code, trusted.wrong) == (0, {})
        assert trusted.one("tls")["detail"].startswith("TLSv1.3, the certificate ends on ")
        unknown = check(**environment)
        assert unknown.code == 1
        assert "REQUESTS_CA_BUNDLE" in unknown.wrong["endpoint"]


def test_behind_a_proxy(check: Check, cloud: Cloud) -> None:
    proxied = check(**cloud.options("state/proxied"), HTTP_PROXY=cloud.server.url)
    assert proxied.one("endpoint")["detail"] == f"{cloud.endpoint}, through a proxy"
    assert "tls" not in proxied.findings


def test_a_wrong_key(check: Check, azure: AzureServer) -> None:
    """Azurite calls it AuthorizationFailure. Azure's own word for it comes from the proxy."""
    wrong = base64.b64encode(b"a key that is wrong").decode()
    checked = check(**az(azure).options("state/key"), AZURE_STORAGE_KEY=wrong)
    assert checked.code == 1
    assert "AuthorizationFailure" in checked.wrong["put"]
    assert wrong not in checked.out
    with azure.failing(azure_error(403, "AuthenticationFailed"), when=lambda _: True):
        checked = check(**az(azure).options("state/key"), AZURE_STORAGE_KEY=wrong)
    assert (checked.code, set(checked.wrong)) == (1, {"put", "store"})
    assert "AZURE_STORAGE_*" in checked.wrong["put"]
    checked = check(**az(azure).options("state/key"), AZURE_STORAGE_KEY="this is no key")
    assert checked.code == 1
    assert "is no account key" in checked.wrong["credentials"]
    assert "this is no key" not in checked.out


def test_an_account_that_is_not_named(check: Check) -> None:
    checked = check(**{f"{OPTION}URL": "az://state/nobody"})
    assert checked.code == 1
    assert "azure_account" in checked.wrong["[async_state]"]


def test_tokens_of_google(check: Check, gcs: GcsServer, tmp_path: Path) -> None:
    bundle, chain = tls.authority(tmp_path)
    with google_tokens() as tokens, tls.terminator(gcs.url) as terminator:
        terminator.show(chain)
        environment = gs(gcs).options("state/tokens") | {f"{OPTION}ENDPOINT_URL": terminator.url}
        environment |= {"REQUESTS_CA_BUNDLE": str(bundle)}
        file = tokens.write(tmp_path / "key.json")
        nobody = check(**environment)
        assert nobody.code == 1
        assert "GOOGLE_APPLICATION_CREDENTIALS" in nobody.wrong["credentials"]
        environment |= {"GOOGLE_APPLICATION_CREDENTIALS": str(file)}
        with gcs.demanding(tokens.accepts):
            checked = check(**environment)
            assert (checked.code, checked.wrong) == (0, {})
            assert str(file) in checked.one("credentials")["detail"]
            with tokens.failing(faults.respond("400 Bad Request", {}, b'{"error": "invalid_grant"}')):
                refused = check(**environment)
        assert "Google refused to give a token: invalid_grant" in refused.wrong["credentials"]
        with gcs.demanding(lambda _: False):
            rejected = check(**environment)
        assert "authError" in rejected.wrong["put"]
        assert not any(token in checked.out + rejected.out for token in tokens.issued)


def test_tokens_of_azure(check: Check, azure: AzureServer, tmp_path: Path) -> None:
    bundle, chain = tls.authority(tmp_path)
    with azure_tokens() as tokens, tls.terminator(azure.url) as terminator:
        terminator.show(chain)
        environment = az(azure).options("state/tokens")
        environment |= {f"{OPTION}ENDPOINT_URL": f"{terminator.url}/{azure.account}", "AZURE_STORAGE_KEY": ""}
        environment |= {"REQUESTS_CA_BUNDLE": str(bundle), **tokens.environment}
        with azure.demanding(tokens.accepts):
            checked = check(**environment)
            assert (checked.code, checked.wrong) == (0, {})
            assert "Azure's default credentials" in checked.one("credentials")["detail"]
        with tokens.failing(faults.never_answers()):
            silent = check(**environment, **{f"{OPTION}TIMEOUT": "1"})
        assert "no token within 1 s" in silent.wrong["credentials"]
        assert "wasb_conn_id" in silent.wrong["credentials"]
        assert not any(token in checked.out for token in tokens.issued)


def test_a_connection(check: Check, azure: AzureServer) -> None:
    environment = az(azure).options("state/connection", wasb_conn_id="state_az") | {"AZURE_STORAGE_KEY": ""}
    given = {"conn_type": "wasb", "login": azure.account, "password": azure.key}
    checked = check(**environment, AIRFLOW_CONN_STATE_AZ=json.dumps(given))
    assert (checked.code, checked.wrong) == (0, {})
    assert checked.one("credentials")["detail"] == "from the Airflow connection state_az"
    assert azure.key not in checked.out
    missing = check(**environment)
    assert missing.code == 1
    assert "state_az" in missing.wrong["connection"]


def test_a_token_is_not_sent_without_tls(check: Check, azure: AzureServer) -> None:
    checked = check(**az(azure).options("state/plain"), AZURE_STORAGE_KEY="")
    assert checked.code == 1
    assert "a token is never sent to an endpoint without TLS" in checked.wrong["credentials"]
    assert azure.requests == []


def test_a_library_that_is_not_installed(check: Check, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    package, extra = {"gs": ("google-auth", "gcs"), "az": ("azure-identity", "azure")}[cloud.scheme]
    version = metadata.version

    def without(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    environment = cloud.options("state/library")
    assert "not needed without tokens" in check(**environment).one(package)["detail"]
    environment |= {f"{OPTION}ENDPOINT_URL": f"https://127.0.0.1:{servers.free_port()}/x", "AZURE_STORAGE_KEY": ""}
    needed = check(**environment, **{f"{OPTION}TIMEOUT": "1"}).one(package)
    assert (needed["status"], needed["advice"]) == ("fail", f"pip install 'airflow-async-state[{extra}]'")


def test_a_library_that_can_not_be_imported(check: Check, azure: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    environment = az(azure).options("state/library", endpoint_url="https://127.0.0.1:1/x")
    checked = check(**environment, AZURE_STORAGE_KEY="")
    assert "pip install 'airflow-async-state[azure]'" in checked.wrong["credentials"]


#: Runs the command on a bucket that Google describes so.
Described = Callable[..., Checked]


@pytest.fixture
def described(check: Check, gcs: GcsServer) -> Described:
    def run(**bucket: Any) -> Checked:
        def add(exchange: Exchange) -> Answer:
            status, headers, body = exchange.carry_out(exchange.body)
            answer = json.dumps({**json.loads(body), **bucket}).encode()
            kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
            return status, kept, answer

        def asks(request: Request) -> bool:
            return request.method == "GET" and request.path == "/storage/v1/b/state"

        with gcs.failing(Fault(add), when=asks) as failing:
            checked = check(**gs(gcs).options("state/prod"))
        assert len(failing.requests) == 1
        return checked

    return run


def rule(action: str, storage_class: str = "", **condition: Any) -> dict[str, Any]:
    given = {"type": action, "storageClass": storage_class} if storage_class else {"type": action}
    return {"action": given, "condition": condition}


def rules(*given: dict[str, Any]) -> dict[str, Any]:
    return {"rule": list(given)}


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"age": 30}, "deletes state 30 days after it was set"),
        ({"age": 30, "matchesPrefix": ["other/", "prod/"]}, "deletes state 30 days after"),
        ({"age": 30, "matchesPrefix": ["prod/v1/task/dag"]}, "deletes state 30 days after"),
        ({"age": 30, "matchesStorageClass": ["STANDARD"]}, "deletes state 30 days after"),
        ({"createdBefore": "2027-01-01", "isLive": True}, "deletes state as its condition says"),
    ],
)
def test_a_rule_of_google_that_deletes_state(described: Described, condition: dict[str, Any], said: str) -> None:
    checked = described(lifecycle=rules(rule("Delete", **condition)))
    assert (checked.code, set(checked.wrong)) == (1, {"lifecycle"})
    assert said in checked.wrong["lifecycle"]
    assert "Leave the prefix out of the rule" in checked.one("lifecycle")["advice"]


@pytest.mark.parametrize(
    "harmless",
    [
        rule("Delete", age=30, matchesPrefix=["other/"]),
        rule("Delete", age=30, matchesPrefix=["prod/v1/owner"]),
        rule("Delete", age=30, matchesStorageClass=["NEARLINE"]),
        rule("Delete", age=30, isLive=False),
        rule("Delete", numNewerVersions=3),
        rule("Delete", daysSinceCustomTime=3),
        rule("AbortIncompleteMultipartUpload", age=1),
        rule("SetStorageClass", "STANDARD", age=1),
    ],
)
def test_a_rule_of_google_that_does_no_harm(described: Described, harmless: dict[str, Any]) -> None:
    assert described(lifecycle=rules(harmless)).wrong == {}


def test_a_rule_of_google_that_archives_state(described: Described) -> None:
    """What is archived there is read at once, but costs."""
    checked = described(lifecycle=rules(rule("SetStorageClass", "ARCHIVE", age=7)))
    assert (checked.code, set(checked.wrong)) == (0, {"lifecycle"})
    assert "moves state to ARCHIVE 7 days after" in checked.wrong["lifecycle"]
    assert "within 365 days" in checked.wrong["lifecycle"]


def test_versions_of_google(described: Described) -> None:
    on = {"versioning": {"enabled": True}}
    for insufficient in (
        [],
        [rule("Delete", daysSinceNoncurrentTime=7, matchesPrefix=["other/"])],
        [rule("Delete", numNewerVersions=3)],
    ):
        checked = described(**on, lifecycle=rules(*insufficient))
        assert (checked.code, set(checked.wrong)) == (0, {"versioning"})
        assert "daysSinceNoncurrentTime" in checked.one("versioning")["advice"]
    for ending in rule("Delete", daysSinceNoncurrentTime=7), rule("Delete", isLive=False, matchesPrefix=["prod"]):
        assert described(**on, lifecycle=rules(ending)).wrong == {}


def test_retention_of_google(described: Described) -> None:
    kept = described(retentionPolicy={"retentionPeriod": "172800", "isLocked": True})
    assert (kept.code, set(kept.wrong)) == (1, {"retention"})
    assert "keeps each object for 2 d" in kept.wrong["retention"]
    held = described(defaultEventBasedHold=True)
    assert (held.code, set(held.wrong)) == (1, {"retention"})
    assert "held by default" in held.wrong["retention"]


def test_soft_deletion_of_google(described: Described) -> None:
    checked = described(softDeletePolicy={"retentionDurationSeconds": "604800"})
    assert (checked.code, set(checked.wrong)) == (0, {"soft delete"})
    assert "billed, for 7 d more" in checked.wrong["soft delete"]
    assert "--clear-soft-delete" in checked.one("soft delete")["advice"]
    assert described(softDeletePolicy={"retentionDurationSeconds": "0"}).wrong == {}


def of_container(request: Request) -> bool:
    return request.method == "GET" and request.query == "restype=container"


def of_service(request: Request) -> bool:
    return request.query == "restype=service&comp=properties"


@pytest.mark.parametrize(
    ("headers", "check_", "said", "code"),
    [
        ({"x-ms-has-immutability-policy": "true"}, "immutability", "the container has an immutability policy", 1),
        ({"x-ms-has-legal-hold": "true"}, "immutability", "the container has a legal hold", 1),
        ({"x-ms-immutable-storage-with-versioning-enabled": "true"}, "immutability", "policies for versions", 0),
        ({"x-ms-blob-public-access": "container"}, "public access", "anybody may read values", 1),
    ],
)
def test_settings_of_a_container(
    check: Check, azure: AzureServer, headers: dict[str, str], check_: str, said: str, code: int
) -> None:
    def add(exchange: Exchange) -> Answer:
        status, given, body = exchange.carry_out(exchange.body)
        return status, [*(each for each in given if each[0] not in headers), *headers.items()], body

    with azure.failing(Fault(add), when=of_container):
        checked = check(**az(azure).options("state/settings"))
    assert (checked.code, set(checked.wrong)) == (code, {check_})
    assert said in checked.wrong[check_]


def test_soft_deletion_of_azure(check: Check, azure: AzureServer) -> None:
    policy = b"<DeleteRetentionPolicy><Enabled>true</Enabled><Days>14</Days></DeleteRetentionPolicy>"

    def add(exchange: Exchange) -> Answer:
        status, headers, body = exchange.carry_out(exchange.body)
        end = b"</StorageServiceProperties>"
        assert end in body
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        return status, kept, body.replace(end, policy + end)

    with azure.failing(Fault(add), when=of_service):
        checked = check(**az(azure).options("state/soft"))
    assert (checked.code, set(checked.wrong)) == (0, {"soft delete"})
    assert "billed, for 14 d more" in checked.wrong["soft delete"]


def test_settings_that_may_not_be_read(check: Check, azure: AzureServer, gcs: GcsServer) -> None:
    denied = gcs_error(403, "forbidden")
    with gcs.failing(denied, when=lambda request: request.path == "/storage/v1/b/state"):
        checked = check(**gs(gcs).options("state/denied"))
    assert (checked.code, checked.wrong) == (0, {"bucket's settings": "not known: forbidden"})
    assert "storage.buckets.get" in checked.one("bucket's settings")["advice"]
    mismatch = azure_error(403, "AuthorizationPermissionMismatch")
    with azure.failing(mismatch, when=lambda request: of_container(request) or of_service(request)):
        checked = check(**az(azure).options("state/denied"))
    said = "not known: AuthorizationPermissionMismatch"
    assert (checked.code, checked.wrong) == (0, {"container's settings": said, "soft delete": said})
    assert "blobServices/containers/read" in checked.one("container's settings")["advice"]
    assert "blobServices/read" in checked.one("soft delete")["advice"]


def test_an_operation_that_is_denied_leaves_nothing_behind(check: Check, cloud: Cloud) -> None:
    error = gcs_error(403, "forbidden") if cloud.scheme == "gs" else azure_error(403, "AuthorizationFailure")

    def reads(request: Request) -> bool:
        return request.method == "GET" and "half/v1/check/" in unquote(request.path)

    with cloud.server.failing(error, when=reads):
        checked = check(**cloud.options("state/half"))
    assert checked.code == 1
    role = {"gs": "Storage Object User", "az": "Storage Blob Data Contributor"}[cloud.scheme]
    assert role in checked.wrong["get"]
    assert cloud.names("state/half") == []
