"""The one internal of aiohttp that stores rely on; without it, a request may be sent twice."""

from __future__ import annotations

from typing import Any


def send_once(session: Any) -> bool:
    """Keep aiohttp from sending a request again by itself, after a connection that the server had closed meanwhile.

    What it sends again, it does not count, and there is no public option. Before aiohttp 3.10 it did not.

    Args:
        session: a `ClientSession`.

    Returns:
        Whether that was possible.
    """
    known = hasattr(session, "_retry_connection")
    if known:
        session._retry_connection = False
    return known
