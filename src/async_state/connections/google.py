"""A connection of type google_cloud_platform as credentials and endpoint for Google Cloud Storage."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from async_state import urls
from async_state.connections import Connection
from async_state.connections.found import Found

_TAKEN: Final = ("key_path", "keyfile_dict", "credential_config_file", "endpoint_url")
#: What old connections have before the name of each extra.
_PREFIX: Final = "extra__google_cloud_platform__"

_OWN: Final = "leave [async_state] gcp_conn_id empty and give the worker these credentials itself"
_SUPPLIER: Final = (
    "put a workload identity federation configuration, which names where its tokens come from, into the extra "
    "credential_config_file"
)
#: The extras that Airflow's Google provider knows, and that are not taken: what to do instead.
_REFUSED: Final = {
    "key_secret_name": f"put the key itself into the extra keyfile_dict, or {_OWN}",
    "impersonation_chain": (
        "put a credentials file of type impersonated_service_account into the extra credential_config_file"
    ),
    "idp_issuer_url": _SUPPLIER,
    "client_id": _SUPPLIER,
    "client_secret": _SUPPLIER,
    "idp_extra_params": _SUPPLIER,
    "idp_extra_parameters": _SUPPLIER,
    "is_anonymous": f"nobody may write state without credentials, so put a key into the extra keyfile_dict, or {_OWN}",
    "quota_project_id": "remove it, as requests are billed to the bucket's own project",
    "scope": "leave it empty, or have https://www.googleapis.com/auth/devstorage.read_write in it",
}
#: What only other uses of the connection need: buckets have no project in their names, and retries are the store's.
_OF_OTHERS: Final = ("project", "num_retries", "key_secret_project_id")
#: Each lets objects be read, written and deleted.
_SCOPES: Final = {
    f"https://www.googleapis.com/auth/{name}"
    for name in ("cloud-platform", "devstorage.full_control", "devstorage.read_write")
}


@dataclass(frozen=True)
class GoogleConnection(Connection):
    """Credentials for Google Cloud Storage, and where they are valid. What is ``None`` is left to the worker.

    Attributes:
        key_path: The path of a credentials file on each worker.
        key: The JSON text of a credentials file. There is no ``key_path`` then.
        endpoint_url: The service's address.
    """

    key_path: str | None = None
    key: str | None = field(default=None, repr=False)
    endpoint_url: str | None = None


def parse(found: Found) -> GoogleConnection:
    """Return what the connection holds.

    Raises:
        ConfigurationError: It holds what can't be used.
    """
    # Airflow's provider reads the extra alone, so these would be set in vain.
    for name, value, instead in (
        ("login", found.login, "keyfile_dict"),
        ("password", found.password, "keyfile_dict"),
        ("host", found.host, "endpoint_url"),
    ):
        if value:
            raise found.bad(f"has a {name}, which means nothing to Google: put what is meant into the extra {instead}")
    extra = found.extras(_TAKEN, _REFUSED, _changes_nothing, prefix=_PREFIX)
    found.only_one({f"the extra {name}": extra.get(name) for name in _TAKEN[:3]})
    key_path, key = extra.get("key_path"), None
    if "keyfile_dict" in extra:
        key = _key(found, "keyfile_dict", extra["keyfile_dict"])
    config = extra.get("credential_config_file")
    # As in Airflow's provider: a path, or what the file would hold.
    if isinstance(config, dict) or str(config or "").lstrip().startswith("{"):
        key = _key(found, "credential_config_file", config)
    elif config:
        key_path = config
    return GoogleConnection(
        conn_id=found.conn_id,
        key_path=_path(found, "credential_config_file" if config else "key_path", key_path),
        key=key,
        endpoint_url=found.checked("an extra endpoint_url", str(extra.get("endpoint_url", "")), urls.check_endpoint),
    )


def _changes_nothing(name: str, value: Any) -> bool:
    if name == "scope":
        return not _SCOPES.isdisjoint(re.split(r"[,\s]+", str(value)))
    return name in _OF_OTHERS or (name == "is_anonymous" and value is False)


def _key(found: Found, name: str, value: Any) -> str:
    """Return the JSON text of a credentials file, which an extra has as text or as an object."""
    try:
        key = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise found.bad(f"has an extra {name} that is no JSON") from None
    if not isinstance(key, dict) or not isinstance(key.get("type"), str):
        raise found.bad(
            f"has an extra {name} that is no credentials file: it must be a JSON object with a type, such as "
            "service_account, as Google's console gives it"
        )
    # As in Airflow's provider: forms and variables often have a backslash and an n where a line ends.
    if isinstance(key.get("private_key"), str):
        key = {**key, "private_key": key["private_key"].replace("\\n", "\n")}
    return json.dumps(key)


def _path(found: Found, name: str, value: Any) -> str | None:
    if not value:
        return None
    # What holds a key instead would be shown as the path that could not be read.
    if not isinstance(value, str) or re.search(r"[\0-\x1f{}\"]", value) or len(value) > 1024:
        raise found.bad(
            f"has an extra {name} that is no path: put the content of a key file into the extra keyfile_dict"
        )
    if value.endswith(".p12"):
        raise found.bad(f"has an extra {name} that names a P12 file, which is not supported: use a JSON key file")
    return value
