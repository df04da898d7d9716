"""What went wrong in S3, told to the person on call: what failed, where, and what to change."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import ClientConnectorCertificateError, ClientConnectorSSLError, ClientError
from botocore import exceptions as boto

from async_state.errors import (
    AsyncStateError,
    StoreAccessError,
    StoreCredentialsError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from async_state.stores.retry import Attempts
from async_state.stores.s3.operations import NotS3Error, S3Error
from async_state.urls import mask

_DENIED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "403", "Forbidden"})
#: The credentials are refused as such; others may be accepted.
_BAD_CREDENTIALS: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
#: The signature is of another time than the store's.
_SKEWED: Final = "RequestTimeTooSkewed"
_WRONG_REGION: Final = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)
_THROTTLED: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
#: An operation's name in errors, where it lists or deletes versions of an object.
OF_VERSIONS: Final = "versions"
#: Errors that pass, whatever the status they come with.
_PASSING: Final = _THROTTLED | {
    "ConditionalRequestConflict",
    "IDPCommunicationError",
    "InternalError",
    "OperationAborted",
    "PriorRequestNotComplete",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
}
#: Requests that the store does not know; 501 and 405 stand for them where the answer has no code.
_NOT_IMPLEMENTED: Final = frozenset({"NotImplemented", "MethodNotAllowed"})

_OUTAGE: Final = "Raise [async_state] timeout above the length of such outages"
#: Airflow tries a failed task again, and not its failed operation.
_OUTAGE_OF_A_PUT: Final = (
    f"{_OUTAGE}, or set outage_inline_threshold: if this was the id of a job, the task's retry submits the job once "
    "more, so look for the job before"
)
_RENEW: Final = "Renew or correct the credentials that this process uses, and check its clock"
_CERTIFICATES: Final = (
    "Check the store's certificate, and name the file of the authority that signed it in AWS_CA_BUNDLE (SSL_CERT_FILE "
    "is not read)"
)


def is_retryable(e: Exception) -> bool:
    """Tell whether the same request may succeed later."""
    if isinstance(e, AsyncStateError):
        return False
    if isinstance(e, S3Error):
        # 501 and 505 are final; so is what S3 refuses, but for a request that was too slow, or one of too many.
        return e.code in _PASSING or (e.status >= 500 and e.status not in (501, 505)) or e.status in (408, 429)
    if is_of_certificates(e):
        return False
    if isinstance(e, (ClientError, NotS3Error, OSError, asyncio.TimeoutError)):
        return True
    return isinstance(
        e,
        (
            boto.ConnectionError,
            boto.HTTPClientError,
            boto.CredentialRetrievalError,
            boto.MetadataRetrievalError,
            boto.NoCredentialsError,
        ),
    )


def is_timeout(e: Exception) -> bool:
    """Tell whether the store did not answer in time."""
    return isinstance(e, (asyncio.TimeoutError, TimeoutError, boto.ReadTimeoutError, boto.ConnectTimeoutError))


def is_throttled(e: Exception) -> bool:
    """Tell whether the store asks to slow down."""
    return isinstance(e, S3Error) and (e.code in _THROTTLED or e.status == 429)


def retry_after(e: Exception) -> str:
    """Return the ``Retry-After`` header of the answer, or an empty string."""
    return e.retry_after if isinstance(e, S3Error) else ""


def is_of_region(e: Exception) -> bool:
    """Tell whether the bucket is in another region than the request went to; botocore's client finds the right one."""
    return isinstance(e, S3Error) and (e.code in _WRONG_REGION or 300 <= e.status < 400)


def is_of_credentials(e: Exception) -> bool:
    """Tell whether the credentials are refused as such, so that newer ones may be accepted."""
    if isinstance(e, S3Error):
        return e.code in _BAD_CREDENTIALS
    # botocore's words for credentials that were renewed and have ended all the same.
    return isinstance(e, RuntimeError) and "credentials" in str(e)


def is_denied(e: Exception) -> bool:
    """Tell whether the credentials are accepted, and may not do what was asked."""
    if not isinstance(e, S3Error) or e.code in _BAD_CREDENTIALS or e.code == _SKEWED:
        return False
    return e.code in _DENIED or e.status in (401, 403)


def is_of_certificates(e: Exception) -> bool:
    """Tell whether the store's certificate was not accepted."""
    if isinstance(e, (ClientConnectorCertificateError, ClientConnectorSSLError, ssl.SSLError, boto.SSLError)):
        return True
    return isinstance(e.__cause__, ssl.SSLCertVerificationError)


def is_not_implemented(e: Exception) -> bool:
    """Tell whether the store does not know the request."""
    return isinstance(e, S3Error) and (e.code in _NOT_IMPLEMENTED or (not e.code and e.status in (405, 501)))


def is_conflict(e: Exception) -> bool:
    """Tell whether a condition of the request did not hold: another object is there, or none."""
    return isinstance(e, S3Error) and (e.status == 412 or e.code in ("PreconditionFailed", "NoSuchKey"))


@contextmanager
def map_exceptions(what: str, where: str, attempts: Attempts) -> Iterator[None]:
    """Raise a `StoreError` for what botocore, aiohttp and S3 raise in the block.

    Args:
        what: the operation and its object, such as ``get s3://bucket/key``.
        where: the endpoint and region.
        attempts: those of the operation.

    Raises:
        StoreError: with the first line that the person on call needs.
    """
    try:
        yield
    except AsyncStateError:
        raise
    except (S3Error, NotS3Error, ClientError, boto.BotoCoreError, OSError, ValueError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and not is_of_credentials(e):
            raise
        raise store_error(e, what, where, attempts) from _without_secrets(e)


def store_error(e: Exception, what: str, where: str, attempts: Attempts) -> StoreError:
    """Return the `StoreError` that tells of ``e``."""
    kind, advice = _diagnosis(e, _OUTAGE_OF_A_PUT if what.startswith("put ") else _OUTAGE)
    return kind(f"could not {what} ({where}): {_reason(e, attempts)}. {advice}")


def _without_secrets(e: Exception) -> Exception | None:
    """Return ``e`` as a cause to show, unless its text has a password, of a proxy say."""
    return e if mask(str(e)) == str(e) else None


def _reason(e: Exception, attempts: Attempts) -> str:
    if isinstance(e, S3Error):
        status = f"HTTP {e.status}, " if e.status else ""
        request = f", request id {e.request_id}" if e.request_id else ""
        text = f"{e.code or 'an error without a code'}: {e.message or 'no message'}"
        return f"{mask(text)}".rstrip(". ") + f" ({status}{attempts}{request})"
    return f"{type(e).__name__}: {mask(str(e))}".rstrip(": .") + f" ({attempts})"


def _diagnosis(e: Exception, outage: str) -> tuple[type[StoreError], str]:
    if isinstance(e, S3Error):
        return _of_credentials_service(e) or _of_answer(e, outage)
    if isinstance(e, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        return StoreCredentialsError, (
            "Give this process AWS credentials (environment, profile, web identity or instance role), or name an "
            "Airflow connection in [async_state] aws_conn_id"
        )
    if isinstance(e, (boto.ProfileNotFound, boto.ConfigParseError, boto.NoRegionError)):
        return StoreError, "Check the AWS profile, config file and [async_state] region_name on this host"
    if is_of_credentials(e):
        return StoreCredentialsError, _RENEW
    if is_of_certificates(e):
        return StoreUnavailableError, _CERTIFICATES
    if is_timeout(e):
        return StoreTimeoutError, f"Check that the store answers from this host. {outage}"
    if isinstance(e, boto.ParamValidationError):
        return StoreError, "Check the bucket in [async_state] url"
    if isinstance(e, (ClientError, OSError, boto.ConnectionError, boto.HTTPClientError, NotS3Error)):
        return StoreUnavailableError, (
            "Check that [async_state] endpoint_url and region_name are right and that this host reaches the store. "
            + outage
        )
    return StoreError, (
        "Check [async_state] endpoint_url and region_name, and this process's AWS_* variables and AWS config file"
    )


def _of_credentials_service(e: S3Error) -> tuple[type[StoreError], str] | None:
    """Return what to say of an error of the service that gives credentials, such as STS."""
    if not e.operation.startswith(("AssumeRole", "GetRoleCredentials", "GetSessionToken", "CreateToken")):
        return None
    service = "sso" if e.operation in ("GetRoleCredentials", "CreateToken") else "sts"
    role = os.environ.get("AWS_ROLE_ARN") or "the role that the AWS profile names"
    return StoreCredentialsError, (
        f"{service}:{e.operation} for {role} was refused, before any request to the store: check the role's trust "
        "policy and this process's identity (AWS_WEB_IDENTITY_TOKEN_FILE, or the profile's source)"
    )


def _of_answer(e: S3Error, outage: str) -> tuple[type[StoreError], str]:
    if e.code == "NoSuchBucket":
        return StoreError, "Create the bucket, or correct [async_state] url"
    if e.code in _BAD_CREDENTIALS or e.code == _SKEWED:
        return StoreCredentialsError, _RENEW
    if is_denied(e) and e.operation == OF_VERSIONS:
        return StoreAccessError, (
            "The bucket keeps versions, all of which a sweep deletes: grant s3:ListBucketVersions on the bucket and "
            "s3:DeleteObjectVersion on the objects"
        )
    if is_denied(e):
        return StoreAccessError, (
            "Grant s3:GetObject, s3:PutObject and s3:DeleteObject on the objects and s3:ListBucket on the bucket "
            "(without s3:ListBucket, S3 calls a missing object a denied one), and kms:GenerateDataKey and "
            "kms:Decrypt where a KMS key is used"
        )
    if is_of_region(e):
        return StoreError, "Set [async_state] region_name to the bucket's region"
    if is_retryable(e):
        return StoreUnavailableError, f"The store is overloaded or fails. {outage}"
    return StoreError, "Check [async_state] url, endpoint_url and the options for encryption"
