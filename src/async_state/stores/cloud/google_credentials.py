"""Google's tokens, by google-auth: Application Default Credentials, or a credentials file. All of it may block."""

from __future__ import annotations

import contextlib
import json
import os
import time
from datetime import timezone
from pathlib import Path
from typing import Any, Final

from async_state.connections.google import GoogleConnection
from async_state.settings import Settings
from async_state.stores.cloud import tokens
from async_state.stores.cloud.errors import TokenError
from async_state.stores.cloud.tokens import Token

_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"


def are_needed(settings: Settings, connection: GoogleConnection) -> bool:
    """Tell whether requests need a token."""
    from async_state.stores.cloud.google import endpoint_of

    return are_needed_at(endpoint_of(settings, connection))


def are_needed_at(endpoint: str) -> bool:
    """Tell whether requests need a token: none is ever sent without TLS, to an emulator say."""
    return not endpoint.startswith("http://")


def check_installed() -> None:
    """Check that there is what gives tokens.

    Raises:
        ConfigurationError: It is not installed.
    """
    for module in "google.auth", "requests":
        tokens.check_installed(module, "gs://", "gcs")


def described(connection: GoogleConnection, endpoint: str) -> str:
    """Say where credentials come from, for the person who asks."""
    if not are_needed_at(endpoint):
        return "nobody, as a token is never sent to an endpoint without TLS"
    if connection.key or connection.key_path:
        return f"the Airflow connection {connection.conn_id}"
    file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    return f"Application Default Credentials ({f'the file {file}' if file else 'user or instance'})"


def prepare() -> None:
    """Import what is needed, if it is installed, for processes that are forked from this one."""
    with contextlib.suppress(ImportError):
        _import()
        import google.auth.compute_engine
        import google.oauth2.service_account  # noqa: F401


def fetch(connection: GoogleConnection) -> Token:
    """Ask for a token, with credentials that are read anew each time, since they may have been replaced.

    Raises:
        TokenError: There is none.
    """
    auth, exceptions, request = _import()
    try:
        credentials = _load(auth, connection)
        credentials.refresh(request())
    except exceptions.RefreshError as e:
        raise TokenError(f"Google refused to give a token: {_text(e)}", passes=e.retryable) from None
    except exceptions.GoogleAuthError as e:
        # Also where no credentials were found: they may come later.
        raise TokenError(f"no token of Google's was found: {_text(e)}", passes=True) from None
    except Exception as e:  # whatever the library raises, also for what is not yet a whole file
        raise TokenError(f"the credentials can't be used: {type(e).__name__}", passes=True) from None
    expiry = credentials.expiry
    ends = expiry.replace(tzinfo=timezone.utc).timestamp() if expiry else time.time() + 300
    return Token(str(credentials.token), ends)


def _import() -> tuple[Any, Any, Any]:
    import google.auth
    import google.auth.exceptions
    import google.auth.transport.requests

    return google.auth, google.auth.exceptions, google.auth.transport.requests.Request


def _load(auth: Any, connection: GoogleConnection) -> Any:
    if not (connection.key or connection.key_path):
        return auth.default(scopes=[_SCOPE])[0]
    info = json.loads(connection.key or Path(connection.key_path or "").read_bytes())
    if info.get("type") == "service_account":
        from google.oauth2 import service_account

        return service_account.Credentials.from_service_account_info(info, scopes=[_SCOPE])
    # It is deprecated for credentials of strangers; those of a connection are of those who run Airflow.
    return auth.load_credentials_from_dict(info, scopes=[_SCOPE])[0]


def _text(e: Exception) -> str:
    # Its other arguments may hold what the service answered as a whole.
    return str(e.args[0]) if e.args else type(e).__name__
