"""``check``, in processes of their own, against real servers: what is right, and each thing that may be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from async_state.testing import FakeS3, faults
from tests import servers
from tests.cli.conftest import OPTION, OURS, Check
from tests.stores.s3 import tls

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SECRET = "a-secret-that-is-wrong"


def of_moto(moto: FakeS3, url: str, **options: str) -> dict[str, str]:
    given = {"url": url, "endpoint_url": moto.url, **options}
    return {f"{OPTION}{name.upper()}": value for name, value in given.items()}


@pytest.fixture
def s3(moto: FakeS3) -> Iterator[S3Client]:
    client = servers.s3_client(moto.url)
    yield client
    client.close()


def test_all_is_well(check: Check, moto: FakeS3, s3: S3Client) -> None:
    checked = check(**of_moto(moto, "s3://state/well", timeout="30"))
    assert checked.wrong == {}
    assert checked.code == 0
    assert checked.one("[async_state] timeout")["detail"] == f"30.0 ({OPTION}TIMEOUT)"
    assert checked.one("[async_state] max_attempts")["detail"] == "0 (default)"
    assert checked.one("credentials")["detail"] == "from the environment (AWS_ACCESS_KEY_ID)"
    assert checked.one("endpoint")["detail"] == f"{moto.url}/state"
    for operation in "put", "get", "list", "delete", "bulk delete":
        assert checked.one(operation)["ms"] > 0
    assert "conditional writes" in checked.findings
    assert checked.one("fast path")["detail"].startswith("in use")
    assert servers.SECRET_KEY not in checked.out
    assert "Contents" not in s3.list_objects_v2(Bucket="state", Prefix="well/"), "it leaves nothing behind"


def test_a_table_for_people(moto: FakeS3, tmp_path: Path) -> None:
    (tmp_path / "airflow.cfg").write_text("[async_state]\nurl = s3://none/table\ntimeout = 7\n")
    given = {**of_moto(moto, ""), f"{OPTION}TIMEOUT": "8", "AIRFLOW_CONFIG": str(tmp_path / "airflow.cfg")}
    del given[f"{OPTION}URL"]
    # In an interpreter of its own, which reads this configuration.
    command = [sys.executable, "-m", "async_state", "check"]
    environment = {**os.environ, **OURS, **given}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("FAIL")).split()[1] == "bucket"
    assert "there is no bucket none" in done.stdout
    assert lines[-1].endswith("2 failed")
    sources = {line.split()[2]: line.split(maxsplit=3)[3] for line in lines if line.startswith("ok    [async_state]")}
    assert sources["url"] == "s3://none/table (airflow.cfg)"
    assert sources["timeout"] == f"8.0 ({OPTION}TIMEOUT)"
    assert sources["max_attempts"] == "0 (default)"


def test_files(check: Check, tmp_path: Path) -> None:
    url = (tmp_path / "state").as_uri()
    checked = check(**{f"{OPTION}URL": url})
    assert (checked.code, checked.wrong) == (0, {})
    assert "credentials" not in checked.findings
    celery = check(**{f"{OPTION}URL": url, "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor"})
    assert celery.code == 1
    assert "on this machine's disk" in celery.wrong["state's place"]


def test_every_option_that_is_wrong_is_named(check: Check) -> None:
    given = {"ENDPOINT": "http://minio", "TIMEOUT": "soon", "COMPRESSION": "lz4", "URL": "s3://state"}
    checked = check(**{f"{OPTION}{name}": value for name, value in given.items()})
    assert checked.code == 1
    problems = [finding["detail"] for finding in checked.findings["[async_state]"]]
    assert len(problems) == 3
    for name in "did you mean endpoint_url", "timeout", "compression":
        assert any(name in problem for problem in problems)
    assert checked.status("store") == "fail"


def test_a_worker_without_the_backend(check: Check, moto: FakeS3) -> None:
    environment = of_moto(moto, "s3://state/without")
    for backend, said in ("", "not set"), ("async_stat.AsyncStateBackend", "can't be imported"):
        checked = check(**environment, AIRFLOW__WORKERS__STATE_STORE_BACKEND=backend)
        assert checked.code == 1
        assert said in checked.wrong["[workers] state_store_backend"]
        assert "not patched" in checked.wrong["accessors"]


def test_accessors_that_are_not_patched(check: Check, moto: FakeS3) -> None:
    checked = check(**of_moto(moto, "s3://state/unpatched", patch_accessors="False"))
    assert (checked.code, set(checked.wrong)) == (0, {"accessors"})


def test_a_store_that_is_not_there(check: Check) -> None:
    checked = check(
        **{f"{OPTION}URL": "s3://state", f"{OPTION}ENDPOINT_URL": f"http://127.0.0.1:{servers.free_port()}"}
    )
    assert checked.code == 1
    assert "endpoint_url" in checked.wrong["endpoint"]
    assert "put" not in checked.findings


def test_credentials_that_are_not_there(check: Check, moto: FakeS3, tmp_path: Path) -> None:
    environment = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    checked = check(**of_moto(moto, "s3://state/nobody", timeout="1"), **environment)
    assert checked.code == 1
    assert "Give this process AWS credentials" in checked.wrong["credentials"]
    (tmp_path / "credentials").write_text("[ops]\naws_access_key_id = a\naws_secret_access_key = b\n")
    profile = {"AWS_PROFILE": "ops", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    checked = check(**of_moto(moto, "s3://state/profile"), **environment, **profile)
    assert checked.one("credentials")["detail"] == "from the shared credentials file, profile ops"


def test_a_wrong_secret(check: Check, rclone_url: str) -> None:
    environment = {f"{OPTION}URL": "s3://state/secret", f"{OPTION}ENDPOINT_URL": rclone_url}
    checked = check(**environment, AWS_SECRET_ACCESS_KEY=SECRET)
    assert checked.code == 1
    assert "SignatureDoesNotMatch" in checked.wrong["put"]
    assert SECRET not in checked.out


def test_a_connection(check: Check, moto: FakeS3) -> None:
    environment = of_moto(moto, "s3://state/connection", aws_conn_id="state_s3")
    checked = check(**environment, AIRFLOW_CONN_STATE_S3=f"aws://AKIA:{SECRET}@")
    assert (checked.code, checked.wrong) == (0, {})
    assert checked.one("credentials")["detail"] == "from the Airflow connection state_s3"
    assert SECRET not in checked.out
    checked = check(**environment)
    assert checked.code == 1
    assert "state_s3" in checked.wrong["connection"]


def test_a_store_without_conditions(check: Check, rclone_url: str) -> None:
    checked = check(**{f"{OPTION}URL": "s3://state/rclone", f"{OPTION}ENDPOINT_URL": rclone_url})
    assert checked.code == 0
    assert set(checked.wrong) == {"conditional writes", "conditional deletes"}


def test_another_region(check: Check, moto: FakeS3, s3: S3Client) -> None:
    s3.create_bucket(Bucket="check-far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    checked = check(**of_moto(moto, "s3://check-far/x", region_name="us-west-2"))
    assert checked.wrong == {"region": "the bucket is in eu-west-1, and requests are signed for us-west-2"}
    assert "region_name = eu-west-1" in checked.one("region")["advice"]


def test_a_prefix_of_two_environments(check: Check, moto: FakeS3, s3: S3Client) -> None:
    of_prod = {"owner": "prod", "since": "2026-01-01T00:00:00+00:00"}
    s3.put_object(Bucket="state", Key="shared/v1/owner", Body=json.dumps(of_prod).encode())
    checked = check(**of_moto(moto, "s3://state/shared", owner="staging"))
    assert checked.code == 1
    assert "belongs to another deployment: 'prod'" in checked.wrong["owner"]
    assert check(**of_moto(moto, "s3://state/shared", owner="prod")).code == 0


def test_a_prefix_of_another_database(
    check: Check, moto: FakeS3, s3: S3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_prod = {"database": "postgresql://db.prod/airflow", "since": "2026-01-01T00:00:00+00:00"}
    s3.put_object(Bucket="state", Key="database/v1/owner", Body=json.dumps(of_prod).encode())
    environment = of_moto(moto, "s3://state/database")
    assert "belongs to another deployment" in check(**environment).wrong["owner"]
    # Machines that do not know their deployment's database: one with a default, and one without SQLAlchemy.
    assert check(**environment, AIRFLOW__CORE__EXECUTOR="CeleryExecutor").status("owner") == "ok"
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    assert check(**environment).status("owner") == "ok"


def test_options_that_other_components_do_not_have(check: Check, moto: FakeS3, s3: S3Client) -> None:
    recorded = {
        "owner": "prod",
        "clear_on_success": {"workers": False, "api-server": True},
        "options": {"scheduler": {"owner": "prod"}, "celery worker": {"owner": "prod", "timeout": "90.0"}},
    }
    s3.put_object(Bucket="state", Key="others/v1/owner", Body=json.dumps(recorded).encode())
    environment = of_moto(moto, "s3://state/others", owner="prod")
    del environment[f"{OPTION}ENDPOINT_URL"]
    checked = check(**environment, AWS_ENDPOINT_URL_S3=moto.url)
    assert set(checked.wrong) == {"clear_on_success of all", "options of celery worker"}
    assert "timeout is 90.0 there and the default here" in checked.wrong["options of celery worker"]
    assert checked.code == 0


def test_settings_of_the_bucket(check: Check, moto: FakeS3, s3: S3Client) -> None:
    s3.create_bucket(Bucket="check-rules", ObjectLockEnabledForBucket=True)
    environment = of_moto(moto, "s3://check-rules/prod")
    checked = check(**environment)
    assert (checked.code, set(checked.wrong)) == (0, {"versioning"})
    assert checked.one("object lock")["detail"] == "on, without a default retention"
    deletes: Any = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": "prod/"}, "Expiration": {"Days": 30}}
    old: Any = {
        "ID": "old",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 7},
    }
    s3.put_bucket_lifecycle_configuration(Bucket="check-rules", LifecycleConfiguration={"Rules": [deletes, old]})
    checked = check(**environment)
    assert (checked.code, set(checked.wrong)) == (1, {"lifecycle"})
    assert "'tidy' deletes state 30 days after" in checked.wrong["lifecycle"]
    s3.create_bucket(Bucket="check-lock", ObjectLockEnabledForBucket=True)
    s3.put_object_lock_configuration(
        Bucket="check-lock",
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 3}},
        },
    )
    assert "each object is kept for 3 days" in check(**of_moto(moto, "s3://check-lock")).wrong["object lock"]


def test_settings_that_may_not_be_read(check: Check, moto: FakeS3) -> None:
    def asks(request: Any) -> bool:
        return any(name in request.query for name in ("versioning", "lifecycle", "object-lock"))

    with moto.failing(faults.error(403, "AccessDenied"), when=asks):
        checked = check(**of_moto(moto, "s3://state/denied"))
    assert set(checked.wrong) == {"versioning", "lifecycle", "object lock"}
    assert checked.code == 0
    with moto.failing(faults.error(501, "NotImplemented"), when=asks):
        assert check(**of_moto(moto, "s3://state/lacking")).wrong == {}


def test_an_operation_that_is_denied_leaves_nothing_behind(check: Check, moto: FakeS3, s3: S3Client) -> None:
    with moto.failing(faults.error(403, "AccessDenied"), method="GET", path="v1/check/"):
        checked = check(**of_moto(moto, "s3://state/half"))
    assert "s3:GetObject" in checked.wrong["get"]
    assert checked.code == 1
    assert "Contents" not in s3.list_objects_v2(Bucket="state", Prefix="half/")


def test_tls(check: Check, moto: FakeS3, tmp_path: Path) -> None:
    bundle, chain = tls.authority(tmp_path)
    terminator = tls.Terminator(int(moto.url.rpartition(":")[2]))
    terminator.show(chain)
    try:
        environment = {**of_moto(moto, "s3://state/tls"), f"{OPTION}ENDPOINT_URL": terminator.url}
        trusted = check(**environment, AWS_CA_BUNDLE=str(bundle))
        assert (trusted.code, trusted.wrong) == (0, {})
        assert trusted.one("tls")["detail"].startswith("TLSv1.3, the certificate ends on ")
        unknown = check(**environment)
        assert unknown.code == 1
        assert "AWS_CA_BUNDLE" in unknown.wrong["endpoint"]
    finally:
        terminator.close()


def test_without_the_fast_path(check: Check, moto: FakeS3) -> None:
    proxied = check(**of_moto(moto, "s3://state/proxied"), HTTP_PROXY=moto.url)
    assert proxied.one("endpoint")["detail"].endswith("through a proxy")
    assert "behind a proxy" in proxied.one("fast path")["detail"]
