"""Whether others on the network can read values, and how long the store's certificate lasts."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Final
from urllib.parse import urlsplit

from async_state.cli.checks import Finding, ok, warn
from async_state.stores.tls import Tls

#: A certificate that ends sooner is worth a word.
_SOON: Final = timedelta(days=14)
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


def finding(url: str, tls: Tls | None) -> Finding:
    """Return the finding for the encryption of connections to an endpoint.

    Args:
        url: The endpoint's.
        tls: The encryption, or ``None`` where there is none.
    """
    if tls is None:
        if urlsplit(url).hostname in _LOCAL:
            return ok("tls", "none, on this machine")
        return warn(
            "tls", "none: others on the network can read values", "Use an https:// endpoint outside a trusted network"
        )
    if tls.ends is None:
        return ok("tls", tls.version)
    left = tls.ends - datetime.now(timezone.utc)
    detail = f"{tls.version}, the certificate ends on {tls.ends:%Y-%m-%d}"
    return ok("tls", detail) if left > _SOON else warn("tls", detail, "Renew the store's certificate")
