"""TLS in front of a server of plain HTTP, with certificates of an authority made here."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import trustme


def authority(directory: Path) -> tuple[Path, Path]:
    """Make an authority, and a certificate for 127.0.0.1; return the file of each, the latter's with its key."""
    ca = trustme.CA()
    bundle, chain = directory / f"{id(ca)}-ca.pem", directory / f"{id(ca)}-server.pem"
    ca.cert_pem.write_to_path(bundle)
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(chain)
    return bundle, chain


class Terminator:
    """Takes connections with TLS and hands what they carry to ``target``, a port of this machine."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._context: ssl.SSLContext | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def show(self, chain: Path) -> None:
        """Show this certificate from now on, on new connections; those there are end."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        self._context = context
        self._end_connections()

    def close(self) -> None:
        self._listener.close()
        self._end_connections()

    def _end_connections(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        assert self._context is not None
        with contextlib.suppress(OSError), client, self._context.wrap_socket(client, server_side=True) as inside:
            self._open.add(inside)
            try:
                with socket.create_connection(("127.0.0.1", self._target)) as target:
                    back = threading.Thread(target=_copy, args=(target, inside), daemon=True)
                    back.start()
                    _copy(inside, target)
                    back.join()
            finally:
                self._open.discard(inside)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def terminator(target: str) -> Iterator[Terminator]:
    """Put TLS in front of the server at the URL ``target``."""
    made = Terminator(int(target.rpartition(":")[2]))
    try:
        yield made
    finally:
        made.close()
