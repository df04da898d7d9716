"""aiobotocore's HTTP session, with certificates that are loaded once, and early.

Imports aiobotocore, so it is imported late itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from botocore.httpsession import get_cert_path

#: TLS contexts by the certificates that they trust, for the next client and for forked processes. Loading the bundle
#: takes a tenth of a process's first operation, and is done for http endpoints, too.
_contexts: dict[tuple[Any, ...], Any] = {}


class HttpSession(AIOHTTPSession):  # type: ignore[misc]
    """For `AioConfig`'s ``http_session_cls``.

    Parameters:
        arguments: those of `AIOHTTPSession`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.arguments = arguments

    def _build_ssl_contexts(self, proxy_url: str | None) -> Any:
        # Older versions of aiobotocore load the certificates for each client.
        if proxy_url or self._cert_file or not self._verify:
            return super()._build_ssl_contexts(proxy_url)
        bundle = str(get_cert_path(self._verify))
        status = Path(bundle).stat()
        # Certificates that were replaced meanwhile are loaded anew.
        key = (bundle, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in _contexts:
            _contexts[key] = super()._build_ssl_contexts(None)
        return _contexts[key]


def load_certificates(session: Any) -> None:
    """Load now what the client of an `AioSession` is going to trust."""
    _load(_as_clients(session))


def begin_to_load_certificates(session: Any) -> None:
    """Do so on another thread, which takes nothing from what builds the client on the running loop meanwhile."""
    # Older versions of aiobotocore do not ask for them.
    if not _contexts and hasattr(AIOHTTPSession, "_build_ssl_contexts"):
        asyncio.get_running_loop().run_in_executor(None, _load, _as_clients(session))


def _as_clients(session: Any) -> HttpSession:
    # As botocore's `Session.create_client` and `EndpointCreator` decide.
    return HttpSession(verify=session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True)


def _load(http: HttpSession) -> None:
    # What can't be loaded is told by the operation that needs it, which tries again.
    with contextlib.suppress(Exception):
        http._build_ssl_contexts(None)
