"""aiohttp's sessions as stores use them, and the one internal of aiohttp that they rely on."""

from __future__ import annotations

import ssl
from typing import Any, Final

import aiohttp

#: As botocore's client keeps connections; S3 closes idle ones after some 20 s, other clouds later.
_KEEPALIVE_SECONDS: Final = 12.0


def session(
    context: ssl.SSLContext | None, *, limit: int, connect_timeout: float, read_timeout: float
) -> aiohttp.ClientSession:
    """Return a session that sends what it is given and no more, and answers with what came.

    Args:
        context: what verifies certificates; ``None`` for an endpoint without TLS.
        limit: the most connections.
        connect_timeout: seconds that making a connection may take.
        read_timeout: seconds that one request waits for anything to be sent.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limit, keepalive_timeout=_KEEPALIVE_SECONDS, ssl=context or True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=read_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers={"Content-Type"},
        auto_decompress=False,
    )


def send_once(session: Any) -> bool:
    """Keep aiohttp from sending a request again by itself, after a connection that the server had closed meanwhile.

    What it sends again, it does not count, and there is no public option; without it, a request may be sent twice.
    Before aiohttp 3.10 it did not.

    Args:
        session: a `ClientSession`.

    Returns:
        Whether that was possible.
    """
    known = hasattr(session, "_retry_connection")
    if known:
        session._retry_connection = False
    return known
