"""Test doubles of those who give out access tokens: Google's token endpoint, and Azure's for a managed identity.

Neither can be had here. They are real HTTP servers on the loopback interface, and the tokens are random text. What
google-auth and azure-identity send them is checked: Google's assertion with the account's public key, Azure's request
with the secret of its header. To fail, they are told as any server is: ``with tokens.failing(...)``.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from async_state.testing.faults import Answer, Request
from async_state.testing.server import FakeServer
from tests.cloud_proxy import serving

_JSON: Final = [("Content-Type", "application/json; charset=utf-8")]
_JWT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
# For whom google-auth signs, wherever it asks.
_AUDIENCE: Final = "https://oauth2.googleapis.com/token"
_STORAGE: Final = "https://storage.azure.com"


@dataclass
class TokenServer(FakeServer):
    """A running server that gives out access tokens.

    Attributes:
        lifetime: in how many seconds the tokens that it gives out from now on expire.
        issued: the tokens so far, each with the time at which it expires, in seconds of `time.monotonic`.
    """

    lifetime: int = 3600
    issued: dict[str, float] = field(default_factory=dict, repr=False)

    def accepts(self, authorization: str | None) -> bool:
        """Tell whether the header holds a token that was given out here, was not revoked and has not expired."""
        scheme, _, token = (authorization or "").partition(" ")
        return scheme == "Bearer" and time.monotonic() < self.issued.get(token, 0)

    def revoke(self) -> None:
        """Accept none of the tokens that were given out until now."""
        self.issued.clear()

    def _issue(self) -> str:
        token = f"token-{secrets.token_urlsafe(16)}"
        self.issued[token] = time.monotonic() + self.lifetime
        return token


@dataclass
class GoogleTokens(TokenServer):
    """Stands for Google's token endpoint.

    Attributes:
        credentials: the contents of a file of credentials, as of a service account whose key was made for this server.
        scopes: what each token was asked for.
    """

    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    scopes: list[str] = field(default_factory=list)
    _public_key: str = field(default="", repr=False)

    def write(self, path: Path) -> Path:
        """Write the file of credentials, and return where it is."""
        path.write_text(json.dumps(self.credentials))
        return path

    def answer(self, request: Request, body: bytes) -> Answer:
        """Give a token for an assertion that the account's key has signed."""
        import jwt

        asked = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if (request.method, request.path, asked.get("grant_type")) != ("POST", "/token", _JWT):
            return _refused("invalid_request", f"not a request for a token: {request}")
        try:
            claims = jwt.decode(asked["assertion"], self._public_key, algorithms=["RS256"], audience=_AUDIENCE)
        except jwt.InvalidTokenError as e:
            return _refused("invalid_grant", f"Invalid JWT Signature: {e}")
        if claims["iss"] != self.credentials["client_email"]:
            return _refused("invalid_grant", "Invalid grant: account not found")
        self.scopes.append(claims["scope"])
        return _given(access_token=self._issue(), expires_in=self.lifetime, token_type="Bearer")


@dataclass
class AzureTokens(TokenServer):
    """Stands for the endpoint that Azure's App Service gives to a managed identity.

    Of the sources that azure-identity knows, it takes its address from the environment, over plain HTTP, and asks no
    other server first.

    Attributes:
        header: the secret of the header ``X-IDENTITY-HEADER``.
    """

    header: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What makes azure-identity ask this server."""
        return {"IDENTITY_ENDPOINT": f"{self.url}/msi/token", "IDENTITY_HEADER": self.header}

    def answer(self, request: Request, _: bytes) -> Answer:
        """Give a token for Azure's storage."""
        asked = {name: values[0] for name, values in parse_qs(request.query).items()}
        if request.headers.get("x-identity-header") != self.header:
            return _refused("unauthorized_client", "the header X-IDENTITY-HEADER is wrong", "401 Unauthorized")
        if asked.get("resource", "").rstrip("/") != _STORAGE:
            return _refused("invalid_resource", f"not for {_STORAGE}: {request}")
        expires = int(time.time()) + self.lifetime
        return _given(
            access_token=self._issue(), expires_on=str(expires), resource=asked["resource"], token_type="Bearer"
        )


@contextlib.contextmanager
def google_tokens() -> Iterator[GoogleTokens]:
    """Run `GoogleTokens` on a free port of the loopback interface."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    server = GoogleTokens(_public_key=public.decode())
    with _serving(server):
        server.credentials = {
            "type": "service_account",
            "project_id": "tests",
            "private_key_id": secrets.token_hex(20),
            "private_key": private.decode(),
            "client_email": "worker@tests.iam.gserviceaccount.com",
            "client_id": "100000000000000000000",
            "token_uri": f"{server.url}/token",
        }
        yield server


@contextlib.contextmanager
def azure_tokens() -> Iterator[AzureTokens]:
    """Run `AzureTokens` on a free port of the loopback interface."""
    server = AzureTokens()
    with _serving(server):
        yield server


def _serving(server: GoogleTokens | AzureTokens) -> contextlib.AbstractContextManager[None]:
    return serving(server, lambda: contextlib.nullcontext(server.answer))


def _given(**fields: Any) -> Answer:
    return "200 OK", _JSON, json.dumps(fields).encode()


def _refused(error: str, description: str, status: str = "400 Bad Request") -> Answer:
    return status, _JSON, json.dumps({"error": error, "error_description": description}).encode()
