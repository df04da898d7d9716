"""The options of ``[async_state]``: one frozen dataclass, with one field for each option.

A field holds all that there is to say of its option: type, default, description, example and check. The provider info
(``airflow config list``) and the page docs/options.md are made from the fields. To add an option, add a field; one for
S3 also needs a line where the arguments of S3's requests are made, and the page is made anew
(``python -m tests.project.test_pages``).
"""

from __future__ import annotations

import configparser
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from async_state import codec, keys, misspelt, urls
from async_state.errors import ConfigurationError
from async_state.urls import default_url as default_url

T = TypeVar("T")

SECTION: Final = "async_state"


def _option(
    default: T | Callable[[], T],
    description: str,
    *,
    check: Callable[[Any], T] | None = None,
    example: str | None = None,
) -> T:
    """Return the field of an option.

    Args:
        default: the default, or a function that returns it.
        description: what the option means, for the person who sets it.
        check: returns the value to use, or raises a ``ValueError`` that says what the value must be. It is called
            with values of the field's type only, and not with ``None``.
        example: a value as it would stand in ``airflow.cfg``.
    """
    metadata = {"description": description, "check": check, "example": example}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _at_least(least: int) -> Callable[[int], int]:
    def check(value: int) -> int:
        if value < least:
            raise ValueError(f"must be an integer, at least {least}, not {value!r}")
        return value

    return check


def _one_of(*choices: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    return check


def _seconds(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"must be a number of seconds above 0, not {value!r}")
    return value


def _compression(value: str) -> str:
    _one_of("none", "gzip", "zstd")(value)
    if value == "zstd" and not codec.zstd_available():
        raise ValueError("zstd needs the extra: pip install 'airflow-async-state[zstd]', or use gzip")
    return value


def _connection_id(value: str) -> str:
    # What Airflow allows. A connection's URI is none, and would have its password repeated in errors.
    if not re.fullmatch(r"[\w#!()\-.:/\\]{1,250}", value):
        raise ValueError(f"must be the id of a connection, not {urls.shown(value)!r}")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"must be printable ASCII characters without spaces, not {value!r}")
    return value


#: The options that hold base URLs.
_BASES: Final = ("moved_urls", "trusted_urls", "url")
#: The variables of Azure's own tools that hold the name of a storage account.
ACCOUNT_VARIABLES: Final = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
#: What to say where nothing names one.
NO_ACCOUNT: Final = (
    "az:// URLs need the name of a storage account, here, in the connection of wasb_conn_id, or in the variable "
    "AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING"
)


def _listed(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def is_installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``[async_state]``.

    Each field is the option of the same name, ``AIRFLOW__ASYNC_STATE__<NAME>`` in the environment. Its metadata has
    its description. An option that is ``None`` is left to the store's own library and environment.

    Raises:
        ConfigurationError: An option can't be used. The message has its full name.
    """

    url: str = _option(
        default_url,
        "The base URL below which state is kept. In production: s3://bucket/prefix for S3; gs://bucket/prefix for "
        "Google Cloud Storage, which needs the extra gcs; or az://container/prefix for Azure Blob Storage, which needs "
        "the extra azure. Else file:///path, a directory of this machine; or memory://name, the memory of one process, "
        "for tests. Empty: the directory async_state in AIRFLOW_HOME.",
        check=urls.check_base,
        example="s3://my-bucket/airflow-state",
    )
    owner: str = _option(
        "",
        "The name of the deployment that owns url, such as prod. Two deployments on one prefix read and clear each "
        "other's state. A component writes the name below url when it starts; where it finds another deployment "
        "there, it logs an error that names both: give each deployment a url of its own. Empty: the address of the "
        "metadata database, or of Celery's broker, names the deployment.",
        check=lambda value: _name(value) if value else value,
        example="prod",
    )
    max_concurrency: int = _option(
        24,  # measured by bench/concurrency.py: more gives little throughput, and longer gaps in the caller's loop
        "How many operations of a process may run at once, and how many connections it keeps to the store.",
        check=_at_least(1),
    )
    timeout: float = _option(
        20.0,
        "Seconds that an operation may take in all: waiting for its slot (max_concurrency), every attempt and every "
        "pause between them. A clear has this time for each page that it lists and each batch that it deletes. During "
        "an outage of the store an operation is tried until then, and then fails its task or trigger: raise the "
        "option, for example to 90, where a lost job id costs more than waiting. An operation that waits does not "
        "stop a task's heartbeat, which the supervisor's process sends, nor the event loop of a triggerer, which "
        "Airflow takes for dead when it stands still for 30 seconds.",
        check=_seconds,
    )
    max_attempts: int = _option(
        0,
        "The most requests that an operation sends for one object, page or batch, as counted at the server. 0 = no "
        "limit: an operation is tried until its timeout.",
        check=_at_least(0),
    )
    outage_inline_threshold: int = _option(
        0,
        "Where the store still fails when timeout ends, a value of at most this many bytes of JSON is kept in "
        "Airflow's database instead, and a warning is logged. get reads it there; the next set that succeeds moves it "
        "to the store. 0 = never: set fails.",
        check=_at_least(0),
        example="4096",
    )
    compression: str = _option(
        "none",
        "How values are compressed before they are stored: none, gzip or zstd, which needs the extra zstd. Values "
        "that were stored under another setting stay readable.",
        check=_compression,
        example="gzip",
    )
    compression_threshold: int = _option(
        1024,
        "Values of at least this many bytes of JSON are compressed.",
        check=_at_least(0),
    )
    inline_threshold: int = _option(
        0,
        "Values of at most this many bytes of JSON stay in Airflow's database instead of going to the store. 0 = none.",
        check=_at_least(0),
        example="64",
    )
    on_missing: str = _option(
        "none",
        "What reading a reference does when its object is gone: none returns None and logs a warning, raise raises an "
        "error. After clear_on_success, a retry may read such references.",
        check=_one_of("none", "raise"),
    )
    trusted_urls: tuple[str, ...] = _option(
        (),
        "Earlier values of url, separated by commas. References below them can still be read and purged.",
        check=urls.check_bases,
        example="s3://old-bucket/state,file:///var/lib/airflow/async_state",
    )
    moved_urls: tuple[str, ...] = _option(
        (),
        "Earlier values of url whose objects airflow async-state copy has copied below url, separated by commas. "
        "References below them are read and purged below url, so that the old buckets can go. A URL is in trusted_urls "
        "or here, not in both.",
        check=urls.check_bases,
        example="s3://old-bucket/state",
    )
    endpoint_url: str | None = _option(
        None,
        "The address of url's store, where it is not the cloud's own: of S3; of Google Cloud Storage; or, for az://, "
        "of the storage account, such as http://127.0.0.1:10000/devstoreaccount1. A URL of another scheme in "
        "trusted_urls or moved_urls has its store's address from the environment (AWS_ENDPOINT_URL, "
        "STORAGE_EMULATOR_HOST, AZURE_STORAGE_CONNECTION_STRING) or from its connection.",
        check=urls.check_endpoint,
        example="https://minio.example.com:9000",
    )
    region_name: str | None = _option(
        None,
        "The AWS region of the bucket.",
        check=urls.check_region,
        example="eu-central-1",
    )
    aws_conn_id: str | None = _option(
        None,
        "The Airflow connection, of type aws, that holds the credentials for s3:// URLs. Empty: botocore's own chain "
        "finds them, and they never pass through the API server.",
        check=_connection_id,
        example="aws_default",
    )
    azure_account: str | None = _option(
        None,
        "The storage account of az:// URLs. Empty: the one in AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME or "
        "AZURE_STORAGE_CONNECTION_STRING of the environment, or the connection's.",
        check=urls.check_account,
        example="mystorageaccount",
    )
    gcp_conn_id: str | None = _option(
        None,
        "The Airflow connection, of type google_cloud_platform, that holds the credentials for gs:// URLs. Empty: "
        "Google's Application Default Credentials, and they never pass through the API server.",
        check=_connection_id,
        example="google_cloud_default",
    )
    wasb_conn_id: str | None = _option(
        None,
        "The Airflow connection, of type wasb, that holds the credentials for az:// URLs. Empty: Azure's default "
        "credentials, and they never pass through the API server.",
        check=_connection_id,
        example="wasb_default",
    )
    server_side_encryption: str | None = _option(
        None,
        "How S3 encrypts stored objects: AES256, aws:kms or aws:kms:dsse. Empty: as the bucket is configured.",
        check=_one_of("AES256", "aws:kms", "aws:kms:dsse"),
        example="aws:kms",
    )
    sse_kms_key_id: str | None = _option(
        None,
        "The KMS key for aws:kms and aws:kms:dsse.",
        check=_name,
        example="alias/airflow-state",
    )
    patch_accessors: bool = _option(
        True,
        "Whether the plugin replaces aget and aset of Airflow's accessors where the SDK, up to 1.4, calls a backend on "
        "the event loop, and adds the aget, aset, adelete and aclear that the task accessor of task-sdk 1.3 lacks. "
        "With False, some calls stop their event loop for up to timeout, which must then be below 30.",
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = _checked(option, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
        if self.sse_kms_key_id and not str(self.server_side_encryption).startswith("aws:kms"):
            raise _bad("sse_kms_key_id", f"needs [{SECTION}] server_side_encryption = aws:kms (or aws:kms:dsse)")
        self._check_clouds()
        if self.url in self.moved_urls:
            raise _bad("moved_urls", f"holds url itself, {self.url}: set url to where the objects have been copied")
        for base in self.moved_urls:
            if base in self.trusted_urls:
                raise _bad(
                    "moved_urls",
                    f"{base} is in trusted_urls as well: remove it there if all of its objects have been copied below "
                    "url, and otherwise here",
                )

    def _check_clouds(self) -> None:
        schemes = {base.partition("://")[0]: option for option in _BASES for base in _listed(getattr(self, option))}
        # Over an endpoint without TLS, no token is sent, so none is needed.
        emulated = os.environ.get("STORAGE_EMULATOR_HOST") or (
            self.url.startswith("gs://") and str(self.endpoint_url).startswith("http://")
        )
        if "gs" in schemes and not emulated and not is_installed("google.auth"):
            raise _bad(schemes["gs"], "gs:// needs the extra: pip install 'airflow-async-state[gcs]'")
        if "az" in schemes and not (self.azure_account or self.wasb_conn_id):
            given = self.url.startswith("az://") and self.endpoint_url
            if not given and not any(map(os.environ.get, (*ACCOUNT_VARIABLES, "AZURE_STORAGE_CONNECTION_STRING"))):
                raise _bad("azure_account", NO_ACCOUNT)

    @property
    def bases(self) -> tuple[str, ...]:
        """The base URLs below which references are trusted, the current one first."""
        return (self.url, *self.trusted_urls, *self.moved_urls)

    def locate(self, ref: str) -> tuple[str, str]:
        """Return the base URL below which the object of a reference lies, and the object's name.

        Args:
            ref: Untrusted input.

        Raises:
            UntrustedRefError: As in `keys.split_ref`.
        """
        base, name = keys.split_ref(ref, self.bases)
        return (self.url if base in self.moved_urls else base), name

    def texts(self) -> dict[str, str]:
        """Return each option as it would stand in ``airflow.cfg``; one that is ``None`` is empty."""
        values = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}
        return {
            name: ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
            for name, value in values.items()
        }

    @classmethod
    def from_conf(cls, conf: Any) -> Settings:
        """Read the options from an Airflow configuration.

        Args:
            conf: Airflow's ``conf``, or anything with its ``get(section, option, fallback=...)``. An option that is
                missing or empty has its default.

        Returns:
            The settings.

        Raises:
            ConfigurationError: An option can't be used, or there is no such option. The message has its full name.
        """
        misspelt.refuse_unknown(conf, SECTION, [option.name for option in dataclasses.fields(cls)])
        given = {option.name: _read(conf, option) for option in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})


def problems(conf: Any) -> list[str]:
    """Return everything for which `Settings.from_conf` would refuse the configuration, a sentence for each."""
    options = dataclasses.fields(Settings)
    found = misspelt.unknown(conf, SECTION, [option.name for option in options])
    given = {}
    for option in options:
        try:
            value = _read(conf, option)
            if value is not None:
                given[option.name] = _checked(option, value)
        except ConfigurationError as e:
            found.append(str(e))
    if not found:
        try:
            Settings(**given)
        except ConfigurationError as e:
            # What two options are together.
            found.append(str(e))
    return found


class Option(NamedTuple):
    """What there is to know of an option, in the words of Airflow's provider info."""

    name: str
    type: str
    default: str
    description: str
    example: str | None


def options() -> Iterator[Option]:
    """Yield each option. A default that this machine or a cloud's library decides is empty.

    Airflow writes the defaults into the ``airflow.cfg`` that it generates, where they stay whatever changes later.
    """
    for option in dataclasses.fields(Settings):
        default = "" if option.default in (None, (), dataclasses.MISSING) else str(option.default)
        yield Option(
            option.name, _type(option).name, default, option.metadata["description"], option.metadata["example"]
        )


class _Type(NamedTuple):
    """A type that an option may have."""

    name: str
    parse: Callable[[str], Any]
    classes: tuple[type, ...]
    expected: str


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[,\s]+", text) if part)


_TYPES: Final = {
    "int": _Type("integer", int, (int,), "an integer"),
    "float": _Type("float", float, (int, float), "a number"),
    "bool": _Type("boolean", _boolean, (bool,), "True or False"),
    "str": _Type("string", str, (str,), "text"),
    "str | None": _Type("string", str, (str,), "text"),
    "tuple[str, ...]": _Type("string", _list, (tuple, list), "a list"),
}


def _type(option: dataclasses.Field[Any]) -> _Type:
    return _TYPES[str(option.type)]


def _read(conf: Any, option: dataclasses.Field[Any]) -> Any:
    """Return the option's value in the configuration, which is not checked yet, or ``None`` if there is none."""
    try:
        text = (conf.get(SECTION, option.name, fallback=None) or "").strip()
    except configparser.InterpolationError:
        raise _bad(option.name, "can't be read: in airflow.cfg, write %% for each %") from None
    return _parsed(option, text) if text else None


def _parsed(option: dataclasses.Field[Any], text: str) -> Any:
    try:
        return _type(option).parse(text)
    except (ValueError, KeyError):
        raise _bad(option.name, f"must be {_type(option).expected}, not {text!r}") from None


def _checked(option: dataclasses.Field[Any], value: Any) -> Any:
    if option.default is None and not value:
        return None
    kind = _type(option)
    if not isinstance(value, kind.classes) or (isinstance(value, bool) and bool not in kind.classes):
        raise _bad(option.name, f"must be {kind.expected}, not {type(value).__name__}")
    check = option.metadata["check"]
    try:
        return check(value) if check else value
    except ValueError as e:
        raise _bad(option.name, str(e)) from None


def _bad(option: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"[{SECTION}] {option}: {what}")
