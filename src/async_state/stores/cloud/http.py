"""One request of a cloud as one HTTP exchange, over aiohttp."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from async_state import threads
from async_state.stores import _aiohttp
from async_state.stores.base import check_size
from async_state.stores.cloud.errors import NotCloudError
from async_state.stores.retry import count_attempt

#: From this size on, a body is hashed on another thread and written in pieces: the loop serves others meanwhile.
_LARGE_BYTES: Final = 256 * 1024

#: Certificates that were read, by the file's name and state. Forked processes inherit them.
_contexts: dict[tuple[object, ...], ssl.SSLContext] = {}


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: CIMultiDictProxy[str]
    content: bytes

    def metadata(self, prefix: str) -> dict[str, str]:
        """Return the values of the headers that begin with ``prefix``, by what follows it, in lower case."""
        named = ((name.lower(), value) for name, value in self.headers.items())
        return {name.removeprefix(prefix): value for name, value in named if name.startswith(prefix)}


@dataclass(frozen=True)
class Http:
    """Sends requests to one endpoint.

    Attributes:
        session: keeps the connections.
        proxy: the URL of the proxy that the environment names for the endpoint, or ``None``.
    """

    session: aiohttp.ClientSession
    proxy: str | None

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Send a request and return the answer, whatever its status. Counts it in `retry.attempts`.

        Args:
            method: as in HTTP.
            url: with everything percent-encoded that has to be.
            headers: all of them, but ``Host`` and ``Content-Length``.
            body: the content.

        Raises:
            CorruptObjectError: the answer is larger than any object of ours.
            aiohttp.ClientError, OSError, TimeoutError: there was no answer.
        """
        count_attempt()
        data = io.BytesIO(body) if len(body) >= _LARGE_BYTES else body
        async with self.session.request(
            method,
            URL(url, encoded=True),
            headers={"Accept-Encoding": "identity", **headers},
            data=data,
            allow_redirects=False,
            proxy=self.proxy,
        ) as response:
            check_size(response.content_length)
            return Answer(response.status, response.headers, await response.read())


@asynccontextmanager
async def connections(endpoint: str, *, limit: int, connect_timeout: float, read_timeout: float) -> AsyncIterator[Http]:
    """Open a connection pool for an endpoint, and close it in the end.

    Args:
        endpoint: the URL.
        limit: the most connections.
        connect_timeout: seconds that making a connection may take.
        read_timeout: seconds that one request waits for anything to be sent.

    Raises:
        OSError: the certificates of authorities can't be read.
    """
    parts = urlsplit(endpoint)
    context = await threads.call(tls_context) if parts.scheme == "https" else None
    proxies = getproxies()
    opened = _aiohttp.session(context, limit=limit, connect_timeout=connect_timeout, read_timeout=read_timeout)
    async with opened as session:
        _aiohttp.send_once(session)
        yield Http(session, None if proxy_bypass(parts.netloc) else proxies.get(parts.scheme))


async def md5(body: bytes) -> str:
    """Return the MD5 hash of a body in base64, by which both clouds verify what arrives."""
    return await threads.call(_md5, body) if len(body) >= _LARGE_BYTES else _md5(body)


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def not_expected(answer: Answer) -> NotCloudError:
    """Return the error that tells of a success which is none of the cloud: the page of a login, or a redirect to it."""
    kind = answer.headers.get("Content-Type", "no content type")
    return NotCloudError(f"HTTP {answer.status} with {kind} is not the answer of the service")


def tls_context() -> ssl.SSLContext:
    """Return what verifies certificates: by the file in ``REQUESTS_CA_BUNDLE``, or by the system's authorities.

    A file that was replaced is read anew. Reading blocks, so it is not for an event loop.

    Raises:
        OSError: the file can't be read; `ssl.SSLError` is one, too.
    """
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or None
    file = bundle or ssl.get_default_verify_paths().cafile
    key: tuple[object, ...] = (bundle, file)
    if file is not None:
        status = Path(file).stat()
        key = (*key, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _contexts:
        is_directory = bundle is not None and Path(bundle).is_dir()
        _contexts[key] = ssl.create_default_context(
            cafile=None if is_directory else bundle, capath=bundle if is_directory else None
        )
    return _contexts[key]
