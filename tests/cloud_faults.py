"""Errors of Azure's and Google's, as these services word them, for `FakeServer.failing`; and of parts of a batch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Final
from urllib.parse import unquote
from xml.sax.saxutils import escape

from async_state.testing import faults
from async_state.testing.faults import Answer, Exchange, Fault

_MESSAGE: Final = "said by a fault"

# The call in a part of a batch, and the object that it names: Google's path, and Azure's under an account's address.
_CALL: Final = re.compile(rb"^(?:[A-Z]+) (?:/storage/v1/b/[^/ ]+/o|/[^/ ]+/[^/ ]+)/([^? ]+)\S* HTTP/1\.1", re.MULTILINE)
_CONTENT_ID: Final = re.compile(rb"^content-id: *(\S+)", re.MULTILINE | re.IGNORECASE)


def azure_error(status: int, code: str, message: str = _MESSAGE, headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with an error of Azure's blobs and do not carry the request out.

    Parameters:
        status: HTTP status, such as 503.
        code: Azure's name for the error, such as ``ServerBusy``.
        message: Azure's text.
        headers: more headers, such as ``Retry-After``. The request id is ``FAULT``.
    """
    named, body = _azure(code, message)
    return faults.respond(f"{status} {code}", {**named, **(headers or {})}, body)


def gcs_error(status: int, reason: str, message: str = _MESSAGE, headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with an error of Google's JSON interface and do not carry the request out.

    Parameters:
        status: HTTP status, such as 429.
        reason: Google's name for the error, such as ``rateLimitExceeded``.
        message: Google's text.
        headers: more headers, such as ``Retry-After``.
    """
    named, body = _gcs(status, reason, message)
    return faults.respond(f"{status} {reason}", {**named, **(headers or {})}, body)


def azure_batch_errors(
    keys: Collection[str] | Callable[[str], bool], status: int = 500, code: str = "InternalError"
) -> Fault:
    """Carry out a batch but for some blobs, and answer each of these with an error.

    Parameters:
        keys: the blobs that fail, as Azure names them in the container; or what tells whether one does.
        status: the HTTP status of each.
        code: Azure's name for the error.
    """
    headers, body = _azure(code, _MESSAGE)
    return _batch_errors(keys, _part(f"{status} {code}", headers, body), "202 Accepted", id_of=lambda given: given)


def gcs_batch_errors(
    keys: Collection[str] | Callable[[str], bool], status: int = 503, reason: str = "backendError"
) -> Fault:
    """Carry out a batch but for some objects, and answer each of these with an error.

    Parameters:
        keys: the objects that fail, as Google names them in the bucket; or what tells whether one does.
        status: the HTTP status of each.
        reason: Google's name for the error.
    """
    headers, body = _gcs(status, reason, _MESSAGE)
    return _batch_errors(
        keys,
        _part(f"{status} {reason}", headers, body),
        "200 OK",
        id_of=lambda given: b"<response-" + given.removeprefix(b"<").removesuffix(b">") + b">",
    )


def _azure(code: str, message: str) -> tuple[dict[str, str], bytes]:
    text = f"{escape(message)}\nRequestId:FAULT\nTime:2026-01-01T00:00:00.0000000Z"
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'
    return {"Content-Type": "application/xml", "x-ms-error-code": code, "x-ms-request-id": "FAULT"}, body.encode()


def _gcs(status: int, reason: str, message: str) -> tuple[dict[str, str], bytes]:
    errors = [{"message": message, "domain": "global", "reason": reason}]
    body = json.dumps({"error": {"code": status, "message": message, "errors": errors}})
    return {"Content-Type": "application/json; charset=UTF-8"}, body.encode()


def _part(status: str, headers: Mapping[str, str], body: bytes) -> bytes:
    named = {**headers, "Content-Length": str(len(body))}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    return "\r\n".join(lines).encode() + body + b"\r\n"


def _batch_errors(
    keys: Collection[str] | Callable[[str], bool], error: bytes, status: str, id_of: Callable[[bytes], bytes]
) -> Fault:
    def fails(part: bytes) -> bool:
        call = _CALL.search(part)
        assert call, f"not a call on an object: {part!r}"
        key = unquote(call[1].decode())
        return keys(key) if callable(keys) else key in keys

    def answer(exchange: Exchange) -> Answer:
        delimiter = _delimiter(exchange.request.headers["content-type"])
        first, *calls, last = exchange.body.split(delimiter)
        kept = [call for call in calls if not fails(call)]
        # A batch of nothing would be refused.
        done = exchange.carry_out(delimiter.join([first, *kept, last])) if kept else None
        # Both servers answer the calls in their order.
        answers = iter(done[2].split(_delimiter(_header(done, "content-type")))[1:-1] if done else [])
        parts = []
        for call in calls:
            if fails(call):
                given = _CONTENT_ID.search(call)
                name = b"Content-ID: " + id_of(given[1]) + b"\r\n" if given else b""
                parts.append(b"\r\nContent-Type: application/http\r\n" + name + b"\r\n" + error)
            else:
                parts.append(next(answers))
        content_type = "multipart/mixed; boundary=batch_FAULT"
        body = b"--batch_FAULT".join([b"", *parts, b"--\r\n"])
        return done[0] if done else status, [("Content-Type", content_type)], body

    return Fault(answer=answer)


def _delimiter(content_type: str) -> bytes:
    return b"--" + content_type.partition("boundary=")[2].strip('"').encode()


def _header(answer: Answer, name: str) -> str:
    return next(value for given, value in answer[1] if given.lower() == name)
