"""What is measured, each with the same few methods: this backend, what one would otherwise use, and bare clients.

A client is made, and its libraries imported, where that is to be measured; making one asks nothing of the server. Those
that only work on an event loop are opened on it first. Credentials, region and endpoint come from the environment, as
`bench.servers` sets it, and nothing else is configured but connections, and what is said of a client here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from bench.servers import BUCKET

#: What is put: 64 bytes, and JSON.
VALUE = '"' + 62 * "x" + '"'
#: Keys that are put and got.
#: A process has its own: rclone's server writes in place, so that a get beside another's put reads a part of it.
KEYS = [f"key-{os.getpid()}-{number}" for number in range(256)]
#: Connections that a client may have, where nothing else is said.
CONNECTIONS = 64


class Client:
    """A backend or a client that is measured.

    Attributes:
        name: by which figures name it.
        requires: the modules that must be installed for it.
        synchronous: whether it has `put` and `get`.
        asynchronous: whether it has `aput` and `aget`.
        clears: whether it has `clear`.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    synchronous: ClassVar[bool] = False
    asynchronous: ClassVar[bool] = False
    clears: ClassVar[bool] = False

    def __init__(self, endpoint: str, connections: int = CONNECTIONS) -> None:
        self.endpoint = endpoint
        self.connections = connections

    @classmethod
    def missing(cls) -> list[str]:
        """Return which of the required modules are not installed."""
        return [module for module in cls.requires if not _installed(module)]

    async def aopen(self) -> None:
        """Make what belongs to the running loop."""

    async def aclose(self) -> None:
        """Close what `aopen` made."""

    def close(self) -> None:
        """Close connections."""

    def put(self, key: str) -> None:
        """Write `VALUE`."""
        raise NotImplementedError

    def get(self, key: str) -> str:
        """Read it."""
        raise NotImplementedError

    async def aput(self, key: str) -> None:
        """Write `VALUE`."""
        raise NotImplementedError

    async def aget(self, key: str) -> str:
        """Read it."""
        raise NotImplementedError

    async def gather(self, keys: list[str]) -> None:
        """Put all keys, started at once."""
        await asyncio.gather(*(self.aput(key) for key in keys))

    def prefix(self, scope: str) -> str:
        """Return what the object keys of a scope start with."""
        return f"{self.name}/{scope}/"

    def clear(self, scope: str) -> None:
        """Delete all that is in the scope."""
        raise NotImplementedError


class Backend(Client):
    """A backend for Airflow's state store."""

    synchronous = True
    asynchronous = True
    clears = True

    backend: Any

    def __init__(self, endpoint: str, connections: int = CONNECTIONS) -> None:
        super().__init__(endpoint, connections)
        from airflow.sdk.state import AssetScope

        self._scope_class = AssetScope
        self._scope = AssetScope(name="bench")

    def put(self, key: str) -> None:
        self.backend.set(self._scope, key, VALUE)

    def get(self, key: str) -> str:
        found: str = self.backend.get(self._scope, key)
        return found

    async def aput(self, key: str) -> None:
        await self.backend.aset(self._scope, key, VALUE)

    async def aget(self, key: str) -> str:
        found: str = await self.backend.aget(self._scope, key)
        return found

    async def aserialize(self, value: Any) -> str:
        """Store a worker's value and return its reference, as Airflow's accessors do on a loop."""
        ref: str = self.backend.serialize_asset_state_store_to_ref(value=value, key="large", scope=self._scope)
        return ref

    async def adeserialize(self, ref: str) -> Any:
        """Return the value of the reference."""
        return self.backend.deserialize_asset_state_store_from_ref(ref)

    def clear(self, scope: str) -> None:
        self.backend.clear(self._scope_class(name=scope))


class Ours(Backend):
    """`AsyncStateBackend` as it is configured by default: 24 requests at once."""

    name = "async_state"
    limit: ClassVar[int] = 24

    def __init__(self, endpoint: str, connections: int = CONNECTIONS) -> None:
        super().__init__(endpoint, connections)
        from async_state import AsyncStateBackend

        self.backend = AsyncStateBackend(self.settings(endpoint))

    @classmethod
    def settings(cls, endpoint: str) -> Any:
        """Return what is configured."""
        from async_state import Settings

        return Settings(url=f"s3://{BUCKET}/ours", endpoint_url=endpoint, max_concurrency=cls.limit)

    async def aserialize(self, value: Any) -> str:
        ref: str = await self.backend.aserialize_asset_state_store_to_ref(value=value, key="large", scope=self._scope)
        return ref

    async def adeserialize(self, ref: str) -> Any:
        return await self.backend.adeserialize_asset_state_store_from_ref(ref)

    def close(self) -> None:
        self.backend.close()

    def prefix(self, scope: str) -> str:
        return f"ours/v1/asset/name/{scope}/server/"


class OursAt64(Ours):
    """Ours with ``max_concurrency = 64``, as many as the others may have."""

    name = "async_state, 64 at once"
    limit = 64


class CommonIO(Backend):
    """common-io's backend on s3fs, which Airflow's amazon provider sets up. Its coroutines are threads."""

    name = "common-io"
    requires = ("airflow.providers.common.io", "airflow.providers.amazon", "s3fs")

    def __init__(self, endpoint: str, connections: int = CONNECTIONS) -> None:
        super().__init__(endpoint, connections)
        from airflow.providers.common.io.state_store.backend import StateStoreObjectStorageBackend

        self.backend = StateStoreObjectStorageBackend()

    def prefix(self, scope: str) -> str:
        return f"common-io/assets/{scope}/"


class Boto3(Client):
    """boto3, the synchronous client; at once, it puts from as many threads."""

    name = "boto3"
    requires = ("boto3",)
    synchronous = True

    def __init__(self, endpoint: str, connections: int = CONNECTIONS) -> None:
        super().__init__(endpoint, connections)
        import boto3
        from botocore.config import Config

        self._client = boto3.client("s3", config=Config(max_pool_connections=connections))
        self._threads = ThreadPoolExecutor(connections)

    def close(self) -> None:
        self._client.close()
        self._threads.shutdown()

    def put(self, key: str) -> None:
        self._client.put_object(Bucket=BUCKET, Key=f"boto3/{key}", Body=VALUE.encode())

    def get(self, key: str) -> str:
        found: bytes = self._client.get_object(Bucket=BUCKET, Key=f"boto3/{key}")["Body"].read()
        return found.decode()

    async def gather(self, keys: list[str]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, self.put, key) for key in keys))


class Aiobotocore(Client):
    """aiobotocore's client on the caller's own loop. Clears one page after the other."""

    name = "aiobotocore"
    requires = ("aiobotocore",)
    asynchronous = True
    clears = True

    #: Its own, for the clears.
    _loop: asyncio.AbstractEventLoop | None = None

    async def aopen(self) -> None:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session

        config = AioConfig(max_pool_connections=self.connections)
        self._context = get_session().create_client("s3", config=config)
        self._client = await self._context.__aenter__()

    async def aclose(self) -> None:
        await self._context.__aexit__(None, None, None)

    async def aput(self, key: str) -> None:
        await self._client.put_object(Bucket=BUCKET, Key=f"aiobotocore/{key}", Body=VALUE.encode())

    async def aget(self, key: str) -> str:
        answer = await self._client.get_object(Bucket=BUCKET, Key=f"aiobotocore/{key}")
        async with answer["Body"] as body:
            found: bytes = await body.read()
        return found.decode()

    def clear(self, scope: str) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(self.aopen())
        self._loop.run_until_complete(self._clear(scope))

    async def _clear(self, scope: str) -> None:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix(scope))
        async for page in pages:
            if names := [{"Key": item["Key"]} for item in page.get("Contents", ())]:
                await self._client.delete_objects(Bucket=BUCKET, Delete={"Objects": names, "Quiet": True})

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self.aclose())
            self._loop.close()


class Obstore(Client):
    """obstore, a client in Rust: what is possible, but not after a fork of a process that has used it."""

    name = "obstore"
    requires = ("obstore",)
    synchronous = True
    asynchronous = True
    clears = True

    def __init__(self, endpoint: str, connections: int = CONNECTIONS) -> None:
        super().__init__(endpoint, connections)
        from obstore.store import S3Store

        self._store = S3Store(
            BUCKET,
            endpoint=endpoint,
            region=os.environ["AWS_DEFAULT_REGION"],
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True},
        )

    def put(self, key: str) -> None:
        self._store.put(f"obstore/{key}", VALUE.encode(), use_multipart=False)

    def get(self, key: str) -> str:
        return bytes(self._store.get(f"obstore/{key}").bytes()).decode()

    async def aput(self, key: str) -> None:
        await self._store.put_async(f"obstore/{key}", VALUE.encode(), use_multipart=False)

    async def aget(self, key: str) -> str:
        answer = await self._store.get_async(f"obstore/{key}")
        return bytes(await answer.bytes_async()).decode()

    def clear(self, scope: str) -> None:
        for page in self._store.list(self.prefix(scope), chunk_size=1000):
            self._store.delete([item["path"] for item in page])


class Aiohttp(Client):
    """The bare HTTP exchange: aiohttp with URLs that were signed beforehand."""

    name = "aiohttp"
    requires = ("aiohttp", "botocore")
    asynchronous = True

    async def aopen(self) -> None:
        import aiohttp
        from botocore.config import Config
        from botocore.session import get_session
        from yarl import URL

        config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
        client = get_session().create_client("s3", config=config)

        @functools.cache
        def signed(operation: str, key: str) -> URL:
            where = {"Bucket": BUCKET, "Key": f"aiohttp/{key}"}
            return URL(client.generate_presigned_url(operation, Params=where, ExpiresIn=86400), encoded=True)

        # Once for each key, which is to say before anything is measured.
        self._signed = signed
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=self.connections))

    async def aclose(self) -> None:
        await self._session.close()

    async def aput(self, key: str) -> None:
        async with self._session.put(self._signed("put_object", key), data=VALUE.encode()) as answer:
            answer.raise_for_status()
            await answer.read()

    async def aget(self, key: str) -> str:
        async with self._session.get(self._signed("get_object", key)) as answer:
            answer.raise_for_status()
            return await answer.text()


#: All of them, ours first and the limits last.
CLIENTS: dict[str, type[Client]] = {
    client.name: client for client in (Ours, OursAt64, CommonIO, Boto3, Aiobotocore, Obstore, Aiohttp)
}


def installed(*names: str) -> list[str]:
    """Return those of ``names`` (none: all) whose modules are installed."""
    return [name for name in names or CLIENTS if not CLIENTS[name].missing()]


@contextlib.contextmanager
def opened(clients: list[Client]) -> Iterator[asyncio.AbstractEventLoop]:
    """Yield a loop on which the clients are open, and close them in the end."""
    loop = asyncio.new_event_loop()
    for client in clients:
        loop.run_until_complete(client.aopen())
    yield loop
    for client in clients:
        loop.run_until_complete(client.aclose())
        client.close()
    loop.close()


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
