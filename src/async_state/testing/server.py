"""What a server for tests lets itself be told: to count requests, to answer them differently, to fail."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from async_state.testing.faults import Answer, Exchange, Fault, Request


class Failing:
    """A fault in force, as `FakeServer.failing` yields it.

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
class FakeServer:
    """A running server that a test watches and disturbs.

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

    def _answer(
        self,
        request: Request,
        read: Callable[[], bytes],
        carry_out: Callable[[bytes], Answer],
        connection: socket.socket,
        head: Callable[[Answer], bytes],
    ) -> None:
        """Answer a request, or do to it what it was said to do.

        Parameters:
            request: the request, whose body is still to be read.
            read: reads it.
            carry_out: has the server carry the request out with the body given, and returns its answer.
            connection: where to answer.
            head: makes the status line and headers of an answer.

        Raises:
            ConnectionDropped: the connection is to be closed.
        """
        failing = self._fault_for(request)
        answer = self.intercept(request) if self.intercept else None
        body = read()
        over = failing._over if failing else threading.Event()
        exchange = Exchange(request, body, carry_out, connection.sendall, over, head)
        if answer is not None:
            exchange.send(answer)
        elif failing is not None:
            failing._fault(exchange)
        else:
            exchange.send(exchange.carry_out(body))


def head_of(answer: Answer, date: str, *, close: bool) -> bytes:
    """Make the status line and the headers of an answer, with the Content-Length and Date that it lacks."""
    status, headers, body = answer
    code = int(status.split()[0])
    names = {name.lower() for name, _ in headers}
    # An answer with a Content-Length of its own can be cut off.
    if "content-length" not in names and code not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        headers = [*headers, ("Content-Length", str(len(body)))]
    if "date" not in names:
        headers = [*headers, ("Date", date)]
    if close:
        headers = [*headers, ("Connection", "close")]
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def reset(connection: socket.socket, reader: Any) -> None:
    """Close a connection, and the file that reads from it, with RST."""
    # With no time to linger, closing sends RST, unless a FIN goes before it, as servers send one.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reader.close()
    connection.close()


def hang_up(server: FakeServer) -> None:
    """End the connections that are still open, each of whose threads waits for another request."""
    for connection in list(server._connections):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
