"""What `FakeS3.failing` can do to a request: each function here returns a fault.

    with fake_s3() as s3, s3.failing(faults.reset_before_answer(), times=1, method="PUT"):
        ...

They act on real sockets: a reset is a TCP RST, and an answer that is cut off ends with the connection's closing. Those
that spoil an answer take another fault that makes it: ``truncated_body(error(500, "InternalError"))`` is an error
whose body is cut off; without one they spoil what S3 itself answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

#: Status line, headers and body to answer with.
Answer = tuple[str, list[tuple[str, str]], bytes]

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_CHECKSUM_WORDS: Final = ("checksum", "crc32", "etag")


@dataclass(frozen=True)
class Request:
    """One request as it reached the server. ``path`` and ``query`` are as sent, percent-encoded."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class ConnectionDropped(Exception):  # noqa: N818 - this is how a fault ends its exchange, and no error
    """Raised by a fault to close the connection, with RST where ``reset`` is true."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


@dataclass(frozen=True)
class Exchange:
    """A request to be answered, for those who write a fault of their own.

    Attributes:
        request: the request, whose body was read.
        body: that body.
        carry_out: has S3 carry the request out with the body given, and returns its answer.
        send_bytes: sends bytes as they are.
        over: is set when the fault is no longer in force; whatever waits must then go on.
        head: makes the status line and headers of an answer, with a Content-Length if it has none.
    """

    request: Request
    body: bytes
    carry_out: Callable[[bytes], Answer]
    send_bytes: Callable[[bytes], None]
    over: threading.Event
    head: Callable[[Answer], bytes]

    def send(self, answer: Answer) -> None:
        """Send the whole answer."""
        content = b"" if self.request.method == "HEAD" else answer[2]
        self.send_bytes(self.head(answer) + content)


def _carried_out(exchange: Exchange) -> Answer:
    return exchange.carry_out(exchange.body)


@dataclass(frozen=True)
class Fault:
    """How a request is answered.

    Parameters:
        answer: makes the answer; by default S3 carries the request out and answers.
        send: sends it; by default whole. It raises `ConnectionDropped` to close the connection.
    """

    answer: Callable[[Exchange], Answer] = _carried_out
    send: Callable[[Exchange, Answer], None] = Exchange.send

    def __call__(self, exchange: Exchange) -> None:
        """Answer the request."""
        self.send(exchange, self.answer(exchange))


_S3: Final = Fault()


def latency(seconds: float, of: Fault = _S3) -> Fault:
    """Wait before the request is carried out."""

    def answer(exchange: Exchange) -> Answer:
        exchange.over.wait(seconds)
        return of.answer(exchange)

    return replace(of, answer=answer)


def error(status: int, code: str, message: str = "said by a fault", headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with an S3 error and do not carry the request out.

    Parameters:
        status: HTTP status, such as 500.
        code: S3's name for the error, such as ``InternalError``.
        message: S3's text.
        headers: more headers, such as ``x-amz-bucket-region``. The request id is ``FAULT``.
    """
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    named = {"Content-Type": "application/xml", "x-amz-request-id": "FAULT", **(headers or {})}
    return respond(f"{status} {code}", named, body.encode())


def slow_down() -> Fault:
    """Answer 503 SlowDown, which S3 does to those who ask too much."""
    return error(503, "SlowDown", "Please reduce your request rate.")


def respond(status: str, headers: Mapping[str, str], body: bytes) -> Fault:
    """Answer with a status line such as ``"200 OK"``, headers and a body, and do not carry the request out."""
    return Fault(answer=lambda _: (status, list(headers.items()), body))


def reset_before_answer() -> Fault:
    """Read the request, do not carry it out, and reset the connection."""

    def answer(_: Exchange) -> Answer:
        raise ConnectionDropped(reset=True)

    return Fault(answer=answer)


def reset_after_carrying_out() -> Fault:
    """Carry the request out, and reset the connection instead of answering: the client can't know that it is done."""

    def send(_: Exchange, __: Answer) -> None:
        raise ConnectionDropped(reset=True)

    return Fault(send=send)


def closed_before_answer() -> Fault:
    """As `reset_before_answer`, but close the connection properly, as a server that ends does."""

    def answer(_: Exchange) -> Answer:
        raise ConnectionDropped(reset=False)

    return Fault(answer=answer)


def reset_after_headers(of: Fault = _S3) -> Fault:
    """Carry the request out, send status and headers, and reset the connection."""
    return _cut(of, lambda _: 0, reset=True)


def reset_in_body(of: Fault = _S3) -> Fault:
    """Carry the request out, send half of the answer's body, and reset the connection."""
    return _cut(of, lambda body: len(body) // 2, reset=True)


def truncated_body(of: Fault = _S3, *, missing: int = 1) -> Fault:
    """Leave the last ``missing`` bytes of the body out, under a Content-Length that counts them, and close.

    An answer without a body gets a Content-Length that promises one.
    """
    return _cut(of, lambda body: max(len(body) - missing, 0), reset=False)


def stalled_body(of: Fault = _S3) -> Fault:
    """Send status, headers and half of the body, and no more until the fault is no longer in force; then reset."""
    return _cut(of, lambda body: len(body) // 2, reset=True, stall=True)


def _cut(of: Fault, sent: Callable[[bytes], int], *, reset: bool, stall: bool = False) -> Fault:
    def send(exchange: Exchange, answer: Answer) -> None:
        status, headers, body = answer
        if not body:
            # Or the answer would be whole without its body.
            status = "200 OK" if status.startswith("204") else status
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", "1"))
        exchange.send_bytes(exchange.head((status, headers, body)) + body[: sent(body)])
        if stall:
            exchange.over.wait()
        raise ConnectionDropped(reset=reset)

    return replace(of, send=send)


def corrupted_body(of: Fault = _S3) -> Fault:
    """Flip one bit of the byte in the middle of the answer's body; its length stays."""

    def answer(exchange: Exchange) -> Answer:
        status, headers, body = of.answer(exchange)
        middle = len(body) // 2
        return (
            status,
            headers,
            body[:middle] + bytes(byte ^ 1 for byte in body[middle : middle + 1]) + body[middle + 1 :],
        )

    return replace(of, answer=answer)


def wrong_checksum(of: Fault = _S3) -> Fault:
    """Change every checksum in the answer's headers (ETag, x-amz-checksum-…, …-crc32), and leave its body whole."""

    def changed(name: str, value: str) -> str:
        if not any(word in name.lower() for word in _CHECKSUM_WORDS):
            return value
        return "".join("1" if c == "0" else "0" if c.isalnum() else c for c in value)

    def answer(exchange: Exchange) -> Answer:
        status, headers, body = of.answer(exchange)
        return status, [(name, changed(name, value)) for name, value in headers], body

    return replace(of, answer=answer)


def slow_drip(size: int = 1, seconds: float = 0.05, of: Fault = _S3) -> Fault:
    """Send the whole answer, head and body, ``size`` bytes at a time with a pause of ``seconds`` after each.

    Pauses end when the fault is no longer in force.
    """

    def send(exchange: Exchange, answer: Answer) -> None:
        data = exchange.head(answer) + answer[2]
        for start in range(0, len(data), size):
            exchange.send_bytes(data[start : start + size])
            exchange.over.wait(seconds)

    return replace(of, send=send)


def never_answers() -> Fault:
    """Read the request and do nothing until the fault is no longer in force; then reset the connection."""

    def answer(exchange: Exchange) -> Answer:
        exchange.over.wait()
        raise ConnectionDropped(reset=True)

    return Fault(answer=answer)


def delete_errors(
    keys: Collection[str] | Callable[[str], bool], code: str = "InternalError", message: str = "said by a fault"
) -> Fault:
    """Carry out DeleteObjects but for some keys, and answer 200 with an error for each of these and no word of others.

    Parameters:
        keys: the keys that fail, as S3 knows them; or what tells whether one does.
        code: S3's name for the error.
        message: S3's text.
    """

    def fails(key: str) -> bool:
        return keys(key) if callable(keys) else key in keys

    def answer(exchange: Exchange) -> Answer:
        asked = ElementTree.fromstring(exchange.body)  # noqa: S314 - made by the code under test
        for element in asked.iter():
            # Or it would be written with a prefix, which moto does not know.
            element.tag = element.tag.rpartition("}")[2]
        failed = []
        for item in asked.findall("Object"):
            key = item.findtext("Key") or ""
            if fails(key):
                failed.append(key)
                asked.remove(item)
        if asked.find("Object") is not None:
            exchange.carry_out(ElementTree.tostring(asked))
        errors = "".join(
            f"<Error><Key>{escape(key)}</Key><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
            for key in failed
        )
        body = f'<?xml version="1.0"?><DeleteResult xmlns="{_NAMESPACE}">{errors}</DeleteResult>'
        return "200 OK", [("Content-Type", "application/xml"), ("x-amz-request-id", "FAULT")], body.encode()

    return Fault(answer=answer)
