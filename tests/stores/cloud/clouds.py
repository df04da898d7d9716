"""What differs between the two clouds, and what tests do to both."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend, Settings
from async_state.testing.faults import Fault, Request
from tests.cloud_proxy import Upstream
from tests.cloud_servers import AzureServer, GcsServer
from tests.cloud_tokens import TokenServer


@dataclass(frozen=True)
class Cloud:
    """One cloud, as tests speak of it.

    Attributes:
        scheme: of its base URLs.
        server: what answers.
        batch: the most objects that one request deletes.
        error: makes an answer that is an error, of a status and the cloud's word for it.
        batch_errors: answers calls in a batch with an error: of these keys, with a status and a word.
        failing: the status and the word of an outage.
        throttled: of a request to slow down.
        denied: of what credentials may not do.
        refused: of credentials that are refused as such.
    """

    scheme: str
    server: GcsServer | AzureServer
    batch: int
    error: Callable[..., Fault]
    batch_errors: Callable[[Collection[str] | Callable[[str], bool], int, str], Fault]
    failing: tuple[int, str]
    throttled: tuple[int, str]
    denied: tuple[int, str]
    refused: tuple[int, str]

    @property
    def endpoint(self) -> str:
        """The service's address."""
        return self.server.endpoint if isinstance(self.server, AzureServer) else self.server.url

    def settings(self, **options: Any) -> Settings:
        """Settings for the bucket or container ``state``."""
        given: dict[str, Any] = {"url": f"{self.scheme}://state/cloud", "endpoint_url": self.endpoint}
        return Settings(**{**given, **options})

    def word(self, request: Request) -> str:
        """Say what a request asks for."""
        if request.method == "POST":
            return "batch" if "batch" in request.path + request.query else "put"
        if request.method == "GET" and "prefix=" in request.query:
            return "list"
        if request.method == "HEAD" or "fields=" in request.query:
            return "head"
        return request.method.lower()

    def asked(self) -> list[str]:
        """What was asked for since the last time."""
        words = [self.word(request) for request in self.server.requests]
        self.server.requests.clear()
        return words

    def is_(self, *words: str) -> Callable[[Request], bool]:
        """Tell whether a request is one of these."""
        return lambda request: self.word(request) in words

    def metadata(self, ref: str) -> Mapping[str, str]:
        """Return what the real server says of an object, by lower-case name."""
        key = ref.partition("://")[2].partition("/")[2]
        if isinstance(self.server, AzureServer):
            return self._send("HEAD", f"/{self.server.account}/state/{quote(key)}")[1]
        found = json.loads(self._send("GET", f"/storage/v1/b/state/o/{quote(key, safe='')}")[2])
        return {"content-encoding": found.get("contentEncoding", ""), "content-type": found["contentType"]} | {
            f"meta-{name}": value for name, value in found.get("metadata", {}).items()
        }

    def damage(self, ref: str, body: bytes) -> None:
        """Write something else over an object, as another program does."""
        key = ref.partition("://")[2].partition("/")[2]
        if isinstance(self.server, AzureServer):
            self._send("PUT", f"/{self.server.account}/state/{quote(key)}", {"x-ms-blob-type": "BlockBlob"}, body)
        else:
            target = f"/upload/storage/v1/b/state/o?uploadType=media&name={quote(key, safe='')}"
            self._send("POST", target, {"Content-Type": "application/json"}, body)

    def fill(self, keys: Iterable[str]) -> None:
        """Make an object of each key, past the proxy."""
        with contextlib.closing(Upstream(self.server._port)) as upstream:
            for key in keys:
                if isinstance(self.server, AzureServer):
                    target = f"/{self.server.account}/state/{quote(key)}"
                    headers = self.server.signed("PUT", target, {"x-ms-blob-type": "BlockBlob"}, 1)
                    answer = upstream.ask("PUT", target, headers, b"1")
                else:
                    target = f"/upload/storage/v1/b/state/o?uploadType=media&name={quote(key, safe='')}"
                    answer = upstream.ask("POST", target, body=b"1")
                assert answer[0].startswith("20"), answer

    def _send(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.url.removeprefix("http://"))
        try:
            given = dict(headers or {})
            if isinstance(self.server, AzureServer):
                given = self.server.signed(method, target, given, len(body))
            connection.request(method, target, body, given)
            response = connection.getresponse()
            content = response.read()
            assert response.status < 300, content
            return response.status, {name.lower(): value for name, value in response.getheaders()}, content
        finally:
            connection.close()
            self.server.requests.pop()


@dataclass(frozen=True)
class Secured:
    """A cloud behind TLS that demands tokens, and what gives them out.

    Attributes:
        cloud: the cloud.
        endpoint: its address with TLS.
        tokens: the service that gives tokens.
        accepted: the services whose tokens the cloud takes: this one alone, unless a test says otherwise.
        found: has the process find what it needs to ask that service, or not.
    """

    cloud: Cloud
    endpoint: str
    tokens: TokenServer
    accepted: list[TokenServer]
    found: Callable[[bool], None]

    def settings(self, **options: Any) -> Settings:
        return self.cloud.settings(**{"endpoint_url": self.endpoint, **options})

    def authorizations(self) -> list[str]:
        """Return what requests showed, those of the refused ones included."""
        return [request.headers.get("authorization", "") for request in self.cloud.server.requests]


def store(backend: AsyncStateBackend, task: TaskScope, key: str, value: Any) -> str:
    """Store a value, and return its reference."""
    return backend.serialize_task_state_store_to_ref(value=value, key=key, scope=task)


def key_of(ref: str) -> str:
    """Return the key that a reference names in its bucket or container."""
    return ref.partition("://")[2].partition("/")[2]
