"""What happens beside each request of the client: it is counted, and its answer must be S3's."""

from __future__ import annotations

import io
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

#: From this size on, asking first whether the store takes the body saves more than the round trip costs.
EXPECT_CONTINUE_FROM_BYTES: Final = 1024 * 1024

#: What the answers' bodies hold; nothing at all where it is empty.
_ANSWERS: Final = {
    "ListObjectsV2": b"ListBucketResult",
    "DeleteObjects": b"DeleteResult",
    "PutObject": b"",
    "DeleteObject": b"",
}


@dataclass
class Attempts:
    """How many requests an operation has sent, retries included."""

    sent: int = 0

    def __str__(self) -> str:
        return f"{self.sent} attempt{'s' * (self.sent != 1)}"


#: Of the running operation; `s3.S3Store` begins a new one for each. Not botocore's own count, which knows nothing of
#: what went past the client, and which connection errors and timeouts do not have.
attempts: ContextVar[Attempts] = ContextVar("async_state_attempts")


def count_attempt(**_: Any) -> None:
    """Count a request that is about to be sent."""
    attempts.get(Attempts()).sent += 1


def register(client: S3Client) -> None:
    """Have all of this done for the client."""
    events: Any = client.meta.events
    events.register_last("before-call.s3", _expect_only_for_large_bodies)
    events.register_first("before-send.s3", count_attempt)
    events.register_last("request-created.s3.GetObject", _read_within_the_attempt)
    events.register_first("after-call.s3.GetObject", _body_as_read)
    for operation in _ANSWERS:
        events.register_first(f"after-call.s3.{operation}", _check_answer)


def _expect_only_for_large_bodies(params: dict[str, Any], **_: Any) -> None:
    # botocore asks for it on every PUT from a file-like object, which it makes of every body: a second round trip.
    if int(params["headers"].get("Content-Length", _body_length(params))) < EXPECT_CONTINUE_FROM_BYTES:
        params["headers"].pop("Expect", None)


def _body_length(params: dict[str, Any]) -> int:
    body = params.get("body")
    return body.getbuffer().nbytes if isinstance(body, io.BytesIO) else len(body or b"")


def _read_within_the_attempt(request: Any, **_: Any) -> None:
    # Otherwise the body is read when the attempt is over, and one that is cut off, even an error's, ends the operation.
    request.stream_output = False


async def _body_as_read(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
    if "Body" in parsed:
        parsed["Body"] = await http_response.content


async def _check_answer(http_response: Any, model: Any, **_: Any) -> None:
    from botocore.parsers import ResponseParserError

    # botocore takes any document under 200 for success, so a proxy's page for an empty listing or a finished write.
    expected, content = _ANSWERS[model.name], await http_response.content
    if http_response.status_code < 300 and (expected not in content if expected else content.strip()):
        raise ResponseParserError(f"what answered {model.name} under {http_response.status_code} is not S3")
