"""What went wrong in S3, told to the person on call: what failed, where, and what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from async_state.errors import AsyncStateError, StoreAccessError, StoreError, StoreUnavailableError

_DENIED = {"AccessDenied", "AllAccessDisabled", "403", "Forbidden"}
_BAD_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_RENEW = "Renew or correct the credentials that this process uses, and check its clock"
_WRONG_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301"}


@contextlib.contextmanager
def explained(what: str, where: str, attempts: object) -> Iterator[None]:
    """Turn what botocore and aiohttp raise in the block into a `StoreError`.

    Parameters:
        what: the operation and its object, such as ``get s3://bucket/key``.
        where: the endpoint and region it went to.
        attempts: what to say of the attempts made by the time of the error.
    """
    try:
        yield
    except _foreign() as e:
        if isinstance(e, AsyncStateError) or (isinstance(e, RuntimeError) and not _of_credentials(e)):
            raise
        kind, advice = _diagnosis(e)
        raise kind(f"could not {what} ({where}): {_reason(e, attempts)}. {advice}") from e


def refused(what: str, where: str, code: str, message: str) -> StoreError:
    """Return the error for what the store refused within a request that otherwise succeeded."""
    kind, advice = _code_diagnosis(code, status=0)
    return kind(f"could not {what} ({where}): {code}: {message}. {advice}")


def _foreign() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    # botocore raises these, too: of endpoints and dates that it can't read, and of credentials that have ended.
    return BotoCoreError, ClientError, HttpError, ResponseParserError, OSError, ValueError, RuntimeError


def _of_credentials(e: Exception) -> bool:
    # Those that have ended. Any other such error is a mistake in the program.
    return isinstance(e, RuntimeError) and "credentials" in str(e)


def _reason(e: Exception, attempts: object) -> str:
    error = _client_error(e)
    if error is None:
        return f"{type(e).__name__}: {e}".rstrip(". ") + f" ({attempts})"
    metadata = getattr(e, "response", {}).get("ResponseMetadata", {})
    request = f", request id {metadata['RequestId']}" if metadata.get("RequestId") else ""
    return (
        f"{error.get('Code', 'unknown error')}: {error.get('Message', 'no message')}".rstrip(". ")
        + f" (HTTP {metadata.get('HTTPStatusCode')}, {attempts}{request})"
    )


def _client_error(e: Exception) -> dict[str, Any] | None:
    response = getattr(e, "response", None)
    return response.get("Error") if isinstance(response, dict) else None


def _diagnosis(e: Exception) -> tuple[type[StoreError], str]:
    from botocore import exceptions as boto

    error = _client_error(e)
    if error is not None:
        status = getattr(e, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
        return _code_diagnosis(str(error.get("Code")), status)
    if isinstance(e, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        return StoreAccessError, (
            "Give this process AWS credentials (environment, profile, web identity or instance role), or name an "
            "Airflow connection in [async_state] aws_conn_id"
        )
    if isinstance(e, (boto.ProfileNotFound, boto.ConfigParseError, boto.NoRegionError)):
        return StoreError, "Check the AWS profile, config file and [async_state] region_name on this host"
    if _of_credentials(e):
        return StoreAccessError, _RENEW
    if isinstance(e, ValueError):
        return StoreError, (
            "Check [async_state] endpoint_url and region_name, and this process's AWS_* variables and AWS config file"
        )
    if isinstance(e, boto.ParamValidationError):
        return StoreError, "Check the bucket in [async_state] url"
    return StoreUnavailableError, (
        "Check that [async_state] endpoint_url and region_name are right and that this host reaches the store; "
        "trying the operation again is safe"
    )


def _code_diagnosis(code: str, status: int) -> tuple[type[StoreError], str]:
    if code == "NoSuchBucket":
        return StoreError, "Create the bucket, or correct [async_state] url"
    if code in _DENIED:
        return StoreAccessError, (
            "Grant s3:GetObject, s3:PutObject and s3:DeleteObject on the objects and s3:ListBucket on the bucket "
            "(without s3:ListBucket, S3 calls a missing object a denied one), and kms:GenerateDataKey and "
            "kms:Decrypt where a KMS key is used"
        )
    if code in _BAD_CREDENTIALS:
        return StoreAccessError, _RENEW
    if code in _WRONG_REGION:
        return StoreError, "Set [async_state] region_name to the bucket's region"
    if status >= 500 or code in ("SlowDown", "InternalError", "ServiceUnavailable"):
        return StoreUnavailableError, "The store is overloaded or failing; trying the operation again is safe"
    return StoreError, "Check [async_state] url, endpoint_url and the options for encryption"
