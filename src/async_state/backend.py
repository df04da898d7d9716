"""`AsyncStateBackend`: Airflow's contract, on either side of the API server.

The coroutines are the code; each synchronous method is one line over its coroutine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from async_state import codec, compat, iothread, keys, threads, updates
from async_state.common_io import CommonIo
from async_state.errors import (
    MissingObjectError,
    StoreCredentialsError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from async_state.keys import Side
from async_state.objects import Objects, naming
from async_state.settings import Settings
from async_state.urls import default_url

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from airflow.sdk.state import AssetScope, TaskScope
    from pydantic import JsonValue

    StoreScope = TaskScope | AssetScope

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger(__name__)


def _honours_overrides(
    coroutine: Callable[Concatenate[AsyncStateBackend, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[AsyncStateBackend, P], Coroutine[Any, Any, T]]:
    """Have a coroutine method call the synchronous method that a subclass overrides, in a thread.

    Airflow documents the synchronous methods, so those are what a subclass overrides, to encrypt values say; and what
    it overrides must count in every way of calling. Where it overrides the coroutine as well, that one counts.
    """
    name = coroutine.__name__

    @wraps(coroutine)
    async def method(self: AsyncStateBackend, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._overrides(name[1:]) and not self._overrides(name):
            override: Callable[[], T] = partial(getattr(self, name[1:]), *args, **kwargs)
            return override() if iothread.blocks() else await threads.call(override)
        return await coroutine(self, *args, **kwargs)

    return method  # type: ignore[return-value]


class AsyncStateBackend(compat.StoreBackend):
    """Task and asset state in an object store; for ``[workers] state_store_backend`` and ``[state_store] backend``.

    Made without arguments, it reads ``[async_state]`` of Airflow's configuration; and the path of common-io's backend,
    whose references it then reads and purges as well. Making it does no I/O and imports no cloud's library. All methods
    may be called from any thread, any event loop and any forked process. A subclass may override synchronous methods,
    coroutines, or both: what it overrides counts however Airflow calls it.

    Args:
        settings: what to use instead of Airflow's configuration.

    Raises:
        ConfigurationError: an option can't be used; the message has its full name.

    Every operation raises a `StoreError` that names bucket, key and what to change where the store fails, and leaves a
    state from which the next try succeeds. It is tried until ``[async_state] timeout`` is over. ``session`` is accepted
    and ignored everywhere: there is no database here.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        conf = None if settings is not None else compat.airflow_conf()
        self._settings = settings or Settings.from_conf(conf)
        self._objects = Objects(self._settings)
        self._common_io = CommonIo.from_conf(conf, self._settings) if conf is not None else None
        if self._settings.url == default_url():
            _warn_of_default(self._settings.url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.url!r})"

    # The API server's side: the database row, as JSON text.

    @_honours_overrides
    async def aget(self, scope: StoreScope, key: str, *, session: Any = None) -> str | None:
        """Return the JSON text that `aset` stored, or ``None`` where there is none or where it has expired.

        Raises:
            InvalidScopeError, InvalidKeyError: the arguments can't name an object.
            CorruptObjectError: the object is damaged.
            StoreError: the store failed.
        """
        async with self._objects.operation("get") as operation:
            name = keys.object_name(scope, key, Side.SERVER)
            found = await self._objects.read_stored(self._settings.url, name, operation)
        return None if found is None or found.has_expired else found.text

    @_honours_overrides
    async def aset(
        self, scope: StoreScope, key: str, value: str, *, expires_at: datetime | None = None, session: Any = None
    ) -> None:
        """Write or overwrite the JSON text, byte for byte.

        Args:
            scope: The task or the asset.
            key: The state key.
            value: The text.
            expires_at: When the key counts as deleted, by the clock of the machine that reads it; `acleanup` deletes
                it. Without a time zone it is UTC. ``None`` for never.
            session: Ignored.

        Raises:
            InvalidValueError: ``expires_at`` is no ``datetime``, or the text is too large. Nothing is written.
            InvalidScopeError, InvalidKeyError: The arguments can't name an object.
            StoreError: The store failed.
        """
        async with self._objects.operation("set") as operation:
            name = keys.object_name(scope, key, Side.SERVER)
            await self._objects.write(name, value, operation, expires_at=expires_at)

    @_honours_overrides
    async def adelete(self, scope: StoreScope, key: str, *, session: Any = None) -> None:
        """Delete the key's row and value, in one request; no-op if there is none. Errors as in `aclear`."""
        async with self._objects.operation("delete") as operation:
            names = [keys.object_name(scope, key, side) for side in Side]
            await self._objects.purge_names(self._settings.url, names, operation)
        if self._common_io is not None:
            await self._common_io.delete(scope, key)

    @_honours_overrides
    async def aclear(self, scope: StoreScope, *, all_map_indices: bool = False, session: Any = None) -> None:
        """Delete everything in the scope, rows and values, listed by prefix.

        Args:
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
            async with self._objects.operation("clear") as operation:
                await self._objects.purge_prefix(prefix, operation)
            if self._common_io is not None:
                await self._common_io.clear(scope, all_map_indices=all_map_indices)
        except StoreError as e:
            if not compat.clear_on_success():
                raise
            log.error("State below %s/%s was not cleared and is left behind: %s", self._settings.url, prefix, e)

    @_honours_overrides
    async def acleanup(self) -> int:
        """Delete the rows that have expired, and return how many they were.

        It lists everything below ``[async_state] url`` and reads each row that `aset` has written, ``max_concurrency``
        at once. The worker's values to which such rows refer are left for ``airflow async-state sweep``.

        Raises:
            StoreError: The store failed. Another call takes up the rest.
        """
        async with self._objects.operation("cleanup") as operation:
            deleted = await self._objects.cleanup(operation)
        log.info("Deleted %d expired rows below %s", deleted, self._settings.url)
        return deleted

    # The worker's side: the value goes to the store, and its reference to the database.

    @_honours_overrides
    async def aserialize_task_state_store_to_ref(self, *, value: JsonValue, key: str, scope: TaskScope) -> str:
        """Store a task's value and return its reference; or, up to ``inline_threshold``, its JSON text.

        Raises:
            InvalidValueError: ``value`` is not JSON. Nothing is written.
            InvalidScopeError, InvalidKeyError: the arguments can't name an object. Nothing is written.
            StoreError: the store failed; an earlier value is as it was, or replaced.
        """
        inline = super().serialize_task_state_store_to_ref
        return await self._serialize(inline, value=value, key=key, scope=scope)

    @_honours_overrides
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

    @_honours_overrides
    async def aserialize_asset_state_store_to_ref(self, *, value: JsonValue, key: str, scope: AssetScope) -> str:
        """Store an asset's value. As `aserialize_task_state_store_to_ref`."""
        inline = super().serialize_asset_state_store_to_ref
        return await self._serialize(inline, value=value, key=key, scope=scope)

    @_honours_overrides
    async def adeserialize_asset_state_store_from_ref(self, stored: str) -> JsonValue:
        """Return an asset's value. As `adeserialize_task_state_store_from_ref`."""
        return await self._deserialize(stored)

    @_honours_overrides
    async def apurge_task_state(self, ref: str) -> None:
        """Delete the object that a task's reference names; no-op if it is gone or ``ref`` is inline JSON text.

        Raises:
            UntrustedRefError: ``ref`` is outside `Settings.bases`.
            StoreError: the store failed.
        """
        await self.apurge_many([ref])

    @_honours_overrides
    async def apurge_asset_state(self, ref: str) -> None:
        """Delete the object that an asset's reference names. As `apurge_task_state`."""
        await self.apurge_many([ref])

    @_honours_overrides
    async def apurge_many(self, refs: Iterable[str]) -> None:
        """Delete the objects that the references name, in batches, ``max_concurrency`` at once.

        Raises:
            UntrustedRefError: one of them is outside `Settings.bases`. Nothing is deleted.
            PurgeError: some objects could not be deleted; it names them, and all others are deleted.
        """
        names_of: dict[str, dict[str, None]] = {}
        of_common_io: dict[str, None] = {}
        for ref in refs:
            if not keys.is_ref(ref):
                continue
            if (name := self._name_of_common_io(ref)) is not None:
                of_common_io[name] = None
            else:
                base, name = self._settings.locate(ref)
                names_of.setdefault(base, {})[name] = None
        for base, names in names_of.items():
            async with self._objects.operation("purge", base) as operation:
                await self._objects.purge_names(base, names, operation)
        if self._common_io is not None and of_common_io:
            await self._common_io.purge(of_common_io)

    @_honours_overrides
    async def aclose(self) -> None:
        """Close connections to the store. Never needed: the next operation opens them anew."""
        await self._objects.aclose()
        if self._common_io is not None:
            await self._common_io.aclose()

    # One line each: Airflow calls these from the task runner, or from the API server's thread pool.

    def get(self, scope: StoreScope, key: str, *, session: Any = None) -> str | None:
        """Blocking version of `aget`, for any thread."""
        return self._run(self.aget, scope, key)

    def set(
        self, scope: StoreScope, key: str, value: str, *, expires_at: datetime | None = None, session: Any = None
    ) -> None:
        """Blocking version of `aset`, for any thread."""
        return self._run(self.aset, scope, key, value, expires_at=expires_at)

    def delete(self, scope: StoreScope, key: str, *, session: Any = None) -> None:
        """Blocking version of `adelete`, for any thread."""
        return self._run(self.adelete, scope, key)

    def clear(self, scope: StoreScope, *, all_map_indices: bool = False, session: Any = None) -> None:
        """Blocking version of `aclear`, for any thread."""
        return self._run(self.aclear, scope, all_map_indices=all_map_indices)

    def cleanup(self) -> int:  # type: ignore[override]
        """Blocking version of `acleanup`, for any thread."""
        return self._run(self.acleanup)

    def serialize_task_state_store_to_ref(self, *, value: JsonValue, key: str, scope: TaskScope) -> str:
        """Blocking version of `aserialize_task_state_store_to_ref`, for any thread."""
        return self._run(self.aserialize_task_state_store_to_ref, value=value, key=key, scope=scope)

    def deserialize_task_state_store_from_ref(self, stored: str) -> JsonValue:
        """Blocking version of `adeserialize_task_state_store_from_ref`, for any thread."""
        return self._run(self.adeserialize_task_state_store_from_ref, stored)

    def serialize_asset_state_store_to_ref(self, *, value: JsonValue, key: str, scope: AssetScope) -> str:
        """Blocking version of `aserialize_asset_state_store_to_ref`, for any thread."""
        return self._run(self.aserialize_asset_state_store_to_ref, value=value, key=key, scope=scope)

    def deserialize_asset_state_store_from_ref(self, stored: str) -> JsonValue:
        """Blocking version of `adeserialize_asset_state_store_from_ref`, for any thread."""
        return self._run(self.adeserialize_asset_state_store_from_ref, stored)

    def purge_task_state(self, ref: str) -> None:
        """Blocking version of `apurge_task_state`, for any thread."""
        return self._run(self.apurge_task_state, ref)

    def purge_asset_state(self, ref: str) -> None:
        """Blocking version of `apurge_asset_state`, for any thread."""
        return self._run(self.apurge_asset_state, ref)

    def purge_many(self, refs: Iterable[str]) -> None:
        """Blocking version of `apurge_many`, for any thread."""
        return self._run(self.apurge_many, refs)

    def close(self) -> None:
        """Blocking version of `aclose`, for any thread."""
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

    # For `accessors.AsyncStateStore`: a worker's objects by scope and key.

    def _ref(self, scope: StoreScope, key: str) -> str:
        """Return the reference to the object of a key."""
        return keys.make_ref(self._settings.url, keys.object_name(scope, key, Side.WORKER))

    async def _exists(self, scope: StoreScope, key: str) -> bool:
        """Tell whether the key has an object."""
        async with self._objects.operation("exists") as operation:
            return await self._objects.exists(keys.object_name(scope, key, Side.WORKER), operation)

    async def _read(self, scope: StoreScope, key: str) -> JsonValue:
        """Return the value of the key's object, or ``None`` if there is none."""
        _, deserialize = self._hooks(scope)
        if self._overrides(deserialize) or self._overrides(f"a{deserialize}"):
            if not await self._exists(scope, key):
                return None
            value: JsonValue = await getattr(self, f"a{deserialize}")(self._ref(scope, key))
            return value
        async with self._objects.operation("deserialize") as operation:
            name = keys.object_name(scope, key, Side.WORKER)
            text = await self._objects.read(self._settings.url, name, operation)
        if text is None:
            return None
        with naming(self._ref(scope, key)):
            return await _loaded(text)

    async def _replace(self, scope: StoreScope, key: str, value: JsonValue) -> None:
        """Write the key's object, to which its row refers already, so that the value never stays inline."""
        serialize, _ = self._hooks(scope)
        if self._overrides(serialize) or self._overrides(f"a{serialize}"):
            stored = await getattr(self, f"a{serialize}")(value=value, key=key, scope=scope)
            if stored != self._ref(scope, key):
                raise StoreError(
                    f"{type(self).__name__} keeps the value of {self._ref(scope, key)} elsewhere than in its object, "
                    "where state by scope can't replace it: set the key in the task"
                )
            return
        async with self._objects.operation("serialize") as operation:
            name = keys.object_name(scope, key, Side.WORKER)
            text = codec.dump(value) if iothread.blocks() else await codec.adump(value)
            await self._objects.write(name, text, operation, ending=codec.ending())

    async def _keys(self, scope: StoreScope) -> list[str]:
        """Return the keys that have an object, in the order of their names."""
        async with self._objects.operation("keys") as operation:
            names = await self._objects.names(f"{keys.scope_prefix(scope)}{Side.WORKER.value}/", operation)
        # A "~" in a name follows the beginning of a key whose rest is a hash.
        whole = [name for name in names if "~" not in name.rpartition("/")[2]]
        if len(whole) < len(names):
            log.warning(
                "%d keys of %r are so long that their objects' names have a hash of them only: they are not listed",
                len(names) - len(whole),
                scope,
            )
        return [place.key for name in whole if (place := keys.parse_name(name)) is not None]

    async def _update(
        self,
        scope: StoreScope,
        key: str,
        rows: updates.Rows,
        function: Callable[[Any], JsonValue],
        default: JsonValue,
    ) -> JsonValue:
        """Replace the key's value by what ``function`` makes of it. As `updates.update`."""
        for hook in self._hooks(scope):
            if self._overrides(hook) or self._overrides(f"a{hook}"):
                raise StoreError(
                    f"{type(self).__name__} overrides {hook}, so that update does not know how it stores values: use "
                    "get and set, with one writer at a time"
                )
        name = keys.object_name(scope, key, Side.WORKER)
        return await updates.update(self._objects, name, rows, function, default, self._settings.timeout)

    @staticmethod
    def _hooks(scope: StoreScope) -> tuple[str, str]:
        """Return the names of the hooks that store and read the scope's values."""
        kind = "task" if hasattr(scope, "task_id") else "asset"
        return f"serialize_{kind}_state_store_to_ref", f"deserialize_{kind}_state_store_from_ref"

    # On the caller's side of the hop.

    def _overrides(self, name: str) -> bool:
        """Tell whether a subclass overrides the method."""
        return getattr(type(self), name) is not getattr(AsyncStateBackend, name)

    def _run(self, coroutine: Callable[..., Coroutine[Any, Any, T]], *args: object, **kwargs: object) -> T:
        """Call one of the coroutine methods above and wait for it.

        Where a subclass overrides the synchronous method, this is its call of ``super()``, and the coroutine is the one
        of this class, which would otherwise come back to the subclass.
        """
        name = coroutine.__name__
        if self._overrides(name[1:]):
            coroutine = partial(getattr(AsyncStateBackend, name).__wrapped__, self)
        return iothread.run(coroutine, *args, **kwargs)

    async def _serialize(self, inline: Callable[..., str], *, value: JsonValue, key: str, scope: StoreScope) -> str:
        settings = self._settings
        async with self._objects.operation("serialize") as operation:
            name = keys.object_name(scope, key, Side.WORKER)
            text = codec.dump(value) if iothread.blocks() else await codec.adump(value)
            # JSON text is ASCII, so its length is its size.
            if len(text) <= settings.inline_threshold:
                return inline(value=value, key=key, scope=scope)
            try:
                await self._objects.write(name, text, operation, ending=codec.ending())
            except (StoreUnavailableError, StoreTimeoutError, StoreCredentialsError) as e:
                if len(text) > settings.outage_inline_threshold:
                    raise
                operation.outcome = type(e).__name__
                log.warning(
                    "The value of %s stays in Airflow's database until the next set of its key "
                    "([async_state] outage_inline_threshold), as it could not be stored: %s",
                    keys.make_ref(settings.url, name),
                    e,
                )
                return inline(value=value, key=key, scope=scope)
            return keys.make_ref(settings.url, name)

    async def _deserialize(self, stored: str) -> JsonValue:
        if not keys.is_ref(stored):
            return await _loaded(stored)
        text = await self._text_of(stored)
        if text is not None:
            with naming(stored):
                return await _loaded(text)
        message = f"the object of the state reference {stored} is gone"
        if self._settings.on_missing == "raise":
            raise MissingObjectError(f"{message}; delete the key, or set [async_state] on_missing to none")
        log.warning("%s; its value is taken for None ([async_state] on_missing)", message)
        return None

    async def _text_of(self, ref: str) -> str | None:
        """Return the JSON text of the object that a reference names, or ``None`` if it is gone."""
        if self._common_io is not None and (old_name := self._common_io.name_of(ref)) is not None:
            return await self._common_io.read(old_name)
        base, name = self._settings.locate(ref)
        async with self._objects.operation("deserialize", base) as operation:
            text = await self._objects.read(base, name, operation)
            if text is None:
                operation.outcome = "missing"
            return text

    def _name_of_common_io(self, ref: str) -> str | None:
        return None if self._common_io is None else self._common_io.name_of(ref)


async def _loaded(text: str) -> JsonValue:
    value: JsonValue = codec.load(text) if iothread.blocks() else await codec.aload(text)
    return value


@cache
def _warn_of_default(url: str) -> None:
    log.warning(
        "State is kept in %s, on this machine's disk, where no other machine sees it: set [async_state] url to an "
        "object store: s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
        url,
    )
