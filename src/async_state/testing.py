"""For tests: a real S3 server over HTTP, in this process. Needs ``moto[s3,server]``.

Code under test, in this process or in others, talks to it as to any S3 endpoint.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Credentials that the server takes; it takes any.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAFAKEFAKEFAKEFAKE",
    "AWS_SECRET_ACCESS_KEY": "fake-secret-key-of-the-fake-server",
}
REGION = "us-east-1"


@dataclass(frozen=True)
class Request:
    """One request as it reached the server. ``path`` and ``query`` are as sent, percent-encoded."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


#: Status line, headers and body to answer with.
Answer = tuple[str, list[tuple[str, str]], bytes]


@dataclass
class FakeS3:
    """A running server.

    Attributes:
        url: its endpoint.
        requests: every request so far, in order of arrival.
        intercept: called with each request before the server sees it; an answer it returns is sent instead. It may
            block, to delay the request.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    intercept: Callable[[Request], Answer | None] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What makes botocore talk to this server: endpoint, region and credentials."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            **CREDENTIALS,
        }


@contextlib.contextmanager
def fake_s3(buckets: Iterable[str] = ("state",)) -> Iterator[FakeS3]:
    """Run moto's S3 server on a free port of the loopback interface, with the empty ``buckets``.

    Entering it again while it runs gives another address to the same buckets: moto keeps one account a process.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class QuietHandler(WSGIRequestHandler):
        # For Expect: 100-continue; werkzeug closes each connection all the same, where S3 keeps it.
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any, **__: Any) -> None:
            """Log nothing."""

    server = FakeS3()
    moto = DomainDispatcherApplication(create_backend_app)
    moto_lock = threading.Lock()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, _, query = environ["RAW_URI"].partition("?")
        headers = {k[5:].replace("_", "-").lower(): v for k, v in environ.items() if k.startswith("HTTP_")}
        request = Request(environ["REQUEST_METHOD"], path, query, headers)
        server.requests.append(request)
        answer = server.intercept(request) if server.intercept else None
        if answer is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, answer_headers, body = answer
            # An answer with a Content-Length of its own can be cut off.
            if not any(name.lower() == "content-length" for name, _ in answer_headers):
                answer_headers = [*answer_headers, ("Content-Length", str(len(body)))]
            start_response(status, answer_headers)
            return [body]
        # moto's state is not made for threads.
        with moto_lock:
            return list(moto(environ, start_response))

    listener = make_server("127.0.0.1", 0, application, threaded=True, request_handler=QuietHandler)
    server.url = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, name="fake-s3", daemon=True)
    thread.start()
    try:
        _reset(server, buckets)
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def _reset(server: FakeS3, buckets: Iterable[str]) -> None:
    from urllib.request import Request as HttpRequest
    from urllib.request import urlopen

    urlopen(HttpRequest(f"{server.url}/moto-api/reset", method="POST")).close()  # noqa: S310
    for bucket in buckets:
        authorization = f"AWS4-HMAC-SHA256 Credential=x/20260101/{REGION}/s3/aws4_request"
        headers = {"Authorization": authorization}
        urlopen(HttpRequest(f"{server.url}/{bucket}", method="PUT", headers=headers)).close()  # noqa: S310
    server.requests.clear()
