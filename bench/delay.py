"""A TCP proxy that holds back what the server answers: ``python -m bench.delay <host> <port> <ms>``.

Requests pass at once. Each piece that the server sends is passed on the delay after it came, so an answer costs one
delay however many pieces it has, and an interim ``100 Continue`` costs one of its own. Connections are kept as long as
both ends keep them. Nothing is held back when a receiver is slow: answers here are small.
"""

from __future__ import annotations

import asyncio
import collections
import sys


class _Server(asyncio.Protocol):
    """The connection to the server, of one client's connection."""

    def __init__(self, client: asyncio.Transport, delay: float) -> None:
        self._client = client
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        # What is to be passed on and when: timers of one time may fire in another order, so there is one at a time.
        self._held: collections.deque[tuple[float, bytes]] = collections.deque()

    def data_received(self, data: bytes) -> None:
        self._hold(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hold(b"")

    def _hold(self, data: bytes) -> None:
        self._held.append((self._loop.time() + self._delay, data))
        if len(self._held) == 1:
            self._loop.call_at(self._held[0][0], self._pass_on)

    def _pass_on(self) -> None:
        now = self._loop.time()
        while self._held and self._held[0][0] <= now:
            _, data = self._held.popleft()
            if data:
                self._client.write(data)
            else:
                self._client.close()
        if self._held:
            self._loop.call_at(self._held[0][0], self._pass_on)


class _Client(asyncio.Protocol):
    """A client's connection. What it sends before the server has accepted is kept until then."""

    def __init__(self, host: str, port: int, delay: float) -> None:
        self._address = host, port
        self._delay = delay
        self._early: list[bytes] = []
        self._server: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect(transport))

    async def _connect(self, client: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        try:
            server, _ = await loop.create_connection(lambda: _Server(client, self._delay), *self._address)
        except OSError:
            client.abort()
            return
        if client.is_closing():
            server.close()
        self._server = server
        for data in self._early:
            server.write(data)

    def data_received(self, data: bytes) -> None:
        if self._server is None:
            self._early.append(data)
        else:
            self._server.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._server is not None:
            self._server.close()


async def serve(host: str, port: int, delay: float) -> None:
    """Pass on what comes to a free port, which is printed, until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Client(host, port, delay), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000))
