"""`AsyncStateBackend`: Airflow's contract, on either side of the API server.

The coroutines are the code; each synchronous method is one line over its coroutine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from async_state import codec, compat, iothread, keys
from async_state.errors import MissingObjectError, StoreError
from async_state.keys import Side
from async_state.objects import Objects, about
from async_state.settings import Settings, default_url

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from airflow.sdk.state import AssetScope, TaskScope
    from pydantic import JsonValue

    StoreScope = TaskScope | AssetScope

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger(__name__)


class AsyncStateBackend(compat.StoreBackend):
    """Task and asset state in an object store; for ``[workers] state_store_backend`` and ``[state_store] backend``.

    Made without arguments, it reads ``[async_state]`` of Airflow's configuration. Making it does no I/O and imports no
    AWS library. All methods may be called from any thread, any event loop and any forked process.

    Parameters:
        settings: what to use instead of Airflow's configuration.

    Raises:
        ConfigurationError: an option can't be used; the message has its full name.

    Every operation raises a `StoreError` that names bucket, key and what to change where the store fails, and leaves a
    state from which the next try succeeds. ``session`` is accepted and ignored everywhere: there is no database here.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings.from_conf(compat.airflow_conf())
        self._objects = Objects(self._settings)
        if self._settings.url == default_url():
            _warn_of_default(self._settings.url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.url!r})"

    # The API server's side: the database row, as JSON text.

    async def aget(self, scope: StoreScope, key: str, *, session: Any = None) -> str | None:
        """Return the JSON text that `aset` stored, or ``None``.

        Raises:
            InvalidScopeError, InvalidKeyError: the arguments can't name an object.
            CorruptObjectError: the object is damaged.
            StoreError: the store failed.
        """
        async with self._objects.turn():
            return await self._objects.read(self._settings.url, keys.object_name(scope, key, Side.SERVER))

    async def aset(
        self, scope: StoreScope, key: str, value: str, *, expires_at: datetime | None = None, session: Any = None
    ) -> None:
        """Write or overwrite the JSON text, byte for byte. Errors as in `aget`.

        ``expires_at`` is accepted and not acted upon: nothing expires in the store by itself.
        """
        async with self._objects.turn():
            await self._objects.write(keys.object_name(scope, key, Side.SERVER), value)

    async def adelete(self, scope: StoreScope, key: str, *, session: Any = None) -> None:
        """Delete the key's row and value, in one request; no-op if there is none. Errors as in `aclear`."""
        async with self._objects.turn():
            names = [keys.object_name(scope, key, side) for side in Side]
            await self._objects.purge_names(self._settings.url, names)

    async def aclear(self, scope: StoreScope, *, all_map_indices: bool = False, session: Any = None) -> None:
        """Delete everything in the scope, rows and values, listed by prefix.

        Parameters:
            scope: one map index of a task, or one asset.
            all_map_indices: every map index of the task (in its region); no effect on an asset.
            session: ignored.

        Raises:
            InvalidScopeError: ``scope`` is no scope.
            PurgeError: some objects could not be deleted; it names them, and all others are deleted.
            StoreError: the store failed. Where ``[state_store] clear_on_success`` is on, store failures are logged
                instead: Airflow clears before it reports success, and raising would fail a task that had succeeded.
        """
        prefix = keys.scope_prefix(scope, all_map_indices=all_map_indices)
        try:
            async with self._objects.turn():
                await self._objects.purge_prefix(prefix)
        except StoreError as e:
            if not compat.clear_on_success():
                raise
            log.error("State below %s/%s was not cleared and is left behind: %s", self._settings.url, prefix, e)

    # The worker's side: the value goes to the store, and its reference to the database.

    async def aserialize_task_state_store_to_ref(self, *, value: JsonValue, key: str, scope: TaskScope) -> str:
        """Store a task's value and return its reference; or, up to ``inline_threshold``, its JSON text.

        Raises:
            InvalidValueError: ``value`` is not JSON. Nothing is written.
            InvalidScopeError, InvalidKeyError: the arguments can't name an object. Nothing is written.
            StoreError: the store failed; an earlier value is as it was, or replaced.
        """
        inline = super().serialize_task_state_store_to_ref
        return await self._serialize(inline, value=value, key=key, scope=scope)

    async def adeserialize_task_state_store_from_ref(self, stored: str) -> JsonValue:
        """Return the value that a task's reference, or inline JSON text, stands for.

        Where the object is gone, ``[async_state] on_missing`` decides: ``None`` and a warning, or an error.

        Raises:
            UntrustedRefError: ``stored`` is a reference outside `Settings.bases`.
            MissingObjectError: the object is gone, with ``on_missing = raise``.
            CorruptObjectError: the object, or inline text, is damaged.
            StoreError: the store failed.
        """
        return await self._deserialize(stored)

    async def aserialize_asset_state_store_to_ref(self, *, value: JsonValue, key: str, scope: AssetScope) -> str:
        """Store an asset's value. As `aserialize_task_state_store_to_ref`."""
        inline = super().serialize_asset_state_store_to_ref
        return await self._serialize(inline, value=value, key=key, scope=scope)

    async def adeserialize_asset_state_store_from_ref(self, stored: str) -> JsonValue:
        """Return an asset's value. As `adeserialize_task_state_store_from_ref`."""
        return await self._deserialize(stored)

    async def apurge_task_state(self, ref: str) -> None:
        """Delete the object that a task's reference names; no-op if it is gone or ``ref`` is inline JSON text.

        Raises:
            UntrustedRefError: ``ref`` is outside `Settings.bases`.
            StoreError: the store failed.
        """
        await self.apurge_many([ref])

    async def apurge_asset_state(self, ref: str) -> None:
        """Delete the object that an asset's reference names. As `apurge_task_state`."""
        await self.apurge_many([ref])

    async def apurge_many(self, refs: Iterable[str]) -> None:
        """Delete the objects that the references name, in batches, ``max_concurrency`` at once.

        Raises:
            UntrustedRefError: one of them is outside `Settings.bases`. Nothing is deleted.
            PurgeError: some objects could not be deleted; it names them, and all others are deleted.
        """
        names_of: dict[str, dict[str, None]] = {}
        for ref in refs:
            if keys.is_ref(ref):
                base, name = keys.split_ref(ref, self._settings.bases)
                names_of.setdefault(base, {})[name] = None
        for base, names in names_of.items():
            async with self._objects.turn():
                await self._objects.purge_names(base, names)

    async def aclose(self) -> None:
        """Close connections to the store. Never needed: the next operation opens them anew."""
        await self._objects.aclose()

    # One line each: Airflow calls these from the task runner, or from the API server's thread pool.

    def get(self, scope: StoreScope, key: str, *, session: Any = None) -> str | None:
        """As `aget`, waiting."""
        return self._run(self.aget, scope, key)

    def set(
        self, scope: StoreScope, key: str, value: str, *, expires_at: datetime | None = None, session: Any = None
    ) -> None:
        """As `aset`, waiting."""
        return self._run(self.aset, scope, key, value, expires_at=expires_at)

    def delete(self, scope: StoreScope, key: str, *, session: Any = None) -> None:
        """As `adelete`, waiting."""
        return self._run(self.adelete, scope, key)

    def clear(self, scope: StoreScope, *, all_map_indices: bool = False, session: Any = None) -> None:
        """As `aclear`, waiting."""
        return self._run(self.aclear, scope, all_map_indices=all_map_indices)

    def serialize_task_state_store_to_ref(self, *, value: JsonValue, key: str, scope: TaskScope) -> str:
        """As `aserialize_task_state_store_to_ref`, waiting."""
        return self._run(self.aserialize_task_state_store_to_ref, value=value, key=key, scope=scope)

    def deserialize_task_state_store_from_ref(self, stored: str) -> JsonValue:
        """As `adeserialize_task_state_store_from_ref`, waiting."""
        return self._run(self.adeserialize_task_state_store_from_ref, stored)

    def serialize_asset_state_store_to_ref(self, *, value: JsonValue, key: str, scope: AssetScope) -> str:
        """As `aserialize_asset_state_store_to_ref`, waiting."""
        return self._run(self.aserialize_asset_state_store_to_ref, value=value, key=key, scope=scope)

    def deserialize_asset_state_store_from_ref(self, stored: str) -> JsonValue:
        """As `adeserialize_asset_state_store_from_ref`, waiting."""
        return self._run(self.adeserialize_asset_state_store_from_ref, stored)

    def purge_task_state(self, ref: str) -> None:
        """As `apurge_task_state`, waiting."""
        return self._run(self.apurge_task_state, ref)

    def purge_asset_state(self, ref: str) -> None:
        """As `apurge_asset_state`, waiting."""
        return self._run(self.apurge_asset_state, ref)

    def purge_many(self, refs: Iterable[str]) -> None:
        """As `apurge_many`, waiting."""
        return self._run(self.apurge_many, refs)

    def close(self) -> None:
        """As `aclose`, waiting."""
        return self._run(self.aclose)

    def __enter__(self) -> AsyncStateBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> AsyncStateBackend:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # On the caller's side of the hop.

    def _run(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        # An Airflow connection must be looked up on this thread, so before the hop.
        if not iothread.awaits_in_place():
            self._objects.connect()
        return iothread.run(function, *args, **kwargs)

    async def _serialize(self, inline: Callable[..., str], *, value: JsonValue, key: str, scope: StoreScope) -> str:
        async with self._objects.turn():
            name = keys.object_name(scope, key, Side.WORKER)
            text = await codec.adump(value)
            # JSON text is ASCII, so its length is its size.
            if len(text) <= self._settings.inline_threshold:
                return inline(value=value, key=key, scope=scope)
            await self._objects.write(name, text)
            return keys.make_ref(self._settings.url, name)

    async def _deserialize(self, stored: str) -> JsonValue:
        if not keys.is_ref(stored):
            value: JsonValue = await codec.aload(stored)
            return value
        async with self._objects.turn():
            text = await self._objects.read(*keys.split_ref(stored, self._settings.bases))
        if text is not None:
            with about(stored):
                found: JsonValue = await codec.aload(text)
            return found
        message = f"the object of the state reference {stored} is gone"
        if self._settings.on_missing == "raise":
            raise MissingObjectError(f"{message}; delete the key, or set [async_state] on_missing to none")
        log.warning("%s; its value is taken for None ([async_state] on_missing)", message)
        return None


@cache
def _warn_of_default(url: str) -> None:
    log.warning(
        "State is kept in %s, on this machine's disk, where no other machine sees it: set [async_state] url to an "
        "object store, such as s3://bucket/prefix",
        url,
    )
