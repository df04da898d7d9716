"""What the command ``check`` tells of a connection's encryption, for every store that is reached over a network."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timezone
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio

from async_state import threads


class Tls(NamedTuple):
    """A connection's encryption: the protocol's version, and when the server's certificate ends."""

    version: str
    ends: datetime | None


async def encryption_of(url: str, context: Callable[[], ssl.SSLContext | None], timeout: float) -> Tls | None:
    """Connect to an endpoint, and return its encryption; ``None`` for one without.

    Args:
        url: The endpoint's.
        context: Returns what verifies certificates, or ``None`` for Python's own, and may block. It is not called
            for an endpoint without TLS.
        timeout: Seconds for the connection.

    Raises:
        OSError: There is no connection, or its certificate is not accepted.
    """
    parts = urlsplit(url)
    has_tls = parts.scheme == "https"
    verified = await threads.call(context) or True if has_tls else None
    port = parts.port or (443 if has_tls else 80)
    with anyio.fail_after(timeout):
        _, writer = await asyncio.open_connection(parts.hostname, port, ssl=verified)
    with closing(writer):
        connection: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        if connection is None:
            return None
        ends = (connection.getpeercert() or {}).get("notAfter")
        return Tls(
            connection.version() or "TLS",
            datetime.fromtimestamp(ssl.cert_time_to_seconds(str(ends)), timezone.utc) if ends else None,
        )
