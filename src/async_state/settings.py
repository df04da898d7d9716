"""The options of ``[async_state]``: one frozen dataclass, a field per option with its documentation.

The provider info (``airflow config list``) and the table in the README are made from these fields.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from async_state import codec
from async_state.errors import ConfigurationError
from async_state.keys import MAX_NAME_BYTES, MAX_OBJECT_KEY_BYTES

SECTION: Final = "async_state"
SCHEMES: Final = ("s3", "file", "memory")
COMPRESSIONS: Final = ("none", "gzip", "zstd")
ON_MISSING: Final = ("none", "raise")
ENCRYPTIONS: Final = ("AES256", "aws:kms", "aws:kms:dsse")

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()=:@-]+")


def default_url() -> str:
    """Return the embedded default: a directory in ``$AIRFLOW_HOME``."""
    home = Path(os.path.expandvars(os.environ.get("AIRFLOW_HOME", "~/airflow"))).expanduser()
    return f"file://{home}/async_state"


def _option(default: Any, description: str, example: str | None = None, *, shown: str | None = None) -> Any:
    metadata = {"description": description, "example": example, "shown": shown}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``[async_state]`` says.

    Each field is an option of the same name, ``AIRFLOW__ASYNC_STATE__<NAME>`` in the environment; its documentation is
    in its metadata. An option that is ``None`` is left to botocore's own chain.

    Raises:
        ConfigurationError: an option can't be used; the message has its full name.
    """

    url: str = _option(
        default_url,
        "Where state is kept: s3://bucket/prefix in production. file:///path is a directory of this machine, and "
        "memory://name a dict of one process, for tests.",
        "s3://my-bucket/airflow-state",
        shown="file://{AIRFLOW_HOME}/async_state",
    )
    max_concurrency: int = _option(
        24,  # measured by bench/concurrency.py: more gives little throughput, and longer gaps in the caller's loop
        "Requests in flight at once from one event loop, and connections that a process keeps to the store.",
    )
    timeout: float = _option(
        20.0,
        "Seconds that an operation may take in all, retries included; for a clear, each page listed and each batch "
        "deleted. Keep it below 30, after which Airflow takes a triggerer whose loop stands still for dead.",
    )
    max_attempts: int = _option(
        0,
        "How often a request is tried, the first time included (botocore's standard retry mode).",
    )
    compression: str = _option(
        "none",
        "How values are compressed before they are stored: none, gzip or zstd (which needs the extra zstd). Values "
        "stored under another setting stay readable.",
        "gzip",
    )
    compression_threshold: int = _option(
        1024,
        "Bytes of JSON from which on a value is compressed.",
    )
    inline_threshold: int = _option(
        0,
        "Bytes of JSON up to which a value stays in Airflow's database instead of the store. 0 = never.",
        "64",
    )
    outage_inline_threshold: int = _option(0, "TEMP")
    on_missing: str = _option(
        "none",
        "What reading a reference gives whose object is gone: none (the value None, and a warning) or raise. After "
        "clear_on_success, a retry may read such references.",
    )
    trusted_urls: tuple[str, ...] = _option(
        (),
        "Earlier values of url, comma-separated, whose references may still be read and purged.",
        "s3://old-bucket/state,file:///var/lib/airflow/async_state",
        shown="",
    )
    endpoint_url: str | None = _option(
        None,
        "The store's address, where it is not AWS.",
        "https://minio.example.com:9000",
    )
    region_name: str | None = _option(
        None,
        "The bucket's AWS region.",
        "eu-central-1",
    )
    aws_conn_id: str | None = _option(
        None,
        "An Airflow connection of type aws to take credentials from. Empty: botocore's own chain, whose credentials "
        "never pass through the API server.",
        "aws_default",
    )
    server_side_encryption: str | None = _option(
        None,
        "S3 encryption of stored objects: AES256, aws:kms or aws:kms:dsse. Empty: what the bucket does.",
        "aws:kms",
    )
    sse_kms_key_id: str | None = _option(
        None,
        "The KMS key for aws:kms and aws:kms:dsse.",
        "alias/airflow-state",
    )

    patch_accessors: bool = _option(
        True,
        "Let aget and aset of Airflow's accessors await this backend where the SDK, up to 1.4, calls it on the event "
        "loop; and give task-sdk 1.3's task accessor the aget, aset, adelete and aclear that it lacks.",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _checked_url("url", self.url))
        trusted = tuple(_checked_url("trusted_urls", url) for url in self.trusted_urls)
        object.__setattr__(self, "trusted_urls", trusted)
        _check_integer("max_concurrency", self.max_concurrency, 1)
        _check_seconds("timeout", self.timeout)
        _check_integer("max_attempts", self.max_attempts, 0)
        _check_integer("compression_threshold", self.compression_threshold, 0)
        _check_integer("inline_threshold", self.inline_threshold, 0)
        _check_choice("compression", self.compression, COMPRESSIONS)
        _check_choice("on_missing", self.on_missing, ON_MISSING)
        if self.compression == "zstd" and not codec.zstd_available():
            raise _bad("compression", "zstd needs the extra: pip install 'airflow-async-state[zstd]', or use gzip")
        if self.endpoint_url:
            _check_endpoint(self.endpoint_url)
        if self.server_side_encryption:
            _check_choice("server_side_encryption", self.server_side_encryption, ENCRYPTIONS)
        if self.sse_kms_key_id and not str(self.server_side_encryption).startswith("aws:kms"):
            raise _bad("sse_kms_key_id", f"needs [{SECTION}] server_side_encryption = aws:kms (or aws:kms:dsse)")

    @property
    def bases(self) -> tuple[str, ...]:
        """The base URLs below which references are trusted, the current one first."""
        return (self.url, *self.trusted_urls)

    @classmethod
    def from_conf(cls, conf: Any) -> Settings:
        """Read the options from an Airflow configuration.

        Parameters:
            conf: Airflow's ``conf``: anything with its ``get(section, option, fallback=...)``. An option that is
                missing or empty has its default.

        Raises:
            ConfigurationError: an option can't be used; the message has its full name.
        """
        given = {}
        for option in dataclasses.fields(cls):
            text = (conf.get(SECTION, option.name, fallback=None) or "").strip()
            if text:
                given[option.name] = _parsed(option, text)
        return cls(**given)


def options() -> Iterator[tuple[str, str, str, str | None]]:
    """Yield name, default as written in ``airflow.cfg``, description and example of each option."""
    for option in dataclasses.fields(Settings):
        shown = option.metadata["shown"]
        if shown is None:
            shown = "" if option.default is None else str(option.default)
        yield option.name, shown, option.metadata["description"], option.metadata["example"]


def option_type(name: str) -> str:
    """Return an option's type in the words of Airflow's provider info."""
    types = {"int": "integer", "float": "float", "bool": "boolean"}
    return types.get(str(next(o.type for o in dataclasses.fields(Settings) if o.name == name)), "string")


def _parsed(option: dataclasses.Field[Any], text: str) -> Any:
    try:
        if option.type == "int":
            return int(text)
        if option.type == "float":
            return float(text)
    except ValueError:
        raise _bad(option.name, f"must be a number, not {text!r}") from None
    if option.type == "bool":
        if text.lower() not in ("true", "false"):
            raise _bad(option.name, f"must be True or False, not {text!r}")
        return text.lower() == "true"
    if option.name == "trusted_urls":
        return tuple(part for part in re.split(r"[,\s]+", text) if part)
    return text


def _bad(option: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"[{SECTION}] {option}: {what}")


def _check_integer(option: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _bad(option, f"must be an integer, at least {least}, not {value!r}")


def _check_seconds(option: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise _bad(option, f"must be a number of seconds above 0, not {value!r}")


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _bad(option, f"must be one of {', '.join(choices)}, not {value!r}")


def _checked_url(option: str, url: str) -> str:
    """Return ``url`` without its trailing slash, if a store can be opened with it."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket, or a character that stands for another
        raise _bad(option, f"is no URL: {_shown(url)!r}") from None
    if parts.scheme not in SCHEMES:
        raise _bad(option, f"must start with {', '.join(s + '://' for s in SCHEMES)}; {_shown(url)!r} does not")
    if "@" in parts.netloc:
        raise _bad(option, "must not hold credentials or a connection id; see [async_state] aws_conn_id")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise _bad(option, f"must not have a query or a fragment: {_shown(url)!r}")
    if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
        raise _bad(option, f"must be an absolute path, file:///path, not {url!r}")
    if parts.scheme == "file" and not _is_path(unquote(parts.path)):
        raise _bad(option, f"can't be a path of this machine: {url!r}")
    if parts.scheme == "s3":
        _check_s3_url(option, url, parts.netloc, parts.path.strip("/"))
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _is_path(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _check_endpoint(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # no port, or no IPv6 address
        usable = False
    if not usable or re.search(r"[\s\0-\x1f]", url):
        raise _bad("endpoint_url", f"must be an http:// or https:// URL, not {_shown(url)!r}")
    if "@" in urlsplit(url).netloc:
        raise _bad("endpoint_url", "must not hold credentials; see [async_state] aws_conn_id")


def _check_s3_url(option: str, url: str, bucket: str, prefix: str) -> None:
    if not _BUCKET.fullmatch(bucket):
        raise _bad(option, f"must name a bucket, s3://bucket/prefix, not {url!r}")
    for segment in prefix.split("/") if prefix else ():
        if not _PREFIX.fullmatch(segment) or segment in (".", ".."):
            raise _bad(option, f"the prefix may hold letters, digits and !_.*'()=:@- only, not {segment!r}")
    room = MAX_OBJECT_KEY_BYTES - MAX_NAME_BYTES - 1
    if len(prefix) > room:
        raise _bad(option, f"the prefix may have {room} characters, so that no object key exceeds S3's 1,024 bytes")


def _shown(url: str) -> str:
    return re.sub(r"//[^/]*@", "//***@", url)


def mask(text: str) -> str:
    return re.sub(r"//[^/]*@", "//***@", text)
