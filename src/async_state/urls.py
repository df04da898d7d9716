"""The URLs of options and connections: which of them can work, and how to show one without its credentials.

Each check raises a `ValueError` that says what is wrong; the caller adds the name of the option or connection.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from async_state.keys import MAX_NAME_BYTES, MAX_OBJECT_KEY_BYTES

#: The longest prefix with which no object key exceeds S3's limit; one byte is the slash between prefix and name.
MAX_PREFIX_BYTES: Final = MAX_OBJECT_KEY_BYTES - MAX_NAME_BYTES - 1

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PREFIX_SEGMENT: Final = re.compile(r"[A-Za-z0-9!_.*'()=:@-]+")
#: What botocore accepts as a region and as the host of an endpoint.
_REGION: Final = re.compile(r"(?![0-9]+\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_HOST_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: A parameter of a URL's query whose name says that its value is secret, as in a presigned URL.
_SECRET_PARAMETER: Final = re.compile(
    r"([?&;][\w.-]{0,40}(?:signature|credential|token|secret|password|passwd|key)[\w.-]{0,40}=)[^\s&;'\"]+",
    re.IGNORECASE,
)


def default_url() -> str:
    """Return the base URL of the directory ``async_state`` in ``AIRFLOW_HOME``, which is found as Airflow finds it."""
    home, expanded = "", os.environ.get("AIRFLOW_HOME", "~/airflow")
    while home != expanded:
        home, expanded = expanded, os.path.expanduser(os.path.expandvars(expanded))  # noqa: PTH111 - needs no home
    return (Path(home).absolute() / "async_state").as_uri()


def check_base(url: str) -> str:
    """Return ``url`` without its trailing slash, if a store can keep objects below it.

    Raises:
        ValueError: no store can.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket, or a character that stands for another
        raise ValueError(f"is no URL: {shown(url)!r}") from None
    if parts.scheme not in _CHECKS:
        schemes = ", ".join(f"{scheme}://" for scheme in _CHECKS)
        raise ValueError(f"must start with {schemes}; {shown(url)!r} does not")
    # A secret that holds a slash ends what is parsed as the host.
    if "@" in parts.netloc or (":" in parts.netloc and "@" in url):
        raise ValueError("must not hold credentials or a connection id; see [async_state] aws_conn_id")
    if "?" in url or "#" in url:
        raise ValueError(f"must not have a query or a fragment: {shown(url)!r}")
    _CHECKS[parts.scheme](parts, url)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def check_bases(urls: Iterable[str]) -> tuple[str, ...]:
    """Return each URL as `check_base` does.

    Raises:
        ValueError: no store can keep objects below one of them.
    """
    urls = tuple(urls)
    try:
        return tuple(check_base(url) for url in urls)
    except ValueError as e:
        # A secret that holds a comma was taken for the end of a URL, so no part of the list is safe to show.
        if any("@" in url for url in urls):
            raise ValueError("must be base URLs as [async_state] url is one, without credentials") from None
        raise e


def check_endpoint(url: str) -> str:
    """Return ``url`` if botocore can take it as an endpoint.

    Raises:
        ValueError: it is no HTTP URL, or holds credentials, a query or a fragment.
    """
    if "@" in url:
        raise ValueError("must not hold credentials; see [async_state] aws_conn_id")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.port != 0 and _is_host(parts.hostname or "")
    except ValueError:  # no port, or no IPv6 address
        usable = False
    if not usable or not url.isascii() or re.search(r"[\s\0-\x1f?#]", url):
        raise ValueError(f"must be an http:// or https:// URL of a host, not {shown(url)!r}")
    return url


def check_region(name: str) -> str:
    """Return ``name`` if botocore can take it as a region.

    Raises:
        ValueError: it is no label of a host name.
    """
    if not _REGION.fullmatch(name):
        raise ValueError(f"must be a region such as eu-central-1, not {shown(name)!r}")
    return name


def shown(url: str) -> str:
    """Return one URL, which may be wrong in any way, without credentials, query and fragment."""
    scheme = _SCHEME.match(url)
    start = scheme[0] if scheme else ""
    _, at, rest = url[len(start) :].rpartition("@")
    return start + ("***@" if at else "") + re.split("[?#]", rest)[0]


def mask(text: str) -> str:
    """Return ``text`` without the credentials of any URL in it.

    For words that others wrote: botocore and aiohttp quote endpoints and proxies whole. What stands before the last
    ``@`` of a word is masked, since a password may hold a slash; in text of our own, which names objects, that would
    hide too much.
    """
    # A password with a space is several words, but a variable that holds it tells where it ends.
    for value in os.environ.values():
        if "@" in value and "://" in value and value in text:
            text = text.replace(value, shown(value))
    text = re.sub(r"\S+", lambda word: _masked(word[0]), text)
    return _SECRET_PARAMETER.sub(r"\1***", text)


def _masked(word: str) -> str:
    before, at, after = word.rpartition("@")
    if scheme := _SCHEME.search(before):
        return f"{before[: scheme.end()]}***@{after}"
    return f"***@{after}" if at and ":" in before else word


def _check_s3(parts: SplitResult, url: str) -> None:
    if not _BUCKET.fullmatch(parts.netloc):
        raise ValueError(f"must name a bucket, s3://bucket/prefix, not {shown(url)!r}")
    prefix = parts.path.rstrip("/").removeprefix("/")
    for segment in prefix.split("/") if prefix else ():
        if not segment:
            raise ValueError(f"must not have two slashes in a row in the prefix: {shown(url)!r}")
        if not _PREFIX_SEGMENT.fullmatch(segment) or segment in (".", ".."):
            raise ValueError(f"the prefix may hold letters, digits and !_.*'()=:@- only, not {segment!r}")
    if len(prefix) > MAX_PREFIX_BYTES:
        raise ValueError(
            f"the prefix may have {MAX_PREFIX_BYTES} characters, so that no object key exceeds S3's 1,024 bytes"
        )


def _check_file(parts: SplitResult, url: str) -> None:
    if parts.netloc or not parts.path.strip("/"):
        raise ValueError(f"must be an absolute path, file:///path, not {shown(url)!r}")
    try:
        usable = b"\0" not in os.fsencode(unquote(parts.path))
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ValueError(f"can't be a path of this machine: {url!r}")


def _check_memory(parts: SplitResult, url: str) -> None:
    """Any name is one."""


_CHECKS: Final[dict[str, Callable[[SplitResult, str], None]]] = {
    "s3": _check_s3,
    "file": _check_file,
    "memory": _check_memory,
}


def _is_host(host: str) -> bool:
    if ":" in host:
        ipaddress.IPv6Address(host)
        return True
    labels = host.removesuffix(".").split(".")
    return len(host) <= 255 and all(_HOST_LABEL.fullmatch(label) for label in labels)
