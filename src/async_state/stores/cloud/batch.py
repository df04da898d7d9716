"""Many requests in one HTTP exchange: ``multipart/mixed`` with a request or an answer in each part (RFC 2046).

Google's JSON interface and Azure's Blob Batch have the same format.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from email.parser import BytesHeaderParser
from typing import Final, NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from async_state.stores.cloud.errors import NotCloudError
from async_state.stores.cloud.http import Answer

_STATUS: Final = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})[^\r\n]*\r?\n")
_NUMBER: Final = re.compile(r"(\d+)>?$")


class Part(NamedTuple):
    """One request of a batch: its method, its URL's path with the query, and its headers."""

    method: str
    target: str
    headers: Mapping[str, str]


def compose(parts: Iterable[Part]) -> tuple[str, bytes]:
    """Return the content type and the body of a batch of requests without content."""
    boundary = f"batch_{secrets.token_hex(16)}"
    lines: list[str] = []
    for number, part in enumerate(parts):
        lines += [f"--{boundary}", "Content-Type: application/http", "Content-Transfer-Encoding: binary"]
        lines += [f"Content-ID: {number}", "", f"{part.method} {part.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in part.headers.items()]
        lines += ["", ""]
    lines += [f"--{boundary}--", ""]
    return f"multipart/mixed; boundary={boundary}", "\r\n".join(lines).encode()


def answers(answer: Answer, count: int) -> list[Answer]:
    """Return the answers in a batch's answer, in the order of the requests.

    Args:
        answer: To the batch.
        count: How many requests it had.

    Raises:
        NotCloudError: It is no such answer, or one to a request is missing.
    """
    boundary = re.search(r'boundary="?([^";]+)', answer.headers.get("Content-Type", ""))
    if boundary is None:
        raise NotCloudError("the answer to a batch is no multipart document")
    found: dict[int, Answer] = {}
    for part in answer.content.split(f"--{boundary[1]}".encode())[1:]:
        head, _, inner = part.strip(b"\r\n").replace(b"\r\n", b"\n").partition(b"\n\n")
        status = _STATUS.match(inner)
        number = _NUMBER.search(_headers(head).get("Content-ID", ""))
        if status is None or number is None:
            continue
        inner_head, _, content = inner[status.end() :].partition(b"\n\n")
        found[int(number[1])] = Answer(int(status[1]), _headers(inner_head), content.strip())
    if sorted(found) != list(range(count)):
        raise NotCloudError(f"a batch of {count} requests has {len(found)} answers")
    return [found[number] for number in range(count)]


def _headers(head: bytes) -> CIMultiDictProxy[str]:
    parsed = BytesHeaderParser().parsebytes(head.lstrip(b"\n"))
    return CIMultiDictProxy(CIMultiDict((name, str(value)) for name, value in parsed.items()))
