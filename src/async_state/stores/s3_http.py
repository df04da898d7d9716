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


def load_certificates(ca_bundle: str | None) -> None:
    """Have what a client is going to trust loaded on another thread, while the client is built on the running loop.

    Parameters:
        ca_bundle: of the configuration of the client's session.
    """
    if not _contexts:
        # As botocore's `EndpointCreator` decides.
        verify = ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or True
        asyncio.get_running_loop().run_in_executor(None, _load, HttpSession(verify=verify))


def _load(session: HttpSession) -> None:
    # Not in older versions of aiobotocore; and what can't be loaded is told by the operation that needs it.
    with contextlib.suppress(AttributeError, OSError):
        session._build_ssl_contexts(None)


class HttpSession(AIOHTTPSession):  # type: ignore[misc]
    """For `AioConfig`'s ``http_session_cls``."""

    def _build_ssl_contexts(self, proxy_url: str | None) -> Any:
        # Older versions of aiobotocore do not call this, and load the certificates for each client.
        if proxy_url or self._cert_file or not self._verify:
            return super()._build_ssl_contexts(proxy_url)
        bundle = str(get_cert_path(self._verify))
        status = Path(bundle).stat()
        # Certificates that were replaced meanwhile are loaded anew.
        key = (bundle, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in _contexts:
            _contexts[key] = super()._build_ssl_contexts(None)
        return _contexts[key]
