"""The options of [async_state], from Airflow's own configuration."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.configuration import conf

from async_state import AsyncStateBackend, Settings
from async_state.errors import ConfigurationError
from async_state.settings import default_url

BUCKET = "s3://bucket/prefix"


def from_environment(monkeypatch: pytest.MonkeyPatch, **options: str) -> Settings:
    for name, value in options.items():
        monkeypatch.setenv(f"AIRFLOW__ASYNC_STATE__{name.upper()}", value)
    return Settings.from_conf(conf)


def test_every_option_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "url": "s3://bucket/prefix/",
        "max_concurrency": "8",
        "timeout": "2.5",
        "max_attempts": "2",
        "compression": "gzip",
        "compression_threshold": "10",
        "inline_threshold": "64",
        "on_missing": "raise",
        "trusted_urls": "s3://old/a, file:///var/lib/state",
        "endpoint_url": "http://localhost:9000",
        "region_name": "eu-central-1",
        "aws_conn_id": "aws_state",
        "server_side_encryption": "aws:kms",
        "sse_kms_key_id": "alias/state",
        "patch_accessors": "False",
    }
    assert given.keys() == {option.name for option in dataclasses.fields(Settings)}
    assert from_environment(monkeypatch, **given) == Settings(
        url="s3://bucket/prefix",
        max_concurrency=8,
        timeout=2.5,
        max_attempts=2,
        compression="gzip",
        compression_threshold=10,
        inline_threshold=64,
        on_missing="raise",
        trusted_urls=("s3://old/a", "file:///var/lib/state"),
        endpoint_url="http://localhost:9000",
        region_name="eu-central-1",
        aws_conn_id="aws_state",
        server_side_encryption="aws:kms",
        sse_kms_key_id="alias/state",
        patch_accessors=False,
    )


def test_what_is_unset_or_empty_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = from_environment(monkeypatch, url="", timeout=" ", region_name="")
    assert settings == Settings()
    assert settings.url == f"file://{os.environ['AIRFLOW_HOME']}/async_state"
    assert (settings.timeout, settings.max_attempts, settings.compression) == (20, 4, "none")
    assert (settings.inline_threshold, settings.on_missing, settings.trusted_urls) == (0, "none", ())
    assert settings.region_name is None
    assert 16 <= settings.max_concurrency <= 32


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("url", "gs://bucket/x", "s3://"),
        ("url", "bucket/prefix", "s3://"),
        ("url", "s3://", "name a bucket"),
        ("url", "s3:///prefix", "name a bucket"),
        ("url", "s3://UPPER CASE/x", "name a bucket"),
        ("url", "s3://bucket/a/../b", r"not '\.\.'"),
        ("url", "s3://bucket/a//b", "not ''"),
        ("url", "s3://bucket/a%2Fb", "may hold"),
        ("url", "s3://bucket/" + "x" * 400, "1,024"),
        ("url", "s3://bucket/a?versionId=1", "query"),
        ("url", "s3://conn@bucket/a", "aws_conn_id"),
        ("url", "file://host/path", "absolute path"),
        ("url", "file:///", "absolute path"),
        ("trusted_urls", "s3://ok/a,nonsense", "'nonsense'"),
        ("max_concurrency", "0", "at least 1"),
        ("max_concurrency", "many", "'many'"),
        ("max_concurrency", "1.5", "'1.5'"),
        ("timeout", "0", "above 0"),
        ("timeout", "nan", "above 0"),
        ("timeout", "inf", "above 0"),
        ("timeout", "-1", "above 0"),
        ("max_attempts", "0", "at least 1"),
        ("compression", "lzma", "none, gzip, zstd"),
        ("compression_threshold", "-1", "at least 0"),
        ("inline_threshold", "-1", "at least 0"),
        ("on_missing", "default", "none, raise"),
        ("endpoint_url", "localhost:9000", "http://"),
        ("server_side_encryption", "rot13", "AES256"),
        ("sse_kms_key_id", "alias/x", "server_side_encryption"),
        ("patch_accessors", "maybe", "True or False"),
    ],
)
def test_contract_25_a_bad_option_fails_in_the_constructor_with_its_full_name(
    monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"AIRFLOW__ASYNC_STATE__{option.upper()}", value)
    with pytest.raises(ConfigurationError, match=rf"\[async_state\] {option}: .*{says}") as caught:
        AsyncStateBackend()
    # Airflow's loader hides ImportError and AttributeError behind a message of its own.
    assert isinstance(caught.value, ValueError)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(url="ftp://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


def test_zstd_without_the_extra(tmp_path: Path) -> None:
    """In a process where zstandard can't be found, whatever is installed."""
    program = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "zstandard" else find(name, *rest)
sys.modules["zstandard"] = None
from async_state import Settings, codec
from async_state.errors import ConfigurationError
for attempt in (lambda: Settings(compression="zstd"), lambda: codec.decode(bytes.fromhex("28b52ffd") + b"x")):
    try:
        attempt()
    except ConfigurationError as e:
        print(e)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    constructor, reading = done.stdout.splitlines()
    assert "[async_state] compression" in constructor
    assert "airflow-async-state[zstd]" in constructor
    assert "airflow-async-state[zstd]" in reading


def test_the_default_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    from async_state import backend

    backend._warn_of_default.cache_clear()
    for _ in range(3):
        AsyncStateBackend(Settings())
    (record,) = (r for r in caplog.records if r.name == "async_state.backend")
    assert "this machine's disk" in record.getMessage()
    assert default_url() in record.getMessage()
    caplog.clear()
    AsyncStateBackend(Settings(url="file:///mnt/shared/state"))
    assert not caplog.records


def airflow(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "airflow", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout


def test_airflow_config_list_shows_every_option_with_default_and_description() -> None:
    shown = airflow("config", "list", "--section", "async_state", "--show-values", "--include-descriptions")
    options = dict(re.findall(r"^([a-z0-9_]+) = (.*)$", shown, re.MULTILINE))
    assert options.keys() == {option.name for option in dataclasses.fields(Settings)}
    assert options["url"] == default_url()
    for option in dataclasses.fields(Settings):
        first_words = " ".join(option.metadata["description"].split()[:3])
        assert first_words in shown
    # What Airflow shows as defaults are the defaults.
    assert Settings.from_conf(FixedConf(options)) == Settings()


class FixedConf:
    """An Airflow ``conf`` with these options and no others."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options

    def get(self, section: str, option: str, fallback: Any) -> Any:
        return self._options.get(option, fallback)


def test_airflow_knows_the_provider() -> None:
    providers = json.loads(airflow("providers", "list", "--output", "json"))
    assert any(p["package_name"] == "airflow-async-state" for p in providers)
