"""Every error that this package raises of its own accord.

Each class is also the builtin that a caller would expect, so that ``except ValueError`` around a bad
option or ``except ConnectionError`` around an unreachable store does what it says. Messages name the
place (option, bucket, key) and what to change; they never hold a value or a credential.
"""

from __future__ import annotations

from collections.abc import Mapping


class AsyncStateError(Exception):
    """Base of every error below. Its message is one line, whatever a store or a stranger wrote of it."""

    def __init__(self, message: str = "") -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class ConfigurationError(AsyncStateError, ValueError):
    """An option of ``[async_state]``, or the connection it names, can't be used."""


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


class StoreError(AsyncStateError, OSError):
    """The object store refused or failed an operation."""


class StoreAccessError(StoreError, PermissionError):
    """The object store denied the operation, or no credentials were found for it."""


class StoreCredentialsError(StoreAccessError):
    """No credentials were found for the object store, or those that were found are refused as such."""


class StoreUnavailableError(StoreError, ConnectionError):
    """The object store could not be reached or kept answering with server errors."""


class StoreTimeoutError(StoreError, TimeoutError):
    """The operation did not end within ``[async_state] timeout``."""


class PurgeError(StoreError):
    """Some objects could not be deleted; the others were.

    ``remaining`` maps the name of each object that is known to be left to the store's reason. Running the same
    clear or purge again takes up where this one failed.
    """

    def __init__(self, message: str, remaining: Mapping[str, str]) -> None:
        super().__init__(message)
        self.remaining = dict(remaining)
