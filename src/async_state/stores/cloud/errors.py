"""What went wrong in a cloud, told to the person on call: what failed, where, and what to change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from aiohttp import ClientConnectorCertificateError, ClientConnectorSSLError, ClientError

from async_state.errors import (
    AsyncStateError,
    StoreAccessError,
    StoreCredentialsError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from async_state.stores.base import AnswerError
from async_state.stores.retry import Attempts
from async_state.urls import mask

_OUTAGE: Final = "Raise [async_state] timeout above the length of such outages"
#: Airflow tries a failed task again, and not its failed operation.
_OUTAGE_OF_A_PUT: Final = (
    f"{_OUTAGE}, or set outage_inline_threshold: if this was the id of a job, the task's retry submits the job once "
    "more, so look for the job before"
)
_CERTIFICATES: Final = (
    "Check the endpoint's certificate, and name the file of the authority that signed it in REQUESTS_CA_BUNDLE"
)
#: The clouds' words for credentials that are refused as such; others may be accepted.
_BAD_CREDENTIALS: Final = frozenset(
    {"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation", "authError"}
)
#: A write's condition did not hold: Azure's word where something is there, beside HTTP 412.
_CONFLICTS: Final = frozenset({"BlobAlreadyExists", "conditionNotMet"})
_THROTTLED: Final = frozenset({"ServerBusy", "rateLimitExceeded", "userRateLimitExceeded"})


class CloudError(AnswerError):
    """The cloud answered a request with an error. Its codes are words such as ``AuthorizationFailure``."""


class NotCloudError(Exception):
    """What answered is not the cloud: a proxy's page, or a document without what the cloud always says."""


class TokenError(Exception):
    """There is no token to send requests with.

    Attributes:
        passes: whether a later attempt may find one.
    """

    def __init__(self, message: str, *, passes: bool) -> None:
        super().__init__(message)
        self.passes = passes


class Advice(NamedTuple):
    """What to change, in the words of one cloud.

    Attributes:
        credentials: where none were found, or where they are refused.
        access: where they may not do what was asked.
        place: where there is no such bucket or container.
    """

    credentials: str
    access: str
    place: str


def is_missing_place(e: Exception) -> bool:
    """Tell whether there is no such bucket or container."""
    return isinstance(e, CloudError) and e.status == 404


def is_conflict(e: Exception) -> bool:
    """Tell whether a condition of the request did not hold: another object is there, or none."""
    return isinstance(e, CloudError) and (e.status == 412 or e.code in _CONFLICTS)


class CloudErrors:
    """What errors mean, as `opened.Operations` asks.

    Args:
        advice: the cloud's.
    """

    def __init__(self, advice: Advice) -> None:
        self._advice = advice

    def is_retryable(self, e: Exception) -> bool:
        """Tell whether the same request may succeed later."""
        if isinstance(e, AsyncStateError):
            return False
        if isinstance(e, CloudError):
            return self.is_throttled(e) or e.status == 408 or (e.status >= 500 and e.status not in (501, 505))
        if isinstance(e, TokenError):
            return e.passes
        if self.is_of_certificates(e):
            return False
        return isinstance(e, (ClientError, NotCloudError, OSError, asyncio.TimeoutError))

    def is_timeout(self, e: Exception) -> bool:
        """Tell whether the cloud did not answer in time."""
        return isinstance(e, (asyncio.TimeoutError, TimeoutError))

    def is_throttled(self, e: Exception) -> bool:
        """Tell whether the cloud asks to slow down."""
        return isinstance(e, CloudError) and (e.status == 429 or e.code in _THROTTLED)

    def retry_after(self, e: Exception) -> str:
        """Return the ``Retry-After`` header of the answer, or an empty string."""
        return e.retry_after if isinstance(e, CloudError) else ""

    def is_of_credentials(self, e: Exception) -> bool:
        """Tell whether the credentials are refused as such, so that newer ones may be accepted."""
        if not isinstance(e, CloudError):
            return False
        # Azurite has Azure's sentence, but under the code for what credentials may not do.
        return e.status == 401 or e.code in _BAD_CREDENTIALS or "failed to authenticate" in e.message

    def is_of_certificates(self, e: Exception) -> bool:
        """Tell whether the endpoint's certificate was not accepted."""
        if isinstance(e, (ClientConnectorCertificateError, ClientConnectorSSLError, ssl.SSLError)):
            return True
        return isinstance(e.__cause__, ssl.SSLCertVerificationError)

    @contextmanager
    def map_exceptions(self, what: str, where: str, attempts: Attempts) -> Iterator[None]:
        """Raise a `StoreError` for what aiohttp and the cloud raise in the block. As `opened.Errors`."""
        try:
            yield
        except AsyncStateError:
            raise
        except (CloudError, NotCloudError, TokenError, ClientError, OSError, ValueError) as e:
            # Unless its text has a password, of a proxy say, it is worth seeing as the cause.
            raise self.store_error(e, what, where, attempts) from (e if mask(str(e)) == str(e) else None)

    def store_error(self, e: Exception, what: str, where: str, attempts: Attempts) -> StoreError:
        """Return the `StoreError` that tells of ``e``."""
        kind, advice = self._diagnosis(e, _OUTAGE_OF_A_PUT if what.startswith("put ") else _OUTAGE)
        return kind(f"could not {what} ({where}): {_reason(e, attempts)}. {advice}")

    def _diagnosis(self, e: Exception, outage: str) -> tuple[type[StoreError], str]:
        if isinstance(e, TokenError) or self.is_of_credentials(e):
            return StoreCredentialsError, self._advice.credentials
        if isinstance(e, CloudError) and e.status == 403:
            return StoreAccessError, self._advice.access
        if is_missing_place(e):
            return StoreError, self._advice.place
        if isinstance(e, CloudError) and self.is_retryable(e):
            return StoreUnavailableError, f"The service is overloaded or fails. {outage}"
        if self.is_of_certificates(e):
            return StoreUnavailableError, _CERTIFICATES
        if self.is_timeout(e):
            return StoreTimeoutError, f"Check that the service answers from this host. {outage}"
        if isinstance(e, (ClientError, OSError, NotCloudError)):
            return StoreUnavailableError, (
                f"Check that [async_state] endpoint_url is right and that this host reaches the service. {outage}"
            )
        return StoreError, "Check [async_state] url and endpoint_url"


def _reason(e: Exception, attempts: Attempts) -> str:
    if isinstance(e, CloudError):
        status = f"HTTP {e.status}, " if e.status else ""
        request = f", request id {e.request_id}" if e.request_id else ""
        text = f"{e.code or 'an error without a code'}: {e.message or 'no message'}"
        return f"{mask(text)}".rstrip(". ") + f" ({status}{attempts}{request})"
    if isinstance(e, TokenError):
        return mask(str(e)).rstrip(". ") + f" ({attempts})"
    return f"{type(e).__name__}: {mask(str(e))}".rstrip(": .") + f" ({attempts})"
