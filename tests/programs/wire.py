"""Between a client and an S3 server: connections are counted, answers can be held."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

#: No test takes so many seconds, not even on a busy machine: whoever waits for so long gives up, and fails.
PATIENCE = 120


@dataclass
class Hold:
    """Answers that are held.

    Attributes:
        requests: matches the beginning of the requests that these answer.
        arrived: set once there is one.
        released: set it to let them go on.
        waiting: how many there are.
        overdue: one was not released in time.
    """

    requests: re.Pattern[bytes]
    seconds: float
    arrived: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0
    overdue: bool = False

    def wait(self) -> None:
        self.waiting += 1
        self.arrived.set()
        self.overdue |= not self.released.wait(self.seconds)
        self.waiting -= 1


@dataclass
class Relay:
    """Passes connections on to a server, which by itself would not tell whether its client is still there.

    Attributes:
        url: its endpoint.
        opened: how many connections clients have made so far.
        hung_up: how many of these the clients have closed.
    """

    url: str = ""
    opened: int = 0
    hung_up: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _hold: Hold | None = None

    def wait_for_hang_up(self, count: int) -> None:
        """Wait until clients have closed ``count`` connections in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.hung_up >= count, PATIENCE), "the connection is still open"

    @contextlib.contextmanager
    def hold(self, requests: bytes, seconds: float = PATIENCE) -> Iterator[Hold]:
        """Hold the answers to requests whose beginning matches, until released, for the length of the block."""
        self._hold = Hold(re.compile(requests), seconds)
        try:
            yield self._hold
        finally:
            self._hold.released.set()
            self._hold = None

    def serve(self, client: socket.socket, address: tuple[str, int]) -> None:
        """Pass on one connection."""
        with self._changed:
            self.opened += 1
        with socket.create_connection(address) as server:
            held: list[Hold] = []
            answers = threading.Thread(target=self._pass_answers, args=(server, client, held), daemon=True)
            answers.start()
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    if self._hold and self._hold.requests.match(data):
                        held.append(self._hold)
                    server.sendall(data)
            with self._changed:
                self.hung_up += 1
                self._changed.notify_all()
            _end(server)
            answers.join()

    def _pass_answers(self, server: socket.socket, client: socket.socket, held: list[Hold]) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if held:
                    held.pop().wait()
                client.sendall(data)
        _end(client)


@contextlib.contextmanager
def relay(url: str) -> Iterator[Relay]:
    """Run a relay to the server at ``url``."""
    made = Relay()
    server = urlsplit(url)
    assert server.hostname
    assert server.port
    address = (server.hostname, server.port)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            made.serve(self.request, address)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        listener.socket.listen(128)
        listener.block_on_close = False
        made.url = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,), name="relay", daemon=True)
        thread.start()
        try:
            yield made
        finally:
            listener.shutdown()
            thread.join()


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
