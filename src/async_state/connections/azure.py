"""A connection of type wasb as credentials, account and endpoint for Azure Blob Storage."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from async_state import urls
from async_state.connections import Connection
from async_state.connections.found import Found

_TAKEN: Final = (
    "connection_string",
    "shared_access_key",
    "account_key",
    "sas_token",
    "tenant_id",
    "managed_identity_client_id",
)
#: What old connections have before the name of each extra.
_PREFIX: Final = "extra__wasb__"

_CLIENT: Final = "remove it, as [async_state] timeout and max_attempts say how often and how long requests are tried"
_NETWORK: Final = "set it by the variables HTTPS_PROXY and REQUESTS_CA_BUNDLE instead"
#: The extras that Airflow's Azure provider knows, or hands to Azure's client, and that are not taken.
_REFUSED: Final = {
    "workload_identity_tenant_id": (
        "leave the tenant to the worker's own variables AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE"
    ),
    "client_secret_auth_config": (
        "remove it, and name the authority of another cloud in the variable AZURE_AUTHORITY_HOST of the worker"
    ),
    "account_name": "put the account's name into login",
    "account_url": "put the account's address into host",
    "secondary_hostname": "put the address that is to be used into host",
    "audience": "remove it: state is kept in Azure's public cloud, or where the host says",
    "api_version": "remove it, as the version of the service is not to be chosen",
    "proxies": _NETWORK,
    "connection_verify": _NETWORK,
    "connection_cert": _NETWORK,
    "connection_timeout": _CLIENT,
    "read_timeout": _CLIENT,
    "retry_total": _CLIENT,
}


@dataclass(frozen=True)
class AzureConnection(Connection):
    """Credentials for one storage account, and where it is. What is ``None`` is left to the worker.

    At most one of the ways to get access is there: a connection string; an account's key; a SAS; the tenant, id and
    secret of an application; or the id of a managed identity.

    Attributes:
        account: The storage account's name. An ``endpoint_url`` or a ``connection_string`` may tell it instead.
        account_key: The account's key, in base64.
        sas_token: A shared access signature, without a question mark before it.
        connection_string: What Azure's portal calls so. It says all there is to say.
        client_secret: The application's secret.
        tenant_id: The application's tenant.
        client_id: The application's id.
        managed_identity_client_id: The managed identity's id.
        endpoint_url: The account's address.
    """

    account: str | None = None
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    connection_string: str | None = field(default=None, repr=False)
    client_secret: str | None = field(default=None, repr=False)
    tenant_id: str | None = None
    client_id: str | None = None
    managed_identity_client_id: str | None = None
    endpoint_url: str | None = None


def parse(found: Found) -> AzureConnection:
    """Return what the connection holds.

    Raises:
        ConfigurationError: It holds what can't be used.
    """
    extra = {name: str(value) for name, value in found.extras(_TAKEN, _REFUSED, prefix=_PREFIX).items()}
    if found.port:
        raise found.bad("has a port, which would not be used: put the account's whole address into host")
    found.only_one(
        {f"the extra {name}": extra.get(name) for name in _TAKEN}
        # An application's secret is the other half of its tenant and id.
        | {"a password": found.password and "tenant_id" not in extra}
    )
    if "connection_string" in extra:
        return _of_string(found, extra["connection_string"])
    if "tenant_id" in extra:
        return _of_application(found, extra["tenant_id"])
    key, what = found.password, "a password"
    for name in "shared_access_key", "account_key":
        if name in extra:
            key, what = extra[name], f"an extra {name}"
    url, sas_token = _address(found, extra.get("sas_token", ""))
    login = found.checked("a login", found.login, urls.check_account)
    account, endpoint_url = _place(found, url)
    if login and account and login != account:
        raise found.bad("has a login and a host that name two accounts: keep the one that state is to use")
    if (key or sas_token) and not (login or account or endpoint_url):
        raise found.bad(
            "has half of what access needs; it needs the account's name, as login, beside its key or SAS, or neither "
            "for the worker's own credentials"
        )
    identity = extra.get("managed_identity_client_id")
    found.check_sendable({"extra sas_token": sas_token, "extra managed_identity_client_id": identity})
    return AzureConnection(
        conn_id=found.conn_id,
        account=login or account,
        account_key=found.checked(what, key, _check_key),
        sas_token=sas_token or None,
        managed_identity_client_id=identity,
        endpoint_url=endpoint_url,
    )


def _of_string(found: Found, text: str) -> AzureConnection:
    # As in Airflow's provider nothing else counts, so nothing else may be there.
    if found.login or found.host:
        raise found.bad("has a login or a host beside the extra connection_string, which says both: keep one of them")
    if not all(re.fullmatch(r"\s*\w+=[^\0-\x1f]+", part) for part in text.rstrip("; \n").split(";")):
        raise found.bad(
            "has an extra connection_string that is none: it must be name=value;name=value, as Azure's portal gives it"
        )
    return AzureConnection(conn_id=found.conn_id, connection_string=text.strip())


def _of_application(found: Found, tenant_id: str) -> AzureConnection:
    if not (found.login and found.password):
        raise found.bad(
            "has half of an application's credentials; beside the extra tenant_id it needs both a login (the "
            "application's id) and a password (its secret)"
        )
    found.check_sendable({"extra tenant_id": tenant_id, "login": found.login, "password": found.password})
    account, endpoint_url = _place(found, found.host)
    return AzureConnection(
        conn_id=found.conn_id,
        account=account,
        client_secret=found.password,
        tenant_id=tenant_id,
        client_id=found.login,
        endpoint_url=endpoint_url,
    )


def _address(found: Found, sas_token: str) -> tuple[str, str]:
    """Return the account's address, if any, and the SAS, which may be the query of that address."""
    if not sas_token.startswith(("https://", "http://")):
        return found.host, sas_token.removeprefix("?")
    if found.host:
        raise found.bad("has a host and a URL as the extra sas_token, which both say where: put the token alone there")
    url, _, token = sas_token.partition("?")
    if not token:
        raise found.bad("has an extra sas_token that is a URL without a token behind a question mark")
    return url, token


def _place(found: Found, host: str) -> tuple[str | None, str | None]:
    """Return the account's name, or else its address, of which the host is one; or neither."""
    if re.fullmatch(r"[A-Za-z0-9]+", host):
        return found.checked("a host", host, urls.check_account), None
    # As in Airflow's provider: a name of the DNS is one of a server that speaks TLS.
    url = f"https://{host}" if host and "://" not in host else host
    if ".blob." in url and urlsplit(url).path.strip("/"):
        raise found.bad("has an address with more than the account in it: the container belongs to [async_state] url")
    return None, found.checked("a host", url, urls.check_endpoint)


def _check_key(key: str) -> str:
    try:
        usable = len(base64.b64decode(key, validate=True)) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be the account's key, in base64, as Azure's portal gives it")
    return key
