"""URLs of options and connections: which are taken, and how they are shown."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from aiohttp import ClientHttpProxyError, RequestInfo
from botocore.exceptions import EndpointConnectionError, ProxyConnectionError
from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url, validate_region_name
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from async_state import urls
from tests import fuzzing as fuzzing


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket/aX/", "s3://bucket/aX"),
        ("S3://bucket/a@b:c", "s3://bucket/a@b:c"),
        ("gs://my_bucket.example.com/a/b/", "gs://my_bucket.example.com/a/b"),
        ("AZ://my-container-1/a@b:c/", "az://my-container-1/a@b:c"),
        ("file:///a%20b/", "file:///a%20b"),
        ("file:///X", "file:///X"),
        ("memory://", "memory://"),
        ("memory://name/", "memory://name"),
    ],
)
def test_a_base_has_no_slash_at_its_end(url: str, base: str) -> None:
    assert urls.check_base(url) == base
    assert urls.check_base(base) == base


@pytest.mark.parametrize(
    ("check", "url", "said"),
    [
        (urls.check_base, "s3://[", "is no URL: 's3://['"),
        (urls.check_base, "ftp://b", "must start with s3://, gs://, az://, file://, memory://; 'ftp://b' does not"),
        (urls.check_base, "gs://c@b", "must not hold credentials or a connection id; see [async_state] gcp_conn_id"),
        (urls.check_base, "az://c@b", "must not hold credentials or a connection id; see [async_state] wasb_conn_id"),
        (urls.check_base, "file://c@b", "must not hold credentials or a connection id"),
        (urls.check_base, "gs://bu", "must name a bucket, gs://bucket/prefix, not 'gs://bu'"),
        (urls.check_base, "gs://Bucket", "must name a bucket, gs://bucket/prefix, not 'gs://Bucket'"),
        (urls.check_base, "gs://bucket-", "must name a bucket, gs://bucket/prefix, not 'gs://bucket-'"),
        (urls.check_base, "gs://" + "b" * 223, f"must name a bucket, gs://bucket/prefix, not 'gs://{'b' * 223}'"),
        (urls.check_base, "gs://bucket/a//b", "must not have two slashes in a row in the prefix: 'gs://bucket/a//b'"),
        *[
            (
                urls.check_base,
                f"az://{name}/p",
                "must name a container of 3 to 63 lower-case letters, digits and single dashes, az://container/prefix, "
                f"not 'az://{name}/p'",
            )
            for name in ("co", "c" * 64, "-container", "container-", "con--tainer", "Container", "con_tainer", "$root")
        ],
        (urls.check_base, "az://con/..", "the prefix may hold letters, digits and !_.*'()=:@- only, not '..'"),
        (urls.check_base, "az://con/a//b", "must not have two slashes in a row in the prefix: 'az://con/a//b'"),
        (urls.check_account, "a2", "must be the name of a storage account, 3 to 24 lower-case letters and digits"),
        (urls.check_account, "a" * 25, "must be the name of a storage account, 3 to 24 lower-case letters and digits"),
        (urls.check_base, "s3://c@b", "must not hold credentials or a connection id; see [async_state] aws_conn_id"),
        (urls.check_base, "s3://K:/@b", "must not hold credentials or a connection id; see [async_state] aws_conn_id"),
        (urls.check_base, "s3://b?a", "must not have a query or a fragment: 's3://b'"),
        (urls.check_base, "s3://b#a", "must not have a query or a fragment: 's3://b'"),
        (urls.check_base, "s3:///p", "must name a bucket, s3://bucket/prefix, not 's3:///p'"),
        (urls.check_base, "s3://" + "b" * 256, f"must name a bucket, s3://bucket/prefix, not 's3://{'b' * 256}'"),
        (urls.check_base, "s3://b/a//b", "must not have two slashes in a row in the prefix: 's3://b/a//b'"),
        (urls.check_base, "s3://b/a//X", "must not have two slashes in a row in the prefix: 's3://b/a//X'"),
        (urls.check_base, "s3://b/a/%/b", "the prefix may hold letters, digits and !_.*'()=:@- only, not '%'"),
        (urls.check_base, "s3://b/.", "the prefix may hold letters, digits and !_.*'()=:@- only, not '.'"),
        (urls.check_base, "s3://b/..", "the prefix may hold letters, digits and !_.*'()=:@- only, not '..'"),
        (
            urls.check_base,
            "s3://b/" + "x" * (urls.MAX_PREFIX_BYTES + 1),
            f"the prefix may have {urls.MAX_PREFIX_BYTES} characters, so that no object key exceeds 1,024 bytes",
        ),
        (urls.check_base, "file://h/p", "must be an absolute path, file:///path, not 'file://h/p'"),
        (urls.check_base, "file:///", "must be an absolute path, file:///path, not 'file:///'"),
        (urls.check_base, "file:///%00", "can't be a path of this machine: 'file:///%00'"),
        (urls.check_base, "file:///\ud800", "can't be a path of this machine: 'file:///\\ud800'"),
        (
            urls.check_endpoint,
            "http://u@h",
            "must not hold credentials; see [async_state] aws_conn_id, gcp_conn_id, wasb_conn_id",
        ),
        (urls.check_endpoint, "ftp://h", "must be an http:// or https:// URL of a host, not 'ftp://h'"),
        (urls.check_endpoint, "http://h:0", "must be an http:// or https:// URL of a host, not 'http://h:0'"),
        (urls.check_endpoint, "http://h?a", "must be an http:// or https:// URL of a host, not 'http://h'"),
        (urls.check_region, "a b", "must be a region such as eu-central-1, not 'a b'"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(check: Callable[[str], str], url: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z]") as caught:
        check(url)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "url",
    [
        "s3://" + "b" * 255,
        "s3://b/" + "x" * urls.MAX_PREFIX_BYTES,
        "s3://b/" + "a/b" * 9,
        "gs://b_1",
        "gs://" + "b" * 222,
        "gs://bucket/" + "x" * urls.MAX_PREFIX_BYTES,
        "az://c-1",
        "az://" + "c" * 63,
        "az://container/" + "x" * urls.MAX_PREFIX_BYTES,
    ],
)
def test_bases_up_to_the_limits_are_taken(url: str) -> None:
    assert urls.check_base(url) == url


def test_which_option_names_the_connection_of_a_store() -> None:
    options = {
        base: urls.connection_option(base) for base in ("s3://b/p", "gs://b", "az://c", "file:///p", "memory://")
    }
    assert list(options.values()) == ["aws_conn_id", "gcp_conn_id", "wasb_conn_id", "", ""]


def test_no_secret_of_a_list_of_bases_is_said() -> None:
    assert urls.check_bases(iter(["s3://a/", "s3://b"])) == ("s3://a", "s3://b")
    with pytest.raises(ValueError, match="must start with") as caught:
        urls.check_bases(["s3://a", "nonsense"])
    assert "'nonsense'" in str(caught.value)
    with pytest.raises(ValueError, match="without") as caught:
        urls.check_bases(["s3://KEY:SEC", "RET@bucket"])
    assert str(caught.value) == "must be base URLs as [async_state] url is one, without credentials"


@pytest.mark.parametrize(
    ("variables", "home"),
    [
        ({}, "/home/me/airflow"),
        ({"AIRFLOW_HOME": "/srv/a b"}, "/srv/a%20b"),
        ({"AIRFLOW_HOME": "$OUTER/x", "OUTER": "~/$INNER", "INNER": "y"}, "/home/me/y/x"),
    ],
)
def test_the_default_is_below_airflows_home(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], home: str
) -> None:
    monkeypatch.delenv("AIRFLOW_HOME")
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert urls.default_url() == f"file://{home}/async_state"


ENDPOINTS = [
    "https://s3.example.com",
    "https://s3.example.com.",
    "http://localhost:9000",
    "http://minio",
    "http://10.0.0.1:9000/path/",
    "http://[::1]:9000",
    "http://[fe80::1%25eth0]:9000",
    "http://my_minio:9000",
    "http://-minio",
    "http://minio-",
    "http://a..b",
    "http://.",
    "http://",
    "http://[::1",
    "http://[::x]",
    "http://" + "a" * 64,
    "http://" + "a." * 127 + "a",
    "http://" + "a." * 127 + "aa",
    "http://" + "a." * 128 + "a",
    "http://min\u0131o",
    "http://mini\u212a",
    "http://host\t",
    "http://ho\nst",
]


@pytest.mark.parametrize("url", ENDPOINTS)
def test_an_endpoint_is_taken_if_botocore_takes_it(url: str) -> None:
    try:
        # botocore's expression takes a few letters beyond ASCII for their look-alikes, which no host has.
        taken = url.isascii() and bool(is_valid_endpoint_url(url) or is_valid_ipv6_endpoint_url(url))
    except ValueError:
        taken = False
    if taken:
        assert urls.check_endpoint(url) == url
    else:
        with pytest.raises(ValueError, match="must be an http:// or https:// URL"):
            urls.check_endpoint(url)


@given(st.text(alphabet="aZ09-._ \n", min_size=1, max_size=66))
def test_a_region_is_taken_if_botocore_takes_it(name: str) -> None:
    try:
        validate_region_name(name)
        # botocore's expression allows a line break at the end.
        taken = not name.endswith("\n")
    except Exception:
        taken = False
    if taken:
        assert urls.check_region(name) == name
    else:
        with pytest.raises(ValueError, match="must be a region"):
            urls.check_region(name)


def proxy_error() -> str:
    url = URL("http://admin:hunter2@proxy:3128")
    headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
    return repr(ClientHttpProxyError(RequestInfo(url, "CONNECT", headers, url), (), status=407, message="no"))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("", ""),
        ("no URL, but a mail to someone@example.com", "no URL, but a mail to someone@example.com"),
        ("at https://host:9000/bucket/key?list-type=2", "at https://host:9000/bucket/key?list-type=2"),
        ("Invalid endpoint: https://admin:hunter2@host", "Invalid endpoint: https://***@host"),
        ("Invalid endpoint: https://admin:hunter2/ss@host/x", "Invalid endpoint: https://***@host/x"),
        ("Invalid endpoint: https://admin:a@hunter2@host", "Invalid endpoint: https://***@host"),
        ("Invalid endpoint: https://admin:a?hunter2#b@host", "Invalid endpoint: https://***@host"),
        ("Invalid endpoint: https://admin:://hunter2@host", "Invalid endpoint: https://***@host"),
        ("Invalid endpoint: https://hunter2@host", "Invalid endpoint: https://***@host"),
        ("'https://admin:hunter2@host', 'http://b'", "'https://***@host', 'http://b'"),
        ("https://a,https://admin:hunter2@host", "https://***@host"),
        ("s3://KEY:hunter2/WITH/SLASH@bucket", "s3://***@bucket"),
        ("proxy admin:hunter2@proxy:3128", "proxy ***@proxy:3128"),
        (
            "https://host/k?X-Amz-Credential=hunter2&X-Amz-Date=1&X-Amz-Signature=hunter2",
            "https://host/k?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***",
        ),
        ("http://host/?authToken=hunter2'", "http://host/?authToken=***'"),
    ],
)
def test_credentials_of_urls_are_masked(text: str, masked: str) -> None:
    assert urls.mask(text) == masked
    assert urls.mask(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        proxy_error(),
        str(EndpointConnectionError(endpoint_url="https://admin:hunter2/x@host/bucket/key", error="no")),
        str(ProxyConnectionError(proxy_url="http://admin:hunter2@proxy:3128", error="no")),
    ],
)
def test_what_clients_say_of_endpoints_and_proxies_is_masked(text: str) -> None:
    assert "hunter2" in text
    assert "hunter2" not in urls.mask(text)
    assert "proxy:3128" in urls.mask(text) or "host/bucket/key" in urls.mask(text)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "HTTPS_PROXY"])
def test_a_password_of_several_words_is_masked_where_a_variable_holds_it(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "https://admin:pass hunter2 word@host")
    assert urls.mask("Invalid: https://admin:pass hunter2 word@host!") == "Invalid: https://***@host!"


def test_a_variable_without_credentials_masks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "mails go to someone@example.com; at https://host/bucket?versions. Is it there? Yes."
    for name, value in (
        ("MAIL", "someone@example.com"),
        ("PLACE", "https://host/bucket?versions"),
        ("WORDS", "there? Y"),
    ):
        monkeypatch.setenv(name, value)
    assert urls.mask(text) == text


secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)


@given(secrets, secrets, st.sampled_from(["s3", "http", "https", "socks5"]), st.text(max_size=20))
def test_no_part_of_a_password_is_left(user: str, password: str, scheme: str, words: str) -> None:
    masked = urls.mask(f"{words} ({scheme}://{user}~{password}:SECRET{password}@host:1/path) {words}")
    assert "SECRET" not in masked


@pytest.mark.parametrize("word", ["://", "a", "?token", "?a", ":", "@", "http://", "a:"])
def test_masking_takes_time_in_proportion_to_the_text(word: str) -> None:
    """A store answers what it likes; reading each word again from each of its characters would take minutes."""
    before = time.process_time()
    urls.mask(word * 200_000)
    assert time.process_time() - before < 10
