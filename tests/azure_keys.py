"""How Azure's requests are signed with an account's key, which Microsoft documents as Shared Key and as account SAS."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

VERSION: Final = "2023-11-03"

# In the order in which they are signed; Content-Length stands among them.
_SIGNED: Final = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


def signed(
    account: str,
    key: str,
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    length: int = 0,
    *,
    in_batch: bool = False,
) -> dict[str, str]:
    """Return a request's headers with Shared Key's signature, and with the date and version where they lack them.

    Parameters:
        account: the account's name.
        key: its key, in base64.
        method: the request's method.
        target: path and query as they are sent, percent-encoded.
        headers: its other headers.
        length: the length of its body.
        in_batch: whether it is a call in a batch, which has no version of its own.
    """
    given = {"x-ms-date": formatdate(usegmt=True)} | ({} if in_batch else {"x-ms-version": VERSION})
    given |= {name.lower(): value for name, value in (headers or {}).items()}
    given["content-length"] = str(length or "")
    path, _, query = target.partition("?")
    asked: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        asked.setdefault(name.lower(), []).append(value)
    lines = [method, *(given.get(name, "") for name in _SIGNED)]
    lines += [f"{name}:{value.strip()}" for name, value in sorted(given.items()) if name.startswith("x-ms-")]
    lines += [f"/{account}{path}"]
    lines += [f"{name}:{','.join(sorted(values))}" for name, values in sorted(asked.items())]
    del given["content-length"]
    return {**given, "authorization": f"SharedKey {account}:{_mac(key, lines)}"}


def sas_token(account: str, key: str, permissions: str = "rwdlc", lifetime: float = 3600) -> str:
    """Return a shared access signature for all blobs of an account, as a query without its question mark.

    Parameters:
        account: the account's name.
        key: its key, in base64.
        permissions: what it permits, in the order ``rwdlc``: to read, write, delete, list, create.
        lifetime: in how many seconds it expires; a negative one has expired.
    """
    until = datetime.now(timezone.utc) + timedelta(seconds=lifetime)
    fields = {
        "sp": permissions,
        "ss": "b",
        "srt": "sco",
        "st": "",
        "se": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "sip": "",
        "spr": "https,http",
        "sv": VERSION,
        # The scope of the account's encryption.
        "ses": "",
    }
    fields["sig"] = _mac(key, [account, *fields.values(), ""])
    return urlencode({name: value for name, value in fields.items() if value}, quote_via=quote)


def _mac(key: str, lines: list[str]) -> str:
    return base64.b64encode(hmac.digest(base64.b64decode(key), "\n".join(lines).encode(), hashlib.sha256)).decode()
