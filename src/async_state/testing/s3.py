"""A real S3 server over HTTP, in this process. Needs ``moto[s3,server]``.

Code under test, in this process or in others, talks to it as to any S3 endpoint, through real sockets, and it fails as
`async_state.testing.faults` has it.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from async_state.testing.faults import Answer, ConnectionDropped, Request
from async_state.testing.server import FakeServer, hang_up, head_of, reset

#: Credentials that the server takes; it takes any.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAFAKEFAKEFAKEFAKE",
    "AWS_SECRET_ACCESS_KEY": "fake-secret-key-of-the-fake-server",
}
REGION = "us-east-1"


@dataclass
class FakeS3(FakeServer):
    """A running server of S3.

    Attributes:
        keep_alive: take further requests on a connection, as S3 does. Otherwise each takes one.
    """

    keep_alive: bool = False

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
def fake_s3(buckets: Iterable[str] = ("state",), *, keep_alive: bool = False) -> Iterator[FakeS3]:
    """Run moto's S3 server on a free port of the loopback interface, with the empty ``buckets``.

    Entering it again while it runs gives another address to the same buckets: moto keeps one account a process.

    Parameters:
        buckets: the buckets that exist; all others, and all objects, are forgotten.
        keep_alive: what `FakeS3.keep_alive` is at first.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

    server = FakeS3(keep_alive=keep_alive)
    moto = DomainDispatcherApplication(create_backend_app)
    s3 = create_backend_app("s3")
    moto_lock = threading.Lock()

    def carry_out(environ: dict[str, Any], body: bytes) -> Answer:
        collected: list[Any] = []
        environ = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        # To find out which service a request is for, moto looks through its whole directory.
        application = s3 if "/s3/aws4_request" in environ.get("HTTP_AUTHORIZATION", "") else moto
        # moto's state is not made for threads.
        with moto_lock:
            content = b"".join(application(environ, lambda status, headers, *_: collected.extend((status, headers))))
        status, headers = collected
        return status, headers, content

    class Handler(WSGIRequestHandler):
        # For Expect: 100-continue, and to keep connections.
        protocol_version = "HTTP/1.1"
        reset = False

        def setup(self) -> None:
            super().setup()
            server._opened(self.connection, self.client_address)

        def finish(self) -> None:
            try:
                if self.reset:
                    reset(self.connection, self.rfile)
                else:
                    super().finish()
            finally:
                server._closed(self.connection)

        def run_wsgi(self) -> None:
            self.close_connection = self.close_connection or not server.keep_alive
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            environ = self.make_environ()
            path, _, query = environ["RAW_URI"].partition("?")
            headers = {k[5:].replace("_", "-").lower(): v for k, v in environ.items() if k.startswith("HTTP_")}
            request = Request(environ["REQUEST_METHOD"], path, query, headers)
            length = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
            try:
                server._answer(
                    request,
                    read=lambda: environ["wsgi.input"].read(length),
                    carry_out=lambda body: carry_out(environ, body),
                    connection=self.connection,
                    head=lambda answer: head_of(answer, self.date_time_string(), close=self.close_connection),
                )
            except ConnectionDropped as e:
                self.close_connection = True
                self.reset = e.reset
            except OSError:
                # The client has gone.
                self.close_connection = True

        def log(self, *_: Any, **__: Any) -> None:
            """Log nothing."""

    class Server(ThreadedWSGIServer):
        accepting = threading.Event()

        def get_request(self) -> Any:
            self.accepting.wait()
            return super().get_request()

        def handle_error(self, *_: Any) -> None:
            """Say nothing of clients that go away."""

    listener = Server("127.0.0.1", 0, moto, handler=Handler)
    listener.accepting.set()
    server._listener = listener
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
        hang_up(server)


def _reset(server: FakeS3, buckets: Iterable[str]) -> None:
    from urllib.request import Request as HttpRequest
    from urllib.request import urlopen

    urlopen(HttpRequest(f"{server.url}/moto-api/reset", method="POST")).close()  # noqa: S310
    for bucket in buckets:
        authorization = f"AWS4-HMAC-SHA256 Credential=x/20260101/{REGION}/s3/aws4_request"
        headers = {"Authorization": authorization}
        urlopen(HttpRequest(f"{server.url}/{bucket}", method="PUT", headers=headers)).close()  # noqa: S310
    server.requests.clear()
