"""gcp_conn_id and wasb_conn_id: what is taken of an Airflow connection for Google and Azure, and what is refused."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from async_state import Settings, connections
from async_state.cli import context
from async_state.connections.aws import AwsConnection
from async_state.connections.azure import AzureConnection
from async_state.connections.google import GoogleConnection
from async_state.errors import ConfigurationError
from async_state.stores.s3.options import S3Options

#: Any base64 is one.
ACCOUNT_KEY = "aHVudGVyMg=="
KEY_FILE = {"type": "service_account", "client_email": "a@b", "private_key": "-----BEGIN\nhunter2\n-----END\n"}

LookUp = Callable[[str], connections.Connection]


def defined(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_STATE", json.dumps({"conn_type": "any", **fields}))


@pytest.fixture(params=["get", "aget"])
def look_up(request: pytest.FixtureRequest) -> LookUp:
    """Look the connection up in one of the two ways, for an option."""
    if request.param == "get":
        return lambda option: connections.get(option, "state")
    return lambda option: anyio.run(connections.aget, option, "state")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, {}),
        ({"key_path": "/keys/state.json"}, {"key_path": "/keys/state.json"}),
        ({"extra__google_cloud_platform__key_path": "/old.json"}, {"key_path": "/old.json"}),
        ({"extra__google_cloud_platform__key_path": "/old.json", "key_path": "/new.json"}, {"key_path": "/new.json"}),
        ({"extra__google_cloud_platform__key_path": "/old.json", "key_path": ""}, {}),
        ({"keyfile_dict": KEY_FILE}, {"key": json.dumps(KEY_FILE)}),
        ({"keyfile_dict": json.dumps(KEY_FILE)}, {"key": json.dumps(KEY_FILE)}),
        ({"keyfile_dict": json.dumps(KEY_FILE).replace("\\n", "\\\\n")}, {"key": json.dumps(KEY_FILE)}),
        ({"credential_config_file": "/keys/federated.json"}, {"key_path": "/keys/federated.json"}),
        (
            {"credential_config_file": '\n{"type": "external_account"}'},
            {"key": '{"type": "external_account"}'},
        ),
        ({"credential_config_file": {"type": "external_account"}}, {"key": '{"type": "external_account"}'}),
        ({"endpoint_url": "http://gcs:4443"}, {"endpoint_url": "http://gcs:4443"}),
        (
            # As Airflow's form leaves it.
            {
                "project": "p",
                "num_retries": 5,
                "key_secret_project_id": "p",
                "scope": "https://www.googleapis.com/auth/cloud-platform, https://www.googleapis.com/auth/drive",
                "is_anonymous": False,
                "impersonation_chain": "",
                "keyfile_dict": "",
            },
            {},
        ),
    ],
)
def test_what_is_taken_of_a_google_connection(
    monkeypatch: pytest.MonkeyPatch, look_up: LookUp, extra: dict[str, Any], expected: dict[str, str]
) -> None:
    defined(monkeypatch, extra=extra)
    found = look_up("gcp_conn_id")
    assert found == GoogleConnection(conn_id="state", **expected)
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"login": "hunter2"}, "has a login, .*keyfile_dict"),
        ({"password": "hunter2"}, "has a password, .*keyfile_dict"),
        ({"host": "hunter2"}, "has a host, .*endpoint_url"),
        ({"extra": "hunter2"}, "no JSON object"),
        (
            {"extra": {"key_path": "/a.json", "keyfile_dict": KEY_FILE}},
            "has the extra key_path and the extra keyfile_dict, of which only one",
        ),
        (
            {"extra": {"key_path": "/a.json", "credential_config_file": "/b.json"}},
            "has the extra key_path and the extra credential_config_file, of which only one",
        ),
        ({"extra": {"keyfile_dict": "hunter2"}}, "extra keyfile_dict that is no JSON"),
        ({"extra": {"keyfile_dict": '["hunter2"]'}}, "extra keyfile_dict that is no credentials file"),
        ({"extra": {"keyfile_dict": {"private_key": "hunter2"}}}, "extra keyfile_dict that is no credentials file"),
        ({"extra": {"credential_config_file": "{hunter2"}}, "extra credential_config_file that is no JSON"),
        ({"extra": {"credential_config_file": ["hunter2"]}}, "extra credential_config_file that is no path"),
        ({"extra": {"key_path": json.dumps(KEY_FILE)}}, "extra key_path that is no path: .*keyfile_dict"),
        ({"extra": {"key_path": "-----BEGIN\nhunter2"}}, "extra key_path that is no path: .*keyfile_dict"),
        ({"extra": {"key_path": "/hunter2.p12"}}, "P12 file, which is not supported: use a JSON key file"),
        ({"extra": {"endpoint_url": "https://admin:hunter2@h"}}, "an extra endpoint_url that can't be used: .*creden"),
        ({"extra": {"keyfile": "hunter2"}}, "extra keyfile, which is not known: did you mean keyfile_dict"),
        ({"extra": {"something": "hunter2"}}, "extra something, which is not known: remove it"),
        *[
            ({"extra": {name: value}}, rf"has the extra {name}, which is not supported: \w+")
            for name, value in {
                "key_secret_name": "hunter2",
                "impersonation_chain": "hunter2@project.iam.gserviceaccount.com",
                "idp_issuer_url": "https://hunter2",
                "client_id": "hunter2",
                "client_secret": "hunter2",
                "idp_extra_params": '{"a": "hunter2"}',
                "idp_extra_parameters": '{"a": "hunter2"}',
                "is_anonymous": True,
                "quota_project_id": "hunter2",
                "scope": "https://www.googleapis.com/auth/devstorage.read_only",
            }.items()
        ],
        (
            {"extra": {"extra__google_cloud_platform__key_secret_name": "hunter2"}},
            r"has the extra key_secret_name, which is not supported: \w+",
        ),
    ],
)
def test_a_google_connection_that_can_not_work_is_named(
    monkeypatch: pytest.MonkeyPatch, look_up: LookUp, fields: dict[str, Any], says: str
) -> None:
    refused(monkeypatch, look_up, "gcp_conn_id", fields, says)


def refused(monkeypatch: pytest.MonkeyPatch, look_up: LookUp, option: str, fields: dict[str, Any], says: str) -> None:
    defined(monkeypatch, **fields)
    begins = rf"^\[async_state\] {option}: the connection 'state' "
    with pytest.raises(ConfigurationError, match=f"{begins}.*{says}") as caught:
        look_up(option)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert ACCOUNT_KEY not in str(caught.value)


SAS = "sv=2024-11-04&sig=hunter2%3D"
STRING = f"DefaultEndpointsProtocol=https;AccountName=state1;AccountKey={ACCOUNT_KEY};EndpointSuffix=core.windows.net"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"login": "state1"}, {"account": "state1"}),
        ({"host": "state1"}, {"account": "state1"}),
        ({"host": "state1", "login": "state1"}, {"account": "state1"}),
        ({"login": "state1", "password": ACCOUNT_KEY}, {"account": "state1", "account_key": ACCOUNT_KEY}),
        *[
            (
                {"login": "state1", "extra": {name: ACCOUNT_KEY}},
                {"account": "state1", "account_key": ACCOUNT_KEY},
            )
            for name in ("shared_access_key", "account_key", "extra__wasb__shared_access_key")
        ],
        (
            {"login": "state1", "password": ACCOUNT_KEY, "host": "http://azurite:10000/state1"},
            {"account": "state1", "account_key": ACCOUNT_KEY, "endpoint_url": "http://azurite:10000/state1"},
        ),
        (
            {"password": ACCOUNT_KEY, "host": "state1.blob.core.windows.net"},
            {"account_key": ACCOUNT_KEY, "endpoint_url": "https://state1.blob.core.windows.net"},
        ),
        ({"login": "state1", "extra": {"sas_token": f"?{SAS}"}}, {"account": "state1", "sas_token": SAS}),
        (
            {"extra": {"sas_token": f"https://state1.blob.core.windows.net?{SAS}"}},
            {"sas_token": SAS, "endpoint_url": "https://state1.blob.core.windows.net"},
        ),
        ({"extra": {"connection_string": f" {STRING};\n"}}, {"connection_string": f"{STRING};"}),
        (
            {"host": "state1", "login": "app-id", "password": "hunter2", "extra": {"tenant_id": "tenant-id"}},
            {"account": "state1", "client_id": "app-id", "client_secret": "hunter2", "tenant_id": "tenant-id"},
        ),
        (
            {"login": "app-id", "password": "hunter2", "extra": {"tenant_id": "tenant-id"}},
            {"client_id": "app-id", "client_secret": "hunter2", "tenant_id": "tenant-id"},
        ),
        (
            {"login": "state1", "extra": {"managed_identity_client_id": "identity"}},
            {"account": "state1", "managed_identity_client_id": "identity"},
        ),
        (
            # As Airflow's form leaves it.
            {"extra": {"connection_string": "", "workload_identity_tenant_id": "", "client_secret_auth_config": {}}},
            {},
        ),
    ],
)
def test_what_is_taken_of_an_azure_connection(
    monkeypatch: pytest.MonkeyPatch, look_up: LookUp, fields: dict[str, Any], expected: dict[str, str]
) -> None:
    defined(monkeypatch, **fields)
    found = look_up("wasb_conn_id")
    assert found == AzureConnection(conn_id="state", **expected)
    assert not [secret for secret in ("hunter2", ACCOUNT_KEY) if secret in repr(found)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"password": ACCOUNT_KEY}, "has half of what access needs"),
        ({"extra": {"shared_access_key": ACCOUNT_KEY}}, "has half of what access needs"),
        ({"extra": {"sas_token": SAS}}, "has half of what access needs"),
        ({"login": "app", "extra": {"tenant_id": "t"}}, "has half of an application's credentials"),
        ({"password": "hunter2", "extra": {"tenant_id": "t"}}, "has half of an application's credentials"),
        ({"extra": {"tenant_id": "t"}}, "has half of an application's credentials"),
        ({"login": "app", "password": "hunter2\n", "extra": {"tenant_id": "t"}}, "a space, a line break"),
        ({"login": "state1", "extra": {"sas_token": f"{SAS} x"}}, "a space, a line break"),
        ({"login": "hunter2-"}, "has a login that can't be used: it must be the name of a storage account"),
        ({"host": "HUNTER2"}, "has a host that can't be used: it must be the name of a storage account"),
        ({"login": "state1", "password": "hunter2"}, "has a password that can't be used: it must be the .* base64"),
        (
            {"login": "state1", "extra": {"account_key": "hunter2"}},
            "has an extra account_key that can't be used: it must be the account's key, in base64",
        ),
        ({"login": "state1", "host": "state2"}, "a login and a host that name two accounts"),
        ({"host": "https://admin:hunter2@host"}, "has a host that can't be used: .*credentials"),
        ({"host": "https://host?sig=hunter2"}, "has a host that can't be used: .*http"),
        ({"login": "state1", "port": 10000}, "has a port, .* host"),
        (
            {"login": "state1", "password": ACCOUNT_KEY, "extra": {"sas_token": SAS}},
            "has the extra sas_token and a password, of which only one",
        ),
        (
            {"login": "app", "password": "hunter2", "extra": {"tenant_id": "t", "account_key": ACCOUNT_KEY}},
            "has the extra account_key and the extra tenant_id, of which only one",
        ),
        (
            {"extra": {"connection_string": STRING, "managed_identity_client_id": "x"}},
            "has the extra connection_string and the extra managed_identity_client_id, of which only one",
        ),
        ({"login": "state1", "extra": {"connection_string": STRING}}, "has a login or a host beside"),
        ({"host": "state1", "extra": {"connection_string": STRING}}, "has a login or a host beside"),
        ({"extra": {"connection_string": "hunter2"}}, "has an extra connection_string that is none"),
        (
            {"host": "state1", "extra": {"sas_token": f"https://state1.blob.core.windows.net?{SAS}"}},
            "has a host and a URL as the extra sas_token",
        ),
        ({"extra": {"sas_token": "https://hunter2"}}, "extra sas_token that is a URL without a token"),
        ({"extra": ["hunter2"]}, "no JSON object"),
        ({"extra": {"sas": "hunter2"}}, "extra sas, which is not known"),
        ({"extra": {"connection_strings": "hunter2"}}, "did you mean connection_string"),
        *[
            ({"login": "state1", "extra": {name: value}}, rf"has the extra {name}, which is not supported: \w+")
            for name, value in {
                "workload_identity_tenant_id": "hunter2",
                "client_secret_auth_config": {"authority": "hunter2"},
                "account_name": "hunter2",
                "account_url": "https://hunter2",
                "secondary_hostname": "hunter2",
                "audience": "https://hunter2",
                "api_version": "hunter2",
                "proxies": {"https": "http://hunter2"},
                "connection_verify": False,
                "connection_cert": "hunter2",
                "connection_timeout": 5,
                "read_timeout": 5,
                "retry_total": 5,
            }.items()
        ],
    ],
)
def test_an_azure_connection_that_can_not_work_is_named(
    monkeypatch: pytest.MonkeyPatch, look_up: LookUp, fields: dict[str, Any], says: str
) -> None:
    refused(monkeypatch, look_up, "wasb_conn_id", fields, says)


@pytest.mark.parametrize("option", ["aws_conn_id", "gcp_conn_id", "wasb_conn_id"])
def test_a_connection_that_is_missing_is_named_with_its_option(look_up: LookUp, option: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^\[async_state\] {option}: could not get the connection 'state'"):
        look_up(option)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", AwsConnection()),
        ("gs://bucket", GoogleConnection()),
        ("az://container", AzureConnection()),
        ("file:///state", connections.Connection()),
        ("memory://", connections.Connection()),
    ],
)
def test_each_store_has_the_connection_of_its_kind(url: str, expected: connections.Connection) -> None:
    assert connections.empty(url) == expected
    assert type(connections.empty(url)) is type(expected)
    assert anyio.run(context.connection_of, Settings(), url) == expected


def test_each_base_url_has_the_connection_of_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "AWS", "GOOGLE", "AZURE":
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", '{"conn_type": "any"}')
    settings = Settings(
        url="gs://bucket",
        trusted_urls=("s3://bucket", "az://container", "file:///state"),
        aws_conn_id="aws",
        gcp_conn_id="google",
        wasb_conn_id="azure",
    )
    found = [anyio.run(context.connection_of, settings, base) for base in settings.bases]
    assert found == [
        GoogleConnection("google"),
        AwsConnection("aws"),
        AzureConnection("azure"),
        connections.Connection(),
    ]


def test_the_endpoint_is_that_of_urls_own_store() -> None:
    settings = Settings(url="gs://bucket", trusted_urls=("s3://old",), endpoint_url="http://gcs:4443")
    assert S3Options.of("s3://old", settings, AwsConnection()).endpoint_url is None
    assert S3Options.of("s3://old", settings, AwsConnection(endpoint_url="http://s3")).endpoint_url == "http://s3"
    with pytest.raises(TypeError, match="takes an AwsConnection, not GoogleConnection"):
        S3Options.of("s3://old", settings, GoogleConnection())
