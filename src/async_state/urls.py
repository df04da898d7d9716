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

#: The longest prefix with which no object key exceeds the stores' limit; one byte is the slash between prefix and name.
MAX_PREFIX_BYTES: Final = MAX_OBJECT_KEY_BYTES - MAX_NAME_BYTES - 1

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
#: What Google and Azure accept as the name of a new bucket or container. Azure's ``$root`` and ``$web`` are no place
#: for state: the one takes no names with a slash, and the other may be readable by everybody.
_GOOGLE_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_CONTAINER: Final = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")
_PREFIX_SEGMENT: Final = re.compile(r"[A-Za-z0-9!_.*'()=:@-]+")
#: What botocore accepts as a region and as the host of an endpoint.
_REGION: Final = re.compile(r"(?![0-9]+\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_HOST_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")

#: The option that names the Airflow connection, by the scheme of the store.
_CONNECTIONS: Final = {"s3": "aws_conn_id", "gs": "gcp_conn_id", "az": "wasb_conn_id"}

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: A parameter of a URL's query whose name says that its value is secret, as in a presigned URL, or in Azure's with sig.
_SECRET_PARAMETER: Final = re.compile(
    r"([?&;][\w.-]{0,40}(?:sig|credential|token|secret|password|passwd|key)[\w.-]{0,40}=)[^\s&;'\"]+",
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
        option = _CONNECTIONS.get(parts.scheme)
        where = f"; see [async_state] {option}" if option else ""
        raise ValueError(f"must not hold credentials or a connection id{where}")
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
    """Return ``url`` if a store can be at it. botocore is the strictest of those who take it.

    Raises:
        ValueError: it is no HTTP URL, or holds credentials, a query or a fragment.
    """
    if "@" in url:
        raise ValueError(f"must not hold credentials; see [async_state] {', '.join(_CONNECTIONS.values())}")
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


def check_account(name: str) -> str:
    """Return ``name`` if a storage account of Azure can have it.

    Raises:
        ValueError: it can't. The message does not have the name, for which a key may have been mistaken.
    """
    if not re.fullmatch("[a-z0-9]{3,24}", name):
        raise ValueError("must be the name of a storage account, 3 to 24 lower-case letters and digits")
    return name


def connection_option(url: str) -> str:
    """Return the option that names the Airflow connection for a base URL's store, or an empty string."""
    return _CONNECTIONS.get(url.partition("://")[0], "")


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
    _check_prefix(parts, url)


def _check_gs(parts: SplitResult, url: str) -> None:
    if not _GOOGLE_BUCKET.fullmatch(parts.netloc):
        raise ValueError(f"must name a bucket, gs://bucket/prefix, not {shown(url)!r}")
    _check_prefix(parts, url)


def _check_az(parts: SplitResult, url: str) -> None:
    if not _CONTAINER.fullmatch(parts.netloc):
        raise ValueError(
            "must name a container of 3 to 63 lower-case letters, digits and single dashes, az://container/prefix, not "
            f"{shown(url)!r}"
        )
    _check_prefix(parts, url)


def _check_prefix(parts: SplitResult, url: str) -> None:
    prefix = parts.path.rstrip("/").removeprefix("/")
    for segment in prefix.split("/") if prefix else ():
        if not segment:
            raise ValueError(f"must not have two slashes in a row in the prefix: {shown(url)!r}")
        if not _PREFIX_SEGMENT.fullmatch(segment) or segment in (".", ".."):
            raise ValueError(f"the prefix may hold letters, digits and !_.*'()=:@- only, not {segment!r}")
    if len(prefix) > MAX_PREFIX_BYTES:
        raise ValueError(
            f"the prefix may have {MAX_PREFIX_BYTES} characters, so that no object key exceeds 1,024 bytes"
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
    "gs": _check_gs,
    "az": _check_az,
    "file": _check_file,
    "memory": _check_memory,
}


def _is_host(host: str) -> bool:
    if ":" in host:
        ipaddress.IPv6Address(host)
        return True
    labels = host.removesuffix(".").split(".")
    return len(host) <= 255 and all(_HOST_LABEL.fullmatch(label) for label in labels)
