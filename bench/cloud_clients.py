"""What `bench.clouds` measures in Google Cloud Storage and in Azure Blob Storage, as `bench.clients` does in S3."""

from __future__ import annotations

import asyncio
import functools
import sys
import types
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from tests.azure_keys import VERSION, sas_token
from tests.cloud_servers import AZURE_ACCOUNT, AZURE_KEY

from bench.clients import VALUE, Client, CommonIO, Ours
from bench.cloud_servers import AZURE, GOOGLE
from bench.servers import BUCKET

#: The keys of a filled scope by what they begin with, which the bare client does not list.
_FILLED: dict[str, list[str]] = {}


class OursOnGoogle(Ours):
    """`AsyncStateBackend` with 24 requests at once, as by default, and a time that its server needs for 10,000 keys."""

    @classmethod
    def settings(cls, endpoint: str) -> Any:
        from async_state import Settings

        return Settings(url=f"gs://{BUCKET}/ours", endpoint_url=endpoint, max_concurrency=cls.limit, timeout=300)


class OursOnAzure(Ours):
    """The same in Azure."""

    @classmethod
    def settings(cls, endpoint: str) -> Any:
        from async_state import Settings

        return Settings(url=f"az://{BUCKET}/ours", endpoint_url=endpoint, max_concurrency=cls.limit, timeout=300)


class OursOnGoogleAt64(OursOnGoogle):
    """Ours with ``max_concurrency = 64``, as many as the others may have."""

    name = "async_state, 64 at once"
    limit = 64


class OursOnAzureAt64(OursOnAzure):
    """The same in Azure."""

    name = "async_state, 64 at once"
    limit = 64


class CommonIOOnGoogle(CommonIO):
    """common-io's backend on gcsfs, which Airflow's Google provider sets up."""

    requires = ("airflow.providers.common.io", "airflow.providers.google", "gcsfs")


class CommonIOOnAzure(CommonIO):
    """common-io's backend on adlfs, which Airflow's Azure provider sets up."""

    requires = ("airflow.providers.common.io", "airflow.providers.microsoft.azure", "adlfs")


class Request(NamedTuple):
    """What is sent: its method, URL and headers."""

    method: str
    url: str
    headers: Mapping[str, str]


class Aiohttp(Client):
    """The bare HTTP exchange, without a checksum, with URLs that are made and signed beforehand.

    It is what the server allows, and it fills scopes for clears and looks whether anything is left of them.
    """

    name = "aiohttp"
    requires = ("aiohttp",)
    asynchronous = True
    clears = True

    _put: Any
    _get: Any

    async def aopen(self) -> None:
        import aiohttp
        from yarl import URL

        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=self.connections))

        def made(of: Any, key: str) -> Any:
            method, url, headers = of(f"aiohttp/{key}")
            return method, URL(url, encoded=True), headers

        self._put = functools.cache(functools.partial(made, self.put_request))
        self._get = functools.cache(functools.partial(made, self.get_request))

    async def aclose(self) -> None:
        await self._session.close()

    async def aput(self, key: str) -> None:
        method, url, headers = self._put(key)
        async with self._session.request(method, url, headers=headers, data=VALUE.encode()) as answer:
            answer.raise_for_status()
            await answer.read()

    async def aget(self, key: str) -> str:
        method, url, headers = self._get(key)
        async with self._session.request(method, url, headers=headers) as answer:
            answer.raise_for_status()
            return await answer.text()

    async def fill(self, prefix: str, keys: int) -> None:
        """Make so many objects whose keys begin with ``prefix``."""
        _FILLED[prefix] = [f"{prefix}key-{number:06}" for number in range(keys)]
        left = iter(_FILLED[prefix])

        async def some() -> None:
            for key in left:
                await self._ask(self.put_request(key), VALUE.encode())

        await asyncio.gather(*(some() for _ in range(16)))

    def clear(self, scope: str) -> None:
        self._loop.run_until_complete(self._clear(self.prefix(scope)))

    async def _clear(self, prefix: str) -> None:
        # One request a key, at once: what the server needs for that many deletions.
        await asyncio.gather(*(self._ask(self.delete_request(key), None) for key in _FILLED.pop(prefix)))

    async def check(self, prefix: str) -> None:
        """Make sure that no object's key begins with ``prefix``."""
        found = await self._ask(self.list_request(prefix), None)
        assert self.no_object in found, f"keys are left below {prefix}"

    async def _ask(self, request: Request, body: bytes | None) -> str:
        from yarl import URL

        url = URL(request.url, encoded=True)
        async with self._session.request(request.method, url, headers=request.headers, data=body) as answer:
            answer.raise_for_status()
            return await answer.text()

    #: What the answer to `list_request` has when there is no object.
    no_object: ClassVar[str]

    def put_request(self, key: str) -> Request:
        """Return what writes an object."""
        raise NotImplementedError

    def get_request(self, key: str) -> Request:
        """Return what reads it."""
        raise NotImplementedError

    def delete_request(self, key: str) -> Request:
        """Return what deletes it."""
        raise NotImplementedError

    def list_request(self, prefix: str) -> Request:
        """Return what lists some keys."""
        raise NotImplementedError


class AiohttpOnGoogle(Aiohttp):
    """The JSON interface's simple upload."""

    no_object = '"storage#objects"}'

    def put_request(self, key: str) -> Request:
        url = f"{self.endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}"
        return Request("POST", url, {"Content-Type": "application/json"})

    def get_request(self, key: str) -> Request:
        return Request("GET", f"{self.endpoint}/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}?alt=media", {})

    def delete_request(self, key: str) -> Request:
        return Request("DELETE", f"{self.endpoint}/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}", {})

    def list_request(self, prefix: str) -> Request:
        return Request("GET", f"{self.endpoint}/storage/v1/b/{BUCKET}/o?prefix={quote(prefix, safe='')}", {})


class AiohttpOnAzure(Aiohttp):
    """With a shared access signature."""

    no_object = "<Blobs/>"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sas = sas_token(AZURE_ACCOUNT, AZURE_KEY, lifetime=86400)

    def put_request(self, key: str) -> Request:
        headers = {"x-ms-version": VERSION, "x-ms-blob-type": "BlockBlob", "Content-Type": "application/json"}
        return Request("PUT", f"{self.endpoint}/{BUCKET}/{quote(key)}?{self._sas}", headers)

    def get_request(self, key: str) -> Request:
        return Request("GET", f"{self.endpoint}/{BUCKET}/{quote(key)}?{self._sas}", {"x-ms-version": VERSION})

    def delete_request(self, key: str) -> Request:
        return Request("DELETE", f"{self.endpoint}/{BUCKET}/{quote(key)}?{self._sas}", {"x-ms-version": VERSION})

    def list_request(self, prefix: str) -> Request:
        asked = f"restype=container&comp=list&prefix={quote(prefix, safe='')}"
        return Request("GET", f"{self.endpoint}/{BUCKET}?{asked}&{self._sas}", {"x-ms-version": VERSION})


#: All clients of each cloud by name, ours first and the limit last.
CLIENTS: dict[str, dict[str, type[Client]]] = {
    GOOGLE: {c.name: c for c in (OursOnGoogle, OursOnGoogleAt64, CommonIOOnGoogle, AiohttpOnGoogle)},
    AZURE: {c.name: c for c in (OursOnAzure, OursOnAzureAt64, CommonIOOnAzure, AiohttpOnAzure)},
}
BARE: dict[str, type[Aiohttp]] = {GOOGLE: AiohttpOnGoogle, AZURE: AiohttpOnAzure}


def installed(cloud: str, *names: str) -> list[str]:
    """Return those of ``names`` (none: all) whose modules are installed."""
    return [name for name in names or CLIENTS[cloud] if not CLIENTS[cloud][name].missing()]


def hide_other_provider(cloud: str) -> None:
    """Let common-io find no file system of the other cloud's provider, whose import takes time at its first use.

    Both are installed here, and one is where people use one cloud.
    """
    package, module = {
        GOOGLE: ("airflow.providers.microsoft.azure.fs", "adls"),
        AZURE: ("airflow.providers.google.cloud.fs", "gcs"),
    }[cloud]
    empty = types.ModuleType(f"{package}.{module}")
    try:
        setattr(import_module(package), module, empty)
    except ModuleNotFoundError:
        return
    sys.modules[empty.__name__] = empty
