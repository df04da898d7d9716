"""Every error that this package raises of its own accord.

Each class is also the builtin that a caller would expect, so that ``except ValueError`` around a bad option or
``except ConnectionError`` around an unreachable store works. Messages name the place (option, bucket, key) and what to
change; they never contain a value or a credential. Every error can be pickled and copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class AsyncStateError(Exception):
    """Base of every error below.

    Args:
        message: What a store or a stranger wrote may be part of it. Characters that would begin a new line or can't be
            printed are escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class ConfigurationError(AsyncStateError, ValueError):
    """An option of ``[async_state]``, or the Airflow connection that it names, can't be used."""


class InvalidScopeError(AsyncStateError, TypeError):
    """The scope is neither a ``TaskScope`` nor an ``AssetScope``, or lacks an identifier."""


class InvalidKeyError(AsyncStateError, ValueError):
    """The key is empty, ``.``, ``..``, longer than 512 characters or not valid unicode."""


class InvalidValueError(AsyncStateError, TypeError, ValueError):
    """The value would not come back from JSON as it went in (NaN, datetime, tuple, ...)."""


class UntrustedRefError(AsyncStateError, ValueError):
    """The reference does not name an object below a trusted base URL."""


class CorruptObjectError(AsyncStateError, ValueError):
    """The stored object is truncated, damaged or not what this package writes."""


class MissingObjectError(AsyncStateError, LookupError):
    """The reference's object is gone and ``[async_state] on_missing`` is ``raise``."""


class MissingKeyError(AsyncStateError, LookupError):
    """State by scope has no such key, and only a task can make one."""


class StoreError(AsyncStateError, OSError):
    """The object store refused or failed an operation."""


class StoreAccessError(StoreError, PermissionError):
    """The object store denied the operation, or there are no credentials for it."""


class StoreCredentialsError(StoreAccessError):
    """No credentials were found for the object store, or those that were found are refused as such."""


class StoreUnavailableError(StoreError, ConnectionError):
    """The object store could not be reached, or every attempt ended in a server error."""


class StoreTimeoutError(StoreError, TimeoutError):
    """The operation did not end within ``[async_state] timeout``."""


class ConditionsError(StoreError):
    """The object store ignores the conditions of a write, so that nothing can be updated atomically in it."""


class ConflictError(StoreError):
    """Others wrote the key again and again until ``[async_state] timeout``, so that an update never came to write."""


class PurgeError(StoreError):
    """Some objects could not be deleted; the others were.

    The same clear or purge, called again, deletes the objects that remain.

    Args:
        message: As for every error.
        remaining: As the attribute.

    Attributes:
        remaining: The store's reason for each object that is known to remain, by the object's name.
    """

    def __init__(self, message: str, remaining: Mapping[str, str]) -> None:
        super().__init__(message)
        self.remaining = dict(remaining)

    def __reduce__(self) -> tuple[Any, ...]:
        # Of its own accord, an exception is made again from its ``args`` alone.
        return type(self), (str(self), self.remaining), self.__dict__
