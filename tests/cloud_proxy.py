"""What stands before servers of other clouds, so that tests count, delay and spoil requests as they do with FakeS3."""

from __future__ import annotations

import contextlib
import http.client
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from async_state.testing.faults import Answer, ConnectionDropped, Request
from async_state.testing.server import FakeServer, hang_up, head_of, reset

#: What carries out a request with a body.
CarryOut = Callable[[Request, bytes], Answer]

# They belong to one connection, and not to what it carries.
_HOP_BY_HOP: Final = {"connection", "keep-alive", "transfer-encoding"}

# Node's servers close a connection that has rested for five seconds, and one could be used just then.
_REST_SECONDS: Final = 1.0


class Upstream:
    """A connection to the real server, at a port of the loopback interface."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._used = 0.0

    def ask(self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        """Send a request and return the answer."""
        if time.monotonic() - self._used > _REST_SECONDS:
            self.close()
        headers = {"host": "127.0.0.1", **(headers or {})}
        self._connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() not in {*_HOP_BY_HOP, "content-length"}:
                self._connection.putheader(name, value)
        self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body)
        response = self._connection.getresponse()
        content = response.read()
        self._used = time.monotonic()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
        return f"{response.status} {response.reason}", kept, content

    def close(self) -> None:
        """Close the connection; asking makes another."""
        self._connection.close()


@contextlib.contextmanager
def serving(server: FakeServer, connected: Callable[[], contextlib.AbstractContextManager[CarryOut]]) -> Iterator[None]:
    """Take requests at ``server.url``, which this sets, and answer them as ``server`` is told.

    Parameters:
        server: what tests look at and tell what to do.
        connected: entered once for each connection; gives what carries out its requests, one at a time.
    """

    class Handler(BaseHTTPRequestHandler):
        # Connections are kept, as the clouds keep them.
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        reset = False

        def setup(self) -> None:
            super().setup()
            server._opened(self.connection, self.client_address)

        def handle(self) -> None:
            # The client has gone, or the server has.
            with contextlib.suppress(OSError), connected() as self.carry_out:
                super().handle()

        def finish(self) -> None:
            try:
                if self.reset:
                    reset(self.connection, self.rfile)
                else:
                    super().finish()
            finally:
                server._closed(self.connection)

        def answer(self) -> None:
            if "Transfer-Encoding" in self.headers:
                self.send_error(HTTPStatus.LENGTH_REQUIRED)
                self.close_connection = True
                return
            path, _, query = self.path.partition("?")
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, path, query, headers)
            try:
                server._answer(
                    request,
                    read=lambda: self.rfile.read(int(headers.get("content-length", 0))),
                    carry_out=lambda body: self.carry_out(request, body),
                    connection=self.connection,
                    head=lambda answer: head_of(answer, self.date_time_string(), close=self.close_connection),
                )
            except ConnectionDropped as e:
                self.close_connection = True
                self.reset = e.reset

        do_DELETE = do_GET = do_HEAD = do_PATCH = do_POST = do_PUT = answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128
        accepting = threading.Event()

        def get_request(self) -> Any:
            self.accepting.wait()
            return super().get_request()

    with Listener(("127.0.0.1", 0), Handler) as listener:
        listener.accepting.set()
        server._listener = listener
        server.url = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,), name="cloud-proxy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown()
            thread.join()
            hang_up(server)
