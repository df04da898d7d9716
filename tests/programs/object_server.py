"""A server that takes single objects as S3 does, keeps connections, and costs next to nothing.

It says its port, then waits for a line, and then says how many connections were open at once at the most.
"""

import asyncio
import sys

MISSING = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"
#: What comes back with an object.
KEPT = ("x-amz-meta-", "content-type:", "content-encoding:")

objects: dict[bytes, tuple[list[bytes], bytes]] = {}
now_open = most = 0


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        global now_open, most
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        now_open += 1
        most = max(most, now_open)

    def connection_lost(self, exc: Exception | None) -> None:
        global now_open
        now_open -= 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, _ = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        first, *headers = bytes(head).split(b"\r\n")
        length = sum(int(header[15:]) for header in headers if header.lower().startswith(b"content-length:"))
        size = len(head) + len(end) + length
        if len(self._received) < size:
            return
        body = bytes(self._received[size - length : size])
        del self._received[:size]
        method, path, _ = first.split()
        if method == b"PUT":
            objects[path] = [header for header in headers if header.decode("latin-1").lower().startswith(KEPT)], body
            self._answer(b"200 OK", [], b"")
        elif method == b"DELETE":
            objects.pop(path, None)
            self._answer(b"204 No Content", [], b"")
        elif path in objects:
            self._answer(b"200 OK", *objects[path])
        else:
            self._answer(b"404 Not Found", [b"Content-Type: application/xml"], MISSING)

    def _answer(self, status: bytes, headers: list[bytes], body: bytes) -> None:
        length = b"Content-Length: %d" % len(body)
        self._transport.write(b"\r\n".join([b"HTTP/1.1 " + status, length, *headers, b"", body]))


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    print(most, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
