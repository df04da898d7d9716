"""Azure's storage account, and what requests to it show: a key's signature, a shared access signature, or a token."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from async_state.connections.azure import AzureConnection
from async_state.errors import ConfigurationError
from async_state.settings import ACCOUNT_VARIABLES, NO_ACCOUNT, Settings
from async_state.stores.cloud.errors import TokenError
from async_state.stores.cloud.tokens import Token, Tokens, check_installed

VERSION: Final = "2023-11-03"
_SCOPE: Final = "https://storage.azure.com/.default"
#: The headers that a Shared Key signature has at their own places, in this order.
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


@dataclass(frozen=True)
class Account:
    """A storage account, and what was found to use it with.

    Attributes:
        name: The account's.
        endpoint: The address of its blobs.
        key: An account key, or an empty string.
        sas: A shared access signature without its question mark, or an empty string.
        source: Where that was found, for the person who asks.
    """

    name: str
    endpoint: str
    key: str = field(default="", repr=False)
    sas: str = field(default="", repr=False)
    source: str = ""

    @property
    def needs_identity(self) -> bool:
        """Whether requests need a token of azure-identity's."""
        return not (self.key or self.sas)


def account_of(settings: Settings, connection: AzureConnection) -> Account:
    """Return the account of ``az://`` URLs. What the connection holds comes first, then the environment.

    Raises:
        ConfigurationError: Nothing names it, or its key can't be one.
    """
    environ = os.environ
    string = _parsed(connection.connection_string or "")
    key, sas = connection.account_key or "", connection.sas_token or ""
    source = f"the Airflow connection {connection.conn_id}"
    if not connection.conn_id:
        string = _parsed(environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
        key = environ.get("AZURE_STORAGE_KEY") or environ.get("AZURE_STORAGE_ACCOUNT_KEY") or ""
        sas = environ.get("AZURE_STORAGE_SAS_TOKEN", "")
        source = "the environment (AZURE_STORAGE_*)"
    key, sas = string.get("accountkey") or key, string.get("sharedaccesssignature") or sas
    endpoint = (settings.endpoint_url if settings.url.startswith("az://") else None) or connection.endpoint_url
    endpoint = endpoint or string.get("blobendpoint", "")
    name = settings.azure_account or connection.account or string.get("accountname") or _of_environment()
    name = name or _of_endpoint(endpoint)
    if not name:
        raise ConfigurationError(f"[async_state] azure_account: {NO_ACCOUNT}")
    if not endpoint:
        scheme, suffix = string.get("defaultendpointsprotocol", "https"), string.get("endpointsuffix")
        endpoint = f"{scheme}://{name}.blob.{suffix or 'core.windows.net'}"
    if key and not _is_key(key):
        raise ConfigurationError(f"the key of the storage account {name!r} in {source} is no account key: no base64")
    if not (key or sas):
        source = "Azure's default credentials (environment, workload identity or managed identity)"
        if connection.conn_id:
            source = f"the Airflow connection {connection.conn_id} and {source}"
    return Account(name, endpoint.rstrip("/"), key, sas.lstrip("?"), source)


class Authorizer(Protocol):
    """Makes requests acceptable."""

    async def headers(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of a request with those that show who sends it.

        Args:
            method: As in HTTP.
            url: Of the request.
            headers: Of the request, with ``Content-Length`` if it has content.
        """

    def url(self, url: str) -> str:
        """Return the URL with what shows who sends a request to it."""

    async def aclose(self) -> None:
        """Give up what is under way."""


def check(account: Account) -> None:
    """Check that requests to the account can be made acceptable.

    Raises:
        ConfigurationError: Only a token would do, and the endpoint has no TLS, or the extra is not installed.
    """
    if not account.needs_identity:
        return
    if account.endpoint.startswith("http://"):
        raise ConfigurationError(
            f"[async_state] endpoint_url: a token is never sent to an endpoint without TLS, and {account.endpoint} is "
            "one: use https://, or an account key"
        )
    check_installed("azure.identity", "az:// without an account key or a shared access signature", "azure")


def authorizer(account: Account, connection: AzureConnection) -> Authorizer:
    """Return what makes requests to the account acceptable."""
    if account.key:
        return SharedKey(account.name, base64.b64decode(account.key))
    if account.sas:
        return Signature(account.sas)
    return Bearer(Tokens(partial(fetch, connection)))


class SharedKey:
    """Signs requests with an account key.

    Args:
        account: The account's name.
        key: Its key.
    """

    def __init__(self, account: str, key: bytes) -> None:
        self._account = account
        self._key = key

    async def headers(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        sent = {"x-ms-date": formatdate(usegmt=True), **headers}
        lower = {name.lower(): value for name, value in sent.items()}
        if lower.get("content-length") == "0":
            lower["content-length"] = ""
        parts = urlsplit(url)
        named = sorted((name, value) for name, value in lower.items() if name.startswith("x-ms-"))
        asked = sorted(parse_qsl(parts.query, keep_blank_values=True))
        text = "\n".join(
            [method, *(lower.get(name, "") for name in _SIGNED)]
            + [f"{name}:{value.strip()}" for name, value in named]
            + [f"/{self._account}{parts.path}" + "".join(f"\n{name.lower()}:{value}" for name, value in asked)]
        )
        signature = base64.b64encode(hmac.digest(self._key, text.encode(), hashlib.sha256)).decode()
        return {**sent, "Authorization": f"SharedKey {self._account}:{signature}"}

    def url(self, url: str) -> str:
        return url

    async def aclose(self) -> None:
        """Nothing is under way."""


class Signature:
    """Adds a shared access signature.

    Args:
        sas: The signature's parameters of a URL.
    """

    def __init__(self, sas: str) -> None:
        self._sas = sas

    async def headers(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        return dict(headers)

    def url(self, url: str) -> str:
        return f"{url}{'&' if '?' in url else '?'}{self._sas}"

    async def aclose(self) -> None:
        """Nothing is under way."""


class Bearer:
    """Adds a token.

    Args:
        tokens: Where it comes from.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def headers(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        return {**headers, "Authorization": f"Bearer {await self._tokens.get()}"}

    def url(self, url: str) -> str:
        return url

    async def aclose(self) -> None:
        await self._tokens.aclose()


def prepare() -> None:
    """Import what tokens need, if it is installed, for processes that are forked from this one."""
    with contextlib.suppress(ImportError):
        _import()


def fetch(connection: AzureConnection) -> Token:
    """Ask for a token, with credentials that are found anew each time. May block.

    Raises:
        TokenError: There is none.
    """
    identity, exceptions = _import()
    try:
        with _credential(identity, connection) as credential:
            found = credential.get_token(_SCOPE)
    except identity.CredentialUnavailableError as e:
        # They may come later.
        raise TokenError(f"no token of Azure's was found: {_told(e)}", passes=True) from None
    except exceptions.ClientAuthenticationError as e:
        # The chain of default credentials raises it, without an answer, where none of its members has a token.
        passes = getattr(e, "response", None) is None
        what = "no token of Azure's was found" if passes else "Azure refused to give a token"
        raise TokenError(f"{what}: {_told(e)}", passes=passes) from None
    except exceptions.AzureError as e:
        raise TokenError(f"no token of Azure's was found: {_told(e)}", passes=True) from None
    except Exception as e:  # whatever the library raises, or what it is built on
        raise TokenError(f"the credentials can't be used: {type(e).__name__}", passes=True) from None
    return Token(found.token, float(found.expires_on))


def _import() -> tuple[Any, Any]:
    import azure.core.exceptions
    import azure.identity

    return azure.identity, azure.core.exceptions


def _credential(identity: Any, connection: AzureConnection) -> Any:
    if connection.client_secret:
        return identity.ClientSecretCredential(connection.tenant_id, connection.client_id, connection.client_secret)
    given = {}
    if connection.managed_identity_client_id:
        given["managed_identity_client_id"] = connection.managed_identity_client_id
    # Not what only a developer's desktop has.
    return identity.DefaultAzureCredential(
        exclude_interactive_browser_credential=True,
        exclude_shared_token_cache_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_powershell_credential=True,
        exclude_developer_cli_credential=True,
        **given,
    )


def _told(e: Exception) -> str:
    """Return the error's first line, or what each member of the chain said, without the advice that follows."""
    first, *lines = str(e).splitlines() or [type(e).__name__]
    return "; ".join(line.strip() for line in lines if line.startswith("\t")) or first


def _parsed(string: str) -> dict[str, str]:
    """Return the parts of a connection string, by lower-case name."""
    if string.lower().rstrip(";") == "usedevelopmentstorage=true":
        return {"accountname": _EMULATED, "accountkey": _EMULATED_KEY, "blobendpoint": _EMULATED_ENDPOINT}
    pairs = (part.partition("=") for part in string.split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs if value}


#: The account that emulators have, with the key that Azure's documentation publishes.
_EMULATED: Final = "devstoreaccount1"
_EMULATED_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_EMULATED_ENDPOINT: Final = f"http://127.0.0.1:10000/{_EMULATED}"


def _of_environment() -> str:
    return next(filter(None, map(os.environ.get, ACCOUNT_VARIABLES)), "")


def _of_endpoint(endpoint: str) -> str:
    """Return the account that is part of an address: of its host, or of its path in an emulator's."""
    parts = urlsplit(endpoint)
    name, _, rest = (parts.hostname or "").partition(".blob.")
    return name if rest else unquote(parts.path.strip("/"))


def _is_key(key: str) -> bool:
    try:
        return bool(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        return False
