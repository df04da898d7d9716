"""The options of [async_state], from Airflow's own configuration."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from airflow.sdk.configuration import conf
from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings, keys
from async_state.errors import ConfigurationError, UntrustedRefError
from async_state.settings import _at_least, _option, default_url, options, problems

BUCKET = "s3://bucket/prefix"


class Airflow(NamedTuple):
    """What Airflow's commands show, run one after the other in an interpreter with an empty ``AIRFLOW_HOME``."""

    home: Path
    config: str
    providers: str


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    home = tmp_path_factory.mktemp("airflow") / "home"
    commands = [
        ["config", "list", "--section", "async_state", "--show-values", "--include-descriptions"],
        ["providers", "list", "--output", "json"],
    ]
    program = """
import contextlib, io, json, sys
from airflow.__main__ import main
shown = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main()
    shown.append(output.getvalue())
print(json.dumps(shown))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "AIRFLOW_HOME": str(home)},
    )
    return Airflow(home, *json.loads(done.stdout.splitlines()[-1]))


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
        "owner": "prod",
        "outage_inline_threshold": "4096",
        "compression": "gzip",
        "compression_threshold": "10",
        "inline_threshold": "64",
        "on_missing": "raise",
        "trusted_urls": "s3://old/a, file:///var/lib/state",
        "moved_urls": "s3://moved/a/,s3://moved/b",
        "endpoint_url": "http://localhost:9000",
        "region_name": "eu-central-1",
        "aws_conn_id": "aws_state",
        "azure_account": "state1",
        "gcp_conn_id": "google_state",
        "wasb_conn_id": "wasb_state",
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
        owner="prod",
        outage_inline_threshold=4096,
        compression="gzip",
        compression_threshold=10,
        inline_threshold=64,
        on_missing="raise",
        trusted_urls=("s3://old/a", "file:///var/lib/state"),
        moved_urls=("s3://moved/a", "s3://moved/b"),
        endpoint_url="http://localhost:9000",
        region_name="eu-central-1",
        aws_conn_id="aws_state",
        azure_account="state1",
        gcp_conn_id="google_state",
        wasb_conn_id="wasb_state",
        server_side_encryption="aws:kms",
        sse_kms_key_id="alias/state",
        patch_accessors=False,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_concurrency": 0}, "max_concurrency: must be an integer, at least 1, not 0"),
        ({"inline_threshold": -1}, "inline_threshold: must be an integer, at least 0, not -1"),
        ({"timeout": 0}, "timeout: must be a number of seconds above 0, not 0"),
        ({"on_missing": "x"}, "on_missing: must be one of none, raise, not 'x'"),
        ({"compression": "x"}, "compression: must be one of none, gzip, zstd, not 'x'"),
        ({"aws_conn_id": "a b"}, "aws_conn_id: must be the id of a connection, not 'a b'"),
        ({"aws_conn_id": "a" * 251}, f"aws_conn_id: must be the id of a connection, not '{'a' * 251}'"),
        (
            {"azure_account": "a2"},
            "azure_account: must be the name of a storage account, 3 to 24 lower-case letters and digits",
        ),
        ({"owner": "a b"}, "owner: must be printable ASCII characters without spaces, not 'a b'"),
        (
            {"server_side_encryption": "AES256", "sse_kms_key_id": "k"},
            "sse_kms_key_id: needs [async_state] server_side_encryption = aws:kms (or aws:kms:dsse)",
        ),
        ({"timeout": "1"}, "timeout: must be a number, not str"),
        ({"patch_accessors": 1}, "patch_accessors: must be True or False, not int"),
        ({"trusted_urls": "s3://a"}, "trusted_urls: must be a list, not str"),
        (
            {"url": "s3://a", "moved_urls": ["s3://a/"]},
            "moved_urls: holds url itself, s3://a: set url to where the objects have been copied",
        ),
        (
            {"trusted_urls": ["s3://a"], "moved_urls": ["s3://b", "s3://a/"]},
            "moved_urls: s3://a is in trusted_urls as well: remove it there if all of its objects have been copied "
            "below url, and otherwise here",
        ),
    ],
)
def test_what_is_wrong_with_an_option_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(**given)
    assert str(caught.value) == f"[async_state] {said}"


def test_options_up_to_their_limits_are_taken() -> None:
    settings = Settings(max_concurrency=1, max_attempts=0, aws_conn_id="a" * 250, owner="!~", timeout=1e-9)
    assert (settings.max_concurrency, settings.aws_conn_id, settings.owner) == (1, "a" * 250, "!~")
    key = Settings(server_side_encryption="aws:kms:dsse", sse_kms_key_id="alias/k").sse_kms_key_id
    assert key == "alias/k"
    assert (Settings(region_name="").region_name, Settings(trusted_urls=("s3://a/",)).trusted_urls) == (
        None,
        ("s3://a",),
    )


def test_a_text_that_is_no_value_is_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_conf(FixedConf({"timeout": "soon"}))
    assert str(caught.value) == "[async_state] timeout: must be a number, not 'soon'"
    assert Settings.from_conf(FixedConf({"patch_accessors": "FALSE"})).patch_accessors is False
    assert Settings.from_conf(FixedConf({"trusted_urls": ", s3://a,,s3://b\n"})).trusted_urls == ("s3://a", "s3://b")


def test_what_airflow_is_told_of_an_option() -> None:
    told = {option.name: option for option in options()}
    assert (told["max_attempts"].default, told["patch_accessors"].default) == ("0", "True")
    assert {told[name].default for name in ("url", "owner", "trusted_urls", "region_name")} == {""}
    assert (told["patch_accessors"].type, told["timeout"].type, told["owner"].example) == ("boolean", "float", "prod")


def test_what_is_unset_or_empty_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = from_environment(monkeypatch, url="", timeout=" ", region_name="")
    assert settings == Settings()
    assert settings.url == f"file://{os.environ['AIRFLOW_HOME']}/async_state"
    assert (settings.timeout, settings.max_attempts, settings.compression) == (20, 0, "none")
    assert (settings.owner, settings.outage_inline_threshold) == ("", 0)
    assert (settings.inline_threshold, settings.on_missing, settings.trusted_urls) == (0, "none", ())
    assert settings.region_name is None
    assert 16 <= settings.max_concurrency <= 32


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("url", "ftp://bucket/x", "s3://"),
        ("url", "gs://UPPER/x", "name a bucket"),
        ("url", "gs://conn@bucket/a", "gcp_conn_id"),
        ("url", "az://two--dashes/x", "name a container"),
        ("url", "az://conn@container/a", "wasb_conn_id"),
        ("azure_account", "Some-Account", "storage account"),
        ("gcp_conn_id", "google default", "id of a connection"),
        ("wasb_conn_id", "wasb default", "id of a connection"),
        ("url", "bucket/prefix", "s3://"),
        ("url", "s3://", "name a bucket"),
        ("url", "s3:///prefix", "name a bucket"),
        ("url", "s3://UPPER CASE/x", "name a bucket"),
        ("url", "s3://bucket/a/../b", r"not '\.\.'"),
        ("url", "s3://bucket/a//b", "two slashes"),
        ("url", "s3://bucket//a", "two slashes"),
        ("url", "s3://bucket/a%2Fb", "may hold"),
        ("url", "s3://bucket/" + "x" * 400, "1,024"),
        ("url", "s3://bucket/a?versionId=1", "query"),
        ("url", "s3://conn@bucket/a", "aws_conn_id"),
        ("url", "s3://KEY:SECRET/WITH/SLASH@bucket", "must not hold credentials"),
        ("url", "file://host/path", "absolute path"),
        ("url", "file:///", "absolute path"),
        ("trusted_urls", "s3://ok/a,nonsense", "'nonsense'"),
        ("moved_urls", "s3://ok/a,nonsense", "'nonsense'"),
        ("max_concurrency", "0", "at least 1"),
        ("max_concurrency", "many", "'many'"),
        ("max_concurrency", "1.5", "'1.5'"),
        ("timeout", "0", "above 0"),
        ("timeout", "nan", "above 0"),
        ("timeout", "inf", "above 0"),
        ("timeout", "-1", "above 0"),
        ("max_attempts", "-1", "at least 0"),
        ("outage_inline_threshold", "-1", "at least 0"),
        ("owner", "two words", "without spaces"),
        ("compression", "lzma", "none, gzip, zstd"),
        ("compression_threshold", "-1", "at least 0"),
        ("inline_threshold", "-1", "at least 0"),
        ("on_missing", "default", "none, raise"),
        ("endpoint_url", "localhost:9000", "http://"),
        ("endpoint_url", "https://s3.example.com?a=b", "http://"),
        ("endpoint_url", "https://s3.example.com/#a", "http://"),
        ("endpoint_url", "http://my_minio:9000", "http://"),
        ("endpoint_url", "https://admin:80/ss@host", "credentials"),
        ("region_name", "eu central", "eu-central-1"),
        ("region_name", "eu-central-1.", "eu-central-1"),
        ("region_name", "https://eu", "eu-central-1"),
        ("region_name", "1", "eu-central-1"),
        ("region_name", "x" * 64, "eu-central-1"),
        ("aws_conn_id", "aws default", "id of a connection"),
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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("url", "ftp://user:hunter2@host/x"),
        ("url", "s3://KEY:hunter2/WITH/SLASH@bucket"),
        ("url", "s3://KEY:hunter2?a@bucket"),
        ("url", "s3://KEY:hunter2 a@bucket"),
        ("url", "s3://bucket/a?X-Amz-Signature=hunter2"),
        ("url", "s3://[hunter2@bucket"),
        ("url", "KEY:hunter2@bucket"),
        ("trusted_urls", "s3://ok/a,s3://KEY:hunter2/b,c@bucket"),
        ("moved_urls", "s3://ok/a,s3://KEY:hunter2/b,c@bucket"),
        ("trusted_urls", "s3://KEY:a hunter2@bucket"),
        ("endpoint_url", "https://admin:hunter2/ss@host"),
        ("endpoint_url", "https://admin:80/hunter2@host"),
        ("endpoint_url", "https://admin:hunter2 a@host"),
        ("endpoint_url", "admin:hunter2@host"),
        ("endpoint_url", "https://host/?token=hunter2"),
        ("region_name", "https://admin:hunter2@host"),
        ("aws_conn_id", "aws://KEY:hunter2@"),
        ("url", "gs://KEY:hunter2/WITH/SLASH@bucket"),
        ("url", "az://container/a?sig=hunter2"),
        ("azure_account", "hunter2/WITH/SLASH=="),
        ("wasb_conn_id", "wasb://KEY:hunter2@"),
    ],
)
def test_a_secret_in_a_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\[async_state\] {option}: ") as caught:
        from_environment(monkeypatch, **{option: value})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_longest_prefix_fits_and_a_longer_one_does_not() -> None:
    longest = TaskScope(dag_id="d" * 250, run_id="r" * 250, task_id="t" * 250, map_index=2**31 - 1)
    name = keys.object_name(longest, "k" * 512, keys.Side.WORKER)
    region = len("@00000000-0000-0000-0000-000000000001")  # of task-sdk 1.4
    prefix = "p" * (1024 - len(name) - region - 1)
    assert Settings(url=f"s3://bucket/{prefix}").url.endswith(prefix)
    with pytest.raises(ConfigurationError, match="1,024 bytes"):
        Settings(url=f"s3://bucket/{prefix}p")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": 5}, r"\[async_state\] url: must be text, not int"),
        ({"timeout": "20"}, r"\[async_state\] timeout: must be a number, not str"),
        ({"max_concurrency": True}, r"\[async_state\] max_concurrency: must be an integer, not bool"),
        ({"patch_accessors": "yes"}, r"\[async_state\] patch_accessors: must be True or False, not str"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Settings(**options)


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        ("/srv/air#flow", "/srv/air#flow"),
        ("/srv/air?flow", "/srv/air?flow"),
        ("/srv/air%20flow", "/srv/air%20flow"),
        ("/srv/air flow", "/srv/air flow"),
        ("/srv/@,airflow", "/srv/@,airflow"),
        ("/srv/\u00e9", "/srv/\u00e9"),
        ("relative/home", "{cwd}/relative/home"),
        ("~/airflow", "{home}/airflow"),
        ("$PLACE/airflow", "/srv/place/airflow"),
        ("$NESTED/airflow", "{home}/x/airflow"),
        (None, "{home}/airflow"),
    ],
)
def test_the_default_is_the_directory_in_airflow_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("PLACE", "/srv/place")
    monkeypatch.setenv("NESTED", "~/x")
    monkeypatch.delenv("AIRFLOW_HOME")
    if home is not None:
        monkeypatch.setenv("AIRFLOW_HOME", home)
    settings = Settings.from_conf(conf)
    path = url2pathname(urlsplit(settings.url).path)
    assert path == expected.format(cwd=tmp_path, home="/home/someone") + "/async_state"
    assert settings == Settings(trusted_urls=()) == Settings(url=settings.url)
    assert Settings(trusted_urls=(settings.url,)).bases == (settings.url, settings.url)


def test_a_user_without_a_home_has_a_default_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Airflow, which then takes ``~`` for a directory's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("AIRFLOW_HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    assert Settings().url == (tmp_path / "~" / "airflow" / "async_state").as_uri()


@pytest.mark.parametrize(
    ("variable", "option", "nearest"),
    [
        ("AIRFLOW__ASYNC_STATE__ENDPOINT", "endpoint", "endpoint_url"),
        ("AIRFLOW__ASYNC_STATE__TIMEOUTS", "timeouts", "timeout"),
        ("AIRFLOW__ASYNC_STATE__REGION", "region", "region_name"),
        ("AIRFLOW__ASYNC_STATE__url", "url", "AIRFLOW__ASYNC_STATE__URL"),
        ("AIRFLOW__ASYNC_STATE_URL", "url", "AIRFLOW__ASYNC_STATE__URL"),
        ("AIRFLOW__ASYNC_STATE___URL", "url", "AIRFLOW__ASYNC_STATE__URL"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_nearest_option(
    monkeypatch: pytest.MonkeyPatch, variable: str, option: str, nearest: str
) -> None:
    monkeypatch.setenv(variable, "http://secret.example.com")
    with pytest.raises(ConfigurationError, match=rf"\[async_state\] {option}: .*{nearest}.*{variable}") as caught:
        AsyncStateBackend()
    assert "secret" not in str(caught.value)


def test_every_unknown_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__ENDPOINT", "x")
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__XYZZY", "x")
    with pytest.raises(ConfigurationError) as caught:
        AsyncStateBackend()
    endpoint, other = str(caught.value).split("; [")
    assert "did you mean endpoint_url" in endpoint
    assert other == "async_state] xyzzy: there is no such option; remove it (found as AIRFLOW__ASYNC_STATE__XYZZY)"


@pytest.mark.parametrize("suffix", ["_CMD", "_SECRET"])
def test_a_form_that_airflow_does_not_read_is_refused(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Airflow runs commands and asks secrets backends for options that are marked sensitive; here, none is."""
    monkeypatch.setenv(f"AIRFLOW__ASYNC_STATE__URL{suffix}", "echo s3://bucket/prefix")
    assert conf.get("async_state", "url", fallback=None) in (None, "")
    with pytest.raises(ConfigurationError, match=r"\[async_state\] url_(cmd|secret): .*set url itself"):
        AsyncStateBackend()


def test_variables_of_other_sections_are_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE_OF_OTHERS__URL", "x")
    monkeypatch.setenv("AIRFLOW__ASYNC_STATES__URL", "x")
    monkeypatch.setenv("AIRFLOW__TEAM_A___ASYNC_STATE__URL", "x")
    assert Settings.from_conf(conf) == Settings()


def configuration(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the ``conf`` of a component that starts with ``text`` as its ``airflow.cfg``."""
    from airflow.sdk.configuration import initialize_config

    (tmp_path / "airflow.cfg").write_text(text)
    monkeypatch.setenv("AIRFLOW_CONFIG", str(tmp_path / "airflow.cfg"))
    return initialize_config()


def read(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return Settings.from_conf(configuration(tmp_path, text, monkeypatch))


def test_a_misspelt_option_in_the_file_is_named_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = "[DEFAULT]\nother = 1\n[async_state]\nurl = s3://bucket/prefix\n[other]\nendpoint = x\n"
    assert read(tmp_path, right, monkeypatch).url == BUCKET
    for wrong, nearest in ("endpoint", "endpoint_url"), ("URL", "url"), ("url_cmd", "set url itself"):
        with pytest.raises(ConfigurationError, match=rf"\[async_state\] {wrong.lower()}: .*{nearest}.*airflow.cfg"):
            read(tmp_path, f"[async_state]\n{wrong} = x\n", monkeypatch)


def test_a_lone_percent_in_the_file_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\] url: can't be read: in airflow.cfg, write %% for each %$"):
        read(tmp_path, "[async_state]\nurl = file:///a%20b\n", monkeypatch)
    assert read(tmp_path, "[async_state]\nurl = file:///a%%20b\n", monkeypatch).url == "file:///a%20b"


def test_a_configuration_that_can_not_list_its_options_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_conf(FixedConf({"url": BUCKET})).url == BUCKET
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__ENDPOINT", "x")
    with pytest.raises(ConfigurationError, match="endpoint_url"):
        Settings.from_conf(FixedConf({"url": BUCKET}))


def test_the_default_url_is_frozen_in_no_file(airflow: Airflow, tmp_path: Path) -> None:
    """A generated ``airflow.cfg``, moved with its ``AIRFLOW_HOME``, leads to the new home."""
    old, new = airflow.home, tmp_path / "new"
    # The others have their answers.
    old.rename(new)
    generated = (new / "airflow.cfg").read_text()
    assert "[async_state]" in generated
    assert f"{old}/async_state" not in generated
    program = "from airflow.sdk.configuration import conf; from async_state import Settings; "
    shown = subprocess.run(
        [sys.executable, "-c", program + "print(Settings.from_conf(conf).url)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "AIRFLOW_HOME": str(new)},
    ).stdout
    assert shown.strip() == (new / "async_state").as_uri()


def test_the_options_are_walked_from_the_fields() -> None:
    assert [option.name for option in options()] == [field.name for field in dataclasses.fields(Settings)]
    types = {option.name: option.type for option in options()}
    assert (types["timeout"], types["max_attempts"], types["patch_accessors"]) == ("float", "integer", "boolean")
    assert {types["url"], types["trusted_urls"], types["region_name"]} == {"string"}
    assert all(option.description.endswith(".") for option in options())


def test_zstd_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(compression="zstd").compression == "zstd"
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert Settings(compression="gzip").compression == "gzip"
    with pytest.raises(ConfigurationError) as caught:
        Settings(compression="zstd")
    assert str(caught.value) == (
        "[async_state] compression: zstd needs the extra: pip install 'airflow-async-state[zstd]', or use gzip"
    )


def test_what_a_field_says_of_its_option() -> None:
    """As the fields of `Settings` are made, whose own are made when the module is imported."""

    def now() -> str:
        return "now"

    @dataclasses.dataclass
    class Options:
        fixed: int = _option(3, "Three.", check=_at_least(2), example="4")
        made: str = _option(now, "Made.", check=str)

    fixed, made = dataclasses.fields(Options)
    assert (fixed.default, made.default, Options()) == (3, dataclasses.MISSING, Options(3, "now"))
    assert dict(made.metadata) == {"description": "Made.", "check": str, "example": None}
    check = fixed.metadata["check"]
    assert dict(fixed.metadata) == {"description": "Three.", "check": check, "example": "4"}
    assert [check(2), check(3)] == [2, 3]
    with pytest.raises(ValueError, match=r"^must be an integer, at least 2, not 1$"):
        check(1)


def test_options_as_airflow_cfg_has_them() -> None:
    texts = Settings(url=BUCKET, trusted_urls=("s3://a", "s3://b"), timeout=2.5, patch_accessors=False).texts()
    assert list(texts) == [option.name for option in options()]
    names = ("url", "trusted_urls", "moved_urls", "timeout", "max_attempts", "patch_accessors", "region_name")
    assert [texts[name] for name in names] == [BUCKET, "s3://a,s3://b", "", "2.5", "0", "False", ""]


def test_every_problem_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert problems(FixedConf({"url": BUCKET, "timeout": "2"})) == []
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__TIME_OUT", "1")
    assert [problem.partition(":")[0] for problem in problems(conf)] == ["[async_state] time_out"]
    monkeypatch.delenv("AIRFLOW__ASYNC_STATE__TIME_OUT")
    in_file = problems(configuration(tmp_path, "[async_state]\ntime_out = 1\n", monkeypatch))
    assert [problem.partition(":")[0] for problem in in_file] == ["[async_state] time_out"]
    told = problems(FixedConf({"url": BUCKET, "timeout": "soon", "max_concurrency": "0", "moved_urls": BUCKET}))
    assert told == [
        "[async_state] max_concurrency: must be an integer, at least 1, not 0",
        "[async_state] timeout: must be a number, not 'soon'",
    ]
    # What two options are together is told once each is right by itself.
    assert problems(FixedConf({"url": BUCKET, "moved_urls": BUCKET})) == [
        f"[async_state] moved_urls: holds url itself, {BUCKET}: set url to where the objects have been copied"
    ]


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


def test_airflow_config_list_shows_every_option_with_default_and_description(airflow: Airflow) -> None:
    shown = airflow.config
    listed = dict(re.findall(r"^([a-z0-9_]+) = (.*)$", shown, re.MULTILINE))
    assert listed.keys() == {option.name for option in dataclasses.fields(Settings)}
    assert listed["url"] == ""
    for option in dataclasses.fields(Settings):
        first_words = " ".join(option.metadata["description"].split()[:3])
        assert first_words in shown
    # What Airflow shows as defaults are the defaults.
    assert Settings.from_conf(FixedConf(listed)) == Settings()


class FixedConf:
    """An Airflow ``conf`` with these options and no others."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options

    def get(self, section: str, option: str, fallback: Any) -> Any:
        return self._options.get(option, fallback)


def test_airflow_knows_the_provider(airflow: Airflow) -> None:
    providers = json.loads(airflow.providers)
    assert any(p["package_name"] == "airflow-async-state" for p in providers)


def test_a_url_is_trusted_or_moved() -> None:
    with pytest.raises(ConfigurationError, match=r"\[async_state\] moved_urls: s3://old/a is in trusted_urls as well"):
        Settings(url="s3://new", trusted_urls=("s3://old/b", "s3://old/a/"), moved_urls=("s3://old/a",))


def test_url_is_not_moved() -> None:
    """Whoever forgets to set url would go on reading the bucket that is about to be deleted."""
    with pytest.raises(ConfigurationError, match=r"\[async_state\] moved_urls: holds url itself, s3://old/a"):
        Settings(url="s3://old/a", moved_urls=("s3://old/a/",))


def test_where_a_reference_leads() -> None:
    name = "v1/task/dag/run/task/-1/worker/key"
    settings = Settings(url="s3://new", trusted_urls=("s3://old/a",), moved_urls=("s3://old/b", "file:///c"))
    located = [settings.locate(f"{base}/{name}")[0] for base in settings.bases]
    assert located == ["s3://new", "s3://old/a", "s3://new", "s3://new"]
    for ref in f"s3://elsewhere/{name}", f"s3://old/b/{name}/more", f"s3://old/{name}":
        with pytest.raises(UntrustedRefError):
            settings.locate(ref)


def test_a_url_of_azure_needs_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"\[async_state\] azure_account: .*AZURE_STORAGE_ACCOUNT"):
        Settings(url="az://state/prefix")
    with pytest.raises(ConfigurationError, match="azure_account"):
        # This endpoint is that of another store.
        Settings(url="s3://state/new", moved_urls=("az://state/old",), endpoint_url="https://minio.example.com")
    Settings(url="az://state/prefix", azure_account="account")
    Settings(url="az://state/prefix", wasb_conn_id="wasb_default")
    Settings(url="az://state/prefix", endpoint_url="https://account.blob.core.windows.net")
    for name in "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING":
        with monkeypatch.context() as patched:
            patched.setenv(name, "AccountName=account")
            Settings(url="az://state/prefix")


@pytest.mark.parametrize("missing", ["google.auth", "google"])
def test_a_url_of_google_needs_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    Settings(url="gs://state/prefix")
    # As where google-auth is missing, which is installed here, and where no other package of Google's is there.
    monkeypatch.delitem(sys.modules, "google.auth", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigurationError) as caught:
        Settings(url="gs://state/prefix")
    assert str(caught.value) == "[async_state] url: gs:// needs the extra: pip install 'airflow-async-state[gcs]'"
    with pytest.raises(ConfigurationError, match=r"\[async_state\] trusted_urls: "):
        Settings(url="memory://new", trusted_urls=("gs://state/old",))
    Settings(url="gs://state/prefix", endpoint_url="http://localhost:4443")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:4443")
    Settings(url="gs://state/prefix")
