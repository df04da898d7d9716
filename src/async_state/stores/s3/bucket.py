"""A bucket that is open on the I/O thread: its credentials, its direct way, and its client where one is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import NoCredentialsError

from async_state import threads
from async_state.stores.opened import Opened
from async_state.stores.s3 import _botocore, prefork
from async_state.stores.s3.client import Client, error_of, open_client
from async_state.stores.s3.direct import Direct, connections
from async_state.stores.s3.endpoint import Endpoint
from async_state.stores.s3.options import S3Options
from async_state.stores.s3.session import new_session

if TYPE_CHECKING:
    from aiobotocore.session import AioSession


@asynccontextmanager
async def open_bucket(options: S3Options) -> AsyncIterator[Bucket]:
    """Open the bucket, and retire it in the end.

    Raises:
        NoCredentialsError: botocore's chain found none this time.
    """
    bucket = Bucket(options, new_session(options))
    try:
        await bucket.open()
        yield bucket
    finally:
        await bucket.retire()


class Bucket(Opened):
    """One bucket's connections, made when they are first needed.

    Args:
        options: the bucket and how to reach it.
        session: has its region, and its credentials unless they are botocore's to find.

    Attributes:
        direct: sends requests past the client, where it can.
    """

    def __init__(self, options: S3Options, session: AioSession) -> None:
        super().__init__()
        self._options = options
        self._session = session
        self._opening = asyncio.Lock()
        self._credentials: Any = None
        self.direct: Direct | None = None
        self._client: Client | None = None

    async def open(self) -> None:
        """Find credentials, and the way that requests take."""
        with error_of("GetCredentials"):
            self._credentials = await self._session.get_credentials()
        if self._credentials is None:
            raise NoCredentialsError
        endpoint = await prefork.endpoint(self._options, self._session)
        if endpoint is not None:
            self.direct = await self._open_direct(endpoint)

    @property
    def provider(self) -> str:
        """What botocore calls the provider of the credentials."""
        return str(self._credentials.method)

    @property
    def ca_bundle(self) -> str | None:
        """The file of authorities that is trusted; ``None`` for botocore's own."""
        return _botocore.ca_bundle(self._session)

    async def client(self) -> Client:
        """Return the client, which is built when it is first asked for."""
        async with self._opening:
            if self._client is None:
                client = await self._stack.enter_async_context(open_client(self._options, self._session))
                self._client = Client(client, self._options.bucket)
            return self._client

    async def _open_direct(self, endpoint: Endpoint) -> Direct | None:
        context = None
        if endpoint.object_url.startswith("https:"):
            context = await threads.call(_botocore.tls_context, self.ca_bundle)
            if context is None:
                return None
        http = await self._stack.enter_async_context(connections(self._options, context))
        return Direct(endpoint, self._credentials, http)
