"""How a test tells which requests went past botocore's client."""

from __future__ import annotations

from async_state.testing import Request

#: The client sends it with each request.
SDK_HEADER = "amz-sdk-invocation-id"


def went_directly(request: Request) -> bool:
    """Tell whether the request was not sent by the client."""
    return SDK_HEADER not in request.headers
