"""aiobotocore's HTTP session, with certificates that are loaded once.

Imports aiobotocore, so it is imported late itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from botocore.httpsession import get_cert_path

#: TLS contexts by the certificates that they trust, for the next client and for forked processes. Loading the bundle
#: takes longer than anything else that a client needs, and is done for http endpoints, too.
_contexts: dict[tuple[Any, ...], Any] = {}


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
