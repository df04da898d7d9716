"""The request that goes directly is the one that botocore's client would send, but for date and signature.

Both are composed and taken before they are sent: the client's in botocore's event ``before-send``, ours in place of
aiohttp's session, for which a double stands that sends nothing, as no network here reaches AWS. test_direct.py shows
that real servers accept ours.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from async_state.connections.aws import AwsConnection
from async_state.stores.s3.client import Client, open_client
from async_state.stores.s3.direct import Direct
from async_state.stores.s3.endpoint import resolve
from async_state.stores.s3.operations import Operations
from async_state.stores.s3.options import S3Options
from async_state.stores.s3.session import new_session

pytestmark = pytest.mark.anyio

KEYS = [
    "v1/task/dag/run/task/-1/worker/key",
    "a+b",
    "a b",
    "100%",
    "%2F",
    "a~b",
    "a:b",
    "a=b",
    "a&b",
    "a@b",
    "a?b#c",
    "a//b",
    "a/./b",
    "a/../b",
    ".",
    "!$'()*,;",
    '<>"`{}|\\^[]',
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{CJK UNIFIED IDEOGRAPH-72B6}",
    "\N{GRINNING FACE}",
    "line\nfeed",
    "carriage\rreturn",
    "x" * 1024,
    "\N{GRINNING FACE}" * 256,
]

#: Where requests go: options of the store, variables, and the S3 section of an AWS config file.
PLACES: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "AWS": ({}, {}, ""),
    "another region": ({"region_name": "eu-central-1"}, {}, ""),
    "China": ({"region_name": "cn-north-1"}, {}, ""),
    "GovCloud": ({"region_name": "us-gov-west-1"}, {}, ""),
    "path style": ({}, {}, "addressing_style = path"),
    "virtual style": ({}, {}, "addressing_style = virtual"),
    "dualstack": ({}, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, ""),
    "FIPS": ({}, {"AWS_USE_FIPS_ENDPOINT": "true"}, ""),
    "dualstack and FIPS": ({}, {"AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_USE_FIPS_ENDPOINT": "true"}, ""),
    "transfer acceleration": ({}, {}, "use_accelerate_endpoint = true"),
    "unsigned payload": ({}, {}, "payload_signing_enabled = false"),
    "port": ({"endpoint_url": "http://127.0.0.1:9000"}, {}, ""),
    "name and path": ({"endpoint_url": "https://minio.example.com/a/path"}, {}, ""),
    "path with a slash": ({"endpoint_url": "https://minio.example.com:9443/a/path/"}, {}, ""),
    "virtual style elsewhere": ({"endpoint_url": "https://minio.example.com"}, {}, "addressing_style = virtual"),
    "default port": ({"endpoint_url": "https://minio.example.com:443"}, {}, ""),
    "IPv6": ({"endpoint_url": "http://[::1]:9000"}, {}, ""),
    "endpoint of the environment": ({}, {"AWS_ENDPOINT_URL_S3": "http://ceph.example.com:8080"}, ""),
}
BUCKETS = [
    "bucket",
    "a.dotted.bucket",
    "UpperCase",
    "under_score",
    "arn:aws:s3:us-east-1:123456789012:accesspoint:point",
]
PUTS: list[dict[str, Any]] = [
    {"connection": AwsConnection("c", "AKIA1", "secret")},
    {
        "connection": AwsConnection("c", "AKIA2", "secret", "a/session+token=="),
        "put_arguments": (("ServerSideEncryption", "aws:kms"), ("SSEKMSKeyId", "alias/state")),
    },
]


class _NotSentError(Exception):
    """In place of an answer."""


class NoNetwork:
    """Takes what would be sent."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str, dict[str, str], bytes]] = []

    def request(self, method: str, url: Any, *, headers: dict[str, str], data: Any, **_: Any) -> Any:
        body = data.read() if isinstance(data, io.BytesIO) else data
        self.taken.append((method, str(url), headers, body or b""))
        raise _NotSentError

    def take(self, request: Any, **_: Any) -> None:
        """As a handler of botocore's event."""
        body = request.body
        body = body.read() if hasattr(body, "read") else body
        headers = {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in request.headers.items()}
        url = str(URL(request.url, encoded=True))
        self.taken.append((request.method, url, headers, body or b""))
        raise _NotSentError


def comparable(taken: tuple[str, str, dict[str, str], bytes]) -> tuple[str, str, dict[str, str], bytes]:
    method, url, headers, body = taken
    named = {name.lower(): value for name, value in headers.items()}
    # Of the client's own bookkeeping; of the HTTP library; and the second in which it was composed.
    for name in "amz-sdk-invocation-id", "amz-sdk-request", "host", "accept-encoding", "content-length", "x-amz-date":
        named.pop(name, None)
    # A deletion of many keys is sent with the checksum that all stores know, and not with the newest one.
    for name in "x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm":
        named.pop(name, None)
    signed = named["authorization"]
    signed = re.sub("/[0-9]{8}/", "/DATE/", signed).partition(" Signature=")[0]
    named["authorization"] = re.sub(";x-amz-(checksum-crc32|sdk-checksum-algorithm)(?=[;,])", "", signed)
    return method, url, named, body


async def composed(operations: Operations, network: NoNetwork, key: str, options: S3Options) -> list[Any]:
    network.taken.clear()
    arguments = {"ContentType": "application/json", "ContentEncoding": "gzip", **dict(options.put_arguments)}
    for call in (
        operations.get(key),
        operations.put(key, b"body", arguments, {"crc32": "01234567"}),
        operations.delete(key),
        operations.list(key, None),
        operations.list("p/", key),
        operations.delete_many([key, "another"]),
    ):
        with pytest.raises(_NotSentError):
            await call
    return [comparable(taken) for taken in network.taken]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str], str], None]:
    def set_(variables: dict[str, str], s3: str) -> None:
        file = tmp_path / "config"
        file.write_text(f"[default]\n{'s3 =' if s3 else ''}\n  {s3}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


@asynccontextmanager
async def both(options: S3Options) -> AsyncIterator[Any]:
    """Yield the client and the direct way of a bucket; ``None`` for the latter where there is none."""
    session = new_session(options)
    credentials = await session.get_credentials()
    async with open_client(options, session) as client:
        endpoint = await resolve(client, options.bucket, await credentials.get_frozen_credentials())
        theirs, ours = NoNetwork(), NoNetwork()
        client.meta.events.register_last("before-send.s3", theirs.take)
        http: Any = ours
        direct = None if endpoint is None else (Direct(endpoint, credentials, http), ours)
        yield (Client(client, options.bucket), theirs), direct


@pytest.mark.parametrize("place", PLACES)
async def test_both_ways_compose_the_same_requests(
    place: str, environment: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given, variables, section = PLACES[place]
    environment(variables, section)
    compared = 0
    for bucket, put in itertools.product(BUCKETS, PUTS):
        async with both(S3Options(bucket=bucket, **given, **put)) as ((client, theirs), direct):
            if direct is None:
                # The client can't compose it either, such as an access point behind an endpoint of one's own.
                with pytest.raises(
                    Exception, match=r"(?i)invalid|not supported|access ?point|accelerate|dualstack|fips"
                ):
                    await client.get("key")
                continue
            # Each place with some keys, and each key in many places.
            for key in KEYS[len(bucket) % 3 :: 3] if compared else KEYS:
                expected = await composed(client, theirs, key, S3Options(bucket=bucket, **put))
                assert await composed(direct[0], direct[1], key, S3Options(bucket=bucket, **put)) == expected
                compared += len(expected)
    assert compared >= 200
    assert not [record for record in caplog.records if record.name.startswith("async_state")]
