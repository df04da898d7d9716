"""AWS's signature version 4 of a request, in its headers.

botocore's signer makes the same one, but of any request to any service, and takes an eighth of a small put's CPU time.
Whether the two are the same is compared for each bucket (`endpoint.py`).

The rules are those of "Authenticating Requests: Using the Authorization Header" in Amazon S3's API reference.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

ALGORITHM: Final = "AWS4-HMAC-SHA256"
#: In place of a body's hash, where the body is not signed.
UNSIGNED_BODY: Final = "UNSIGNED-PAYLOAD"


def current_date() -> str:
    """Return the present second as the header ``X-Amz-Date`` has it."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def signed(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    credentials: ReadOnlyCredentials,
    scope: str,
    date: str,
) -> dict[str, str]:
    """Return ``headers``, all of which are signed, with those of the signature.

    Args:
        method: of HTTP.
        url: of the request, its path and query encoded.
        headers: those to sign, ``Host`` among them.
        body: what is sent; ``None`` for a body that is not signed.
        credentials: the key to sign with.
        scope: the signature's, but for the day: ``us-east-1/s3/aws4_request``.
        date: as `current_date` gives it.
    """
    body_hash = UNSIGNED_BODY if body is None else sha256(body).hexdigest()
    headers = {**headers, "X-Amz-Date": date, "X-Amz-Content-SHA256": body_hash}
    if credentials.token:
        headers["X-Amz-Security-Token"] = credentials.token
    lines = sorted([(name.lower(), " ".join(value.split())) for name, value in headers.items()])
    names = ";".join([name for name, _ in lines])
    address, _, query = url.partition("?")
    path = "/" + address.partition("://")[2].partition("/")[2]
    arguments = sorted([argument.partition("=")[::2] for argument in query.split("&")]) if query else ()
    query = "&".join([f"{name}={value}" for name, value in arguments])
    request = "\n".join([method, path, query, *[f"{name}:{value}" for name, value in lines], "", names, body_hash])
    scope = f"{date[:8]}/{scope}"
    text = f"{ALGORITHM}\n{date}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    signature = hmac.digest(_key(credentials.secret_key, scope), text.encode(), "sha256").hex()
    headers["Authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers


# A few are in use at a time: a day's of each region, or two where credentials are replaced.
@lru_cache(maxsize=8)
def _key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
