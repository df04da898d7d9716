"""An S3 server in one process's memory, for clears of up to a million keys: ``python -m bench.server [ms]``.

rclone's server, which the other measures use, keeps a file for each object, takes minutes to make a hundred thousand of
them, and loses objects while many are deleted at once. This one answers what clients send to put, get, list and delete,
in any bucket, and checks no signature. It is told over HTTP what no S3 has: to fill a prefix, to fail for a while, and
how many requests came. With a number, it answers each request so many milliseconds later.

===============================  ==============================================
``POST /_fill?prefix=&count=``   make ``count`` objects below ``prefix``
``GET /_requests``               how many requests came since the last such one
``GET /_count?prefix=``          how many objects are below ``prefix``
``POST /_outage?seconds=``       answer 503 from the next request on, for so long
===============================  ==============================================
"""

from __future__ import annotations

import asyncio
import bisect
import html
import re
import sys
import time
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote

_PAGE = 1000
_DATE = "2026-01-01T00:00:00.000Z"
_HTTP_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_ETAG = '"9a0364b9e99bb480dd25e1f0284c8555"'
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_PLAIN = re.compile(r"[A-Za-z0-9_./~-]*\Z")
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'

#: Status, further headers, body.
Answer = tuple[int, str, bytes]


class Objects:
    """Objects by name (bucket, ``/`` and key), and their names in order."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        # Deleted names stay until the next sorting: taking a thousand out of a million moves all behind each.
        self._order: list[str] = []
        self._new: list[str] = []

    def put(self, name: str, body: bytes) -> None:
        """Write one object."""
        if name not in self.contents:
            self._new.append(name)
        self.contents[name] = body

    def after(self, prefix: str, token: str) -> Iterator[str]:
        """Yield the names below ``prefix`` that follow ``token``, in order."""
        if self._new:
            # An object put again may be in the list already.
            self._order = sorted({name for name in self._order if name in self.contents}.union(self._new))
            self._new = []
        start = bisect.bisect_right(self._order, token) if token else bisect.bisect_left(self._order, prefix)
        for index in range(start, len(self._order)):
            name = self._order[index]
            if not name.startswith(prefix):
                return
            if name in self.contents:
                yield name


class S3:
    """What a request does to the objects."""

    def __init__(self) -> None:
        self.objects = Objects()
        self.requests = 0
        self._outage_seconds = 0.0
        self._outage_until = 0.0

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        """Do what the request asks for."""
        path, _, query = target.partition("?")
        # Given without a value, as in ``?delete``, a parameter counts too.
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        if path.startswith("/_"):
            return 200, "", str(self._told(path, parameters)).encode()
        self.requests += 1
        if self._outage_seconds:
            self._outage_until, self._outage_seconds = time.monotonic() + self._outage_seconds, 0.0
        if time.monotonic() < self._outage_until:
            error = f"{_XML}<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            return 503, "Content-Type: application/xml\r\n", error.encode()
        bucket, _, key = unquote(path[1:]).partition("/")
        if method == "POST" and "delete" in parameters:
            return self._delete(bucket, body)
        if not key:
            if method == "GET" and bucket:
                return self._list(bucket, parameters)
            return 200, "", b""
        name = f"{bucket}/{key}"
        if method == "PUT":
            self.objects.put(name, body)
            return 200, f"ETag: {_ETAG}\r\n", b""
        if method == "DELETE":
            self.objects.contents.pop(name, None)
            return 204, "", b""
        content = self.objects.contents.get(name)
        if content is None:
            return 404, "", f"{_XML}<Error><Code>NoSuchKey</Code><Message>No such key</Message></Error>".encode()
        return 200, f"ETag: {_ETAG}\r\nLast-Modified: {_HTTP_DATE}\r\nContent-Type: application/json\r\n", content

    def _told(self, path: str, parameters: dict[str, str]) -> int:
        if path == "/_fill":
            for number in range(int(parameters["count"])):
                self.objects.put(f"{parameters['prefix']}{number:07}", b"x" * 64)
            return int(parameters["count"])
        if path == "/_outage":
            self._outage_seconds = float(parameters["seconds"])
            return 0
        if path == "/_count":
            return sum(1 for _ in self.objects.after(parameters["prefix"], ""))
        counted, self.requests = self.requests, 0
        return counted

    def _delete(self, bucket: str, body: bytes) -> Answer:
        keys = _KEY.findall(body)
        for key in keys:
            self.objects.contents.pop(f"{bucket}/{html.unescape(key.decode())}", None)
        # None fails here; what was deleted is listed unless the request says that it need not be.
        listed = b"" if b"<Quiet>true" in body else b"".join(b"<Deleted><Key>%b</Key></Deleted>" % key for key in keys)
        answer = f"{_XML}<DeleteResult {_NAMESPACE}>".encode() + listed + b"</DeleteResult>"
        return 200, "Content-Type: application/xml\r\n", answer

    def _list(self, bucket: str, parameters: dict[str, str]) -> Answer:
        prefix, delimiter = parameters.get("prefix", ""), parameters.get("delimiter", "")
        size = min(int(parameters.get("max-keys", _PAGE)), _PAGE)
        after = parameters.get("continuation-token") or parameters.get("start-after") or ""
        found: list[str] = []
        common: list[str] = []
        last, truncated, skip = "", False, ""
        for name in self.objects.after(f"{bucket}/{prefix}", f"{bucket}/{after}" if after else ""):
            if skip and name.startswith(skip):
                continue
            if len(found) + len(common) == size:
                truncated = True
                break
            key = name[len(bucket) + 1 :]
            last = key
            if delimiter and (end := key.find(delimiter, len(prefix))) >= 0:
                common.append(key[: end + 1])
                skip = f"{bucket}/{key[: end + 1]}"
                # Behind all that this one stands for.
                last = f"{key[: end + 1]}\U0010ffff"
            else:
                found.append(key)
        shown = _shown(found, parameters.get("encoding-type") == "url")
        contents = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{_DATE}</LastModified><ETag>{html.escape(_ETAG)}</ETag>"
            "<Size>64</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in shown
        )
        prefixes = "".join(
            f"<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>"
            for key in _shown(common, parameters.get("encoding-type") == "url")
        )
        more = f"<NextContinuationToken>{html.escape(last)}</NextContinuationToken>" if truncated else ""
        return (
            200,
            "Content-Type: application/xml\r\n",
            (
                f"{_XML}<ListBucketResult {_NAMESPACE}><Name>{bucket}</Name>"
                f"<KeyCount>{len(found) + len(common)}</KeyCount><MaxKeys>{size}</MaxKeys>"
                f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{contents}{prefixes}{more}</ListBucketResult>"
            ).encode(),
        )


def _shown(keys: list[str], encoded: bool) -> list[str]:
    if _PLAIN.match("".join(keys)):
        return keys
    return [quote(key, safe="/") if encoded else html.escape(key) for key in keys]


class _Connection(asyncio.Protocol):
    """One client's connection: requests with a Content-Length, one after the other, kept open."""

    def __init__(self, s3: S3, delay: float) -> None:
        self._s3 = s3
        self._delay = delay
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._continued = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            length = int(headers.get("content-length", 0))
            if len(self._buffer) < end + 4 + length:
                if headers.get("expect", "").lower() == "100-continue" and not self._continued:
                    self._continued = True
                    self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            self._continued = False
            method, target, _ = lines[0].split(" ")
            status, more, content = self._s3.answer(method, target, body)
            head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(content)}\r\nx-amz-request-id: 0\r\n{more}\r\n"
            answer = head.encode() + (b"" if method == "HEAD" else content)
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._write, answer)
            else:
                self._write(answer)

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)


async def serve(delay: float) -> None:
    """Answer ``delay`` seconds after each request on a free port, which is printed, until the process ends."""
    s3 = S3()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(s3, delay), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]) / 1000 if len(sys.argv) > 1 else 0))
