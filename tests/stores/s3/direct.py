"""How a test tells which requests went past botocore's client, and has none do so."""

from __future__ import annotations

import pytest

from async_state.stores.s3 import prefork
from async_state.testing import Request

#: The client sends it with each request.
SDK_HEADER = "amz-sdk-invocation-id"


def went_directly(request: Request) -> bool:
    """Tell whether the request was not sent by the client."""
    return SDK_HEADER not in request.headers


def send_nothing_directly(patch: pytest.MonkeyPatch) -> None:
    """Have all requests go through the client, as behind a proxy."""

    async def nowhere(*_: object) -> None:
        return None

    patch.setattr(prefork, "endpoint", nowhere)
