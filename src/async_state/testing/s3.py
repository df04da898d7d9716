"""A real S3 server over HTTP, in this process. Needs ``moto[s3,server]``.

Code under test, in this process or in others, talks to it as to any S3 endpoint, through real sockets, and it fails as
`async_state.testing.faults` has it.
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from async_state.testing.faults import Answer, ConnectionDropped, Exchange, Fault, Request

#: Credentials that the server takes; it takes any.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAFAKEFAKEFAKEFAKE",
    "AWS_SECRET_ACCESS_KEY": "fake-secret-key-of-the-fake-server",
}
REGION = "us-east-1"


class Failing:
    """A fault in force, as `FakeS3.failing` yields it.

    Attributes:
        requests: the requests that it hit so far.
    """

    def __init__(self, fault: Fault, times: int | None, matches: Callable[[Request], bool]) -> None:
        self.requests: list[Request] = []
        self._fault = fault
        self._left = times
        self._matches = matches
        self._over = threading.Event()

    def _takes(self, request: Request) -> bool:
        if self._left == 0 or not self._matches(request):
            return False
        if self._left is not None:
            self._left -= 1
        self.requests.append(request)
        return True


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
    _faults: list[Failing] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _connections: dict[socket.socket, object] = field(default_factory=dict, repr=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)
    _listener: Any = field(default=None, repr=False)

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
    def failing(
        self,
        fault: Fault,
        *,
        times: int | None = None,
        method: str | None = None,
        path: str | None = None,
        when: Callable[[Request], bool] | None = None,
    ) -> Iterator[Failing]:
        """Answer matching requests as ``fault`` says, until the block ends. Where several match, the oldest is taken.

        Parameters:
            fault: what to do; see `async_state.testing.faults`.
            times: hit so many matching requests, and then no more; ``None`` hits every one.
            method: only requests of this method. DeleteObjects is ``POST``.
            path: only requests whose path, percent-encoded as it was sent, contains this.
            when: only requests for which this returns true.

        Yields:
            The fault in force, which tells what it hit.
        """

        def matches(request: Request) -> bool:
            return (
                (method is None or request.method == method)
                and (path is None or path in request.path)
                and (when is None or when(request))
            )

        failing = Failing(fault, times, matches)
        with self._lock:
            self._faults.append(failing)
        try:
            yield failing
        finally:
            with self._lock:
                self._faults.remove(failing)
            failing._over.set()

    @contextlib.contextmanager
    def not_accepting(self) -> Iterator[None]:
        """Take no connection until the block ends, as a host does whose queue is full: connecting gets no answer."""
        with contextlib.ExitStack() as stack:
            self._listener.accepting.clear()
            stack.callback(self._listener.accepting.set)
            self._listener.socket.listen(0)
            stack.callback(self._listener.socket.listen, self._listener.request_queue_size)
            # Fills the queue: when a connection is not made within this time, Linux drops what asks for one.
            with contextlib.suppress(TimeoutError):
                while True:
                    stack.enter_context(socket.create_connection(self._listener.server_address, timeout=0.1))
            yield

    def wait_until_idle(self, seconds: float = 5) -> None:
        """Wait until no connection to the server is open, and none waits to be accepted.

        Raises:
            TimeoutError: one is, after so many seconds.
        """
        # They are accepted in the order in which they were made.
        with socket.create_connection(self._listener.server_address) as last, self._changed:
            accepted = self._changed.wait_for(lambda: last.getsockname() in self._connections.values(), seconds)
        with self._changed:
            if not (accepted and self._changed.wait_for(lambda: not self._connections, seconds)):
                raise TimeoutError(f"{len(self._connections)} connections to {self.url} are still open")

    def _fault_for(self, request: Request) -> Failing | None:
        with self._lock:
            self.requests.append(request)
            return next((failing for failing in self._faults if failing._takes(request)), None)

    def _opened(self, connection: socket.socket, client: object) -> None:
        with self._changed:
            self._connections[connection] = client
            self._changed.notify_all()

    def _closed(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.pop(connection, None)
            self._changed.notify_all()


@contextlib.contextmanager
def fake_s3(buckets: Iterable[str] = ("state",), *, keep_alive: bool = False) -> Iterator[FakeS3]:
    """Run moto's S3 server on a free port of the loopback interface, with the empty ``buckets``.

    Entering it again while it runs gives another address to the same buckets: moto keeps one account a process.

    Parameters:
        buckets: the buckets that exist; all others, and all objects, are forgotten.
        keep_alive: take further requests on a connection, as S3 does. Otherwise each takes one.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

    server = FakeS3()
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
                    # With no time to linger, closing sends RST, unless a FIN goes before it, as it would in `super`.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.rfile.close()
                    self.connection.close()
                else:
                    super().finish()
            finally:
                server._closed(self.connection)

        def run_wsgi(self) -> None:
            self.close_connection = self.close_connection or not keep_alive
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            environ = self.make_environ()
            path, _, query = environ["RAW_URI"].partition("?")
            headers = {k[5:].replace("_", "-").lower(): v for k, v in environ.items() if k.startswith("HTTP_")}
            request = Request(environ["REQUEST_METHOD"], path, query, headers)
            failing = server._fault_for(request)
            answer = server.intercept(request) if server.intercept else None
            length = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
            body = environ["wsgi.input"].read(length)
            exchange = Exchange(
                request,
                body,
                carry_out=lambda body: carry_out(environ, body),
                send_bytes=self.connection.sendall,
                over=failing._over if failing else threading.Event(),
                head=self._head,
            )
            try:
                if answer is not None:
                    exchange.send(answer)
                elif failing is not None:
                    failing._fault(exchange)
                else:
                    exchange.send(exchange.carry_out(body))
            except ConnectionDropped as e:
                self.close_connection = True
                self.reset = e.reset
            except OSError:
                # The client has gone.
                self.close_connection = True

        def _head(self, answer: Answer) -> bytes:
            status, headers, body = answer
            code = int(status.split()[0])
            names = {name.lower() for name, _ in headers}
            # An answer with a Content-Length of its own can be cut off.
            if "content-length" not in names and code not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
                headers = [*headers, ("Content-Length", str(len(body)))]
            if "date" not in names:
                headers = [*headers, ("Date", self.date_time_string())]
            if self.close_connection:
                headers = [*headers, ("Connection", "close")]
            lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
            return "\r\n".join(lines).encode("latin-1")

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
        for connection in list(server._connections):
            # Its thread waits for another request, which ends that.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _reset(server: FakeS3, buckets: Iterable[str]) -> None:
    from urllib.request import Request as HttpRequest
    from urllib.request import urlopen

    urlopen(HttpRequest(f"{server.url}/moto-api/reset", method="POST")).close()  # noqa: S310
    for bucket in buckets:
        authorization = f"AWS4-HMAC-SHA256 Credential=x/20260101/{REGION}/s3/aws4_request"
        headers = {"Authorization": authorization}
        urlopen(HttpRequest(f"{server.url}/{bucket}", method="PUT", headers=headers)).close()  # noqa: S310
    server.requests.clear()
