"""Signatures: those that S3's documentation has for examples, and those that botocore's signer makes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials

from async_state.stores.s3 import signature

EXAMPLE_KEY = ReadOnlyCredentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None)
EXAMPLE_HOST = "examplebucket.s3.amazonaws.com"


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "expected"),
    [
        (
            "GET",
            "/test.txt",
            {"Range": "bytes=0-9"},
            b"",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test%24file.text",
            {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            b"Welcome to Amazon S3.",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        ("GET", "/?lifecycle", {}, b"", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (
            "GET",
            "/?prefix=J&max-keys=2",
            {},
            b"",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
    ids=["get", "put", "an argument without a value", "arguments to be sorted"],
)
def test_examples_of_the_documentation(
    method: str, target: str, headers: dict[str, str], body: bytes, expected: str
) -> None:
    signed = signature.signed(
        method,
        f"https://{EXAMPLE_HOST}{target}",
        {"Host": EXAMPLE_HOST, **headers},
        body,
        credentials=EXAMPLE_KEY,
        scope="us-east-1/s3/aws4_request",
        date="20130524T000000Z",
    )
    assert signed["Authorization"].endswith(f"Signature={expected}")
    assert {name: signed[name] for name in headers} == headers


METHODS = ["GET", "PUT", "POST", "DELETE"]
TARGETS = [
    "/",
    "/key",
    "/a//b/./../c",
    "/a://b",
    "/a%20b%2B%25~%3A%3D%26%40/%C3%A9",
    "/?delete",
    "/?a=2&a=1&a",
    "/?a-b=1&a=2&a%3D=3",
    "/?list-type=2&prefix=p%2F&continuation-token=t%3D%3D&encoding-type=url",
]
HEADERS: list[dict[str, str]] = [
    {},
    {"Content-Type": "application/json", "x-amz-meta-crc32": "01234567", "if-none-match": "*"},
    {"x-amz-meta-spaces": "  a  b\tc ", "X-Amz-Meta-Upper": "U", "x-amz-meta-unicode": "\N{LATIN SMALL LETTER E}"},
]
KEYS = [
    ReadOnlyCredentials("AKIA1", "secret", None),
    ReadOnlyCredentials("AKIA2", "another/secret+=", "a/session+token=="),
]
SCOPES = [("us-east-1", "s3"), ("eu-central-1", "s3-object-lambda")]
BODIES: list[bytes | None] = [b"", b'"body"', None]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_botocore_makes_the_same(method: str, target: str) -> None:
    for headers, key, (region, service), body in itertools.product(HEADERS, KEYS, SCOPES, BODIES):
        url = f"https://bucket.example.com:9000{target}"
        given = {"Host": "bucket.example.com:9000", **headers}
        theirs = AWSRequest(method, url, dict(given), body)
        if body is None:
            theirs.context["client_config"] = Config(s3={"payload_signing_enabled": False})
        signer: Any = S3SigV4Auth(key, service, region)
        signer.add_auth(theirs)
        date = theirs.headers["X-Amz-Date"]
        ours = signature.signed(
            method, url, given, body, credentials=key, scope=f"{region}/{service}/aws4_request", date=date
        )
        assert ours == dict(theirs.headers.items())


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A machine whose clock shows another time than UTC."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("elsewhere")
def test_the_date_is_that_of_now_in_utc() -> None:
    signer: Any = S3SigV4Auth(KEYS[0], "s3", "us-east-1")
    before = signature.current_date()
    request = AWSRequest("GET", "https://example.com/", {}, b"")
    signer.add_auth(request)
    assert before <= request.headers["X-Amz-Date"] <= signature.current_date()


def test_a_key_that_was_replaced_is_not_used() -> None:
    def signed(credentials: ReadOnlyCredentials, date: str, *, anew: bool = False) -> str:
        if anew:
            signature._key.cache_clear()
        arguments: Any = {"credentials": credentials, "scope": "us-east-1/s3/aws4_request", "date": date}
        return signature.signed("GET", "https://example.com/", {}, b"", **arguments)["Authorization"]

    first, second = ReadOnlyCredentials("AKIA", "first", None), ReadOnlyCredentials("AKIA", "second", None)
    dates = "20261127T000000Z", "20261128T000000Z"
    cases = list(itertools.product((first, second), dates))
    expected = [signed(*case, anew=True) for case in cases]
    assert len(set(expected)) == 4
    assert [signed(*case) for case in [*cases, *cases]] == [*expected, *expected]
