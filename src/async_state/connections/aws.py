"""A connection of type aws as credentials, region and endpoint for S3."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from async_state import urls
from async_state.connections import Connection
from async_state.connections.found import Found

_TAKEN: Final = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region_name", "endpoint_url")

_ROLE: Final = (
    "leave [async_state] aws_conn_id empty and give the worker that role or profile by botocore's own chain: a profile "
    "of the AWS config file (AWS_PROFILE), web identity or an instance role"
)
_CLIENT: Final = "set it for botocore instead, by a profile of the AWS config file or by an AWS_* variable"
#: The extras that Airflow's Amazon provider knows, or once knew, and that are not taken: what to do instead.
_REFUSED: Final = {
    "role_arn": _ROLE,
    "assume_role_method": _ROLE,
    "assume_role_kwargs": _ROLE,
    "assume_role_with_saml": _ROLE,
    "assume_role_with_web_identity_federation": _ROLE,
    "assume_role_with_web_identity_federation_audience": _ROLE,
    "assume_role_with_web_identity_token_file": _ROLE,
    "external_id": _ROLE,
    "aws_account_id": _ROLE,
    "aws_iam_role": _ROLE,
    "profile_name": _ROLE,
    "profile": _ROLE,
    "s3_config_file": _ROLE,
    "s3_config_format": _ROLE,
    "session_kwargs": "put keys into login and password, and the region into the extra region_name",
    "config_kwargs": _CLIENT,
    "verify": "name the CA bundle of the store in the variable AWS_CA_BUNDLE",
    "service_config": "put the endpoint of S3 into the extra endpoint_url, and leave out s3 in service_config",
    "host": "put the endpoint into the extra endpoint_url",
}


@dataclass(frozen=True)
class AwsConnection(Connection):
    """Credentials for S3, and where they are valid. What is ``None`` is left to botocore's chain."""

    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region_name: str | None = None
    endpoint_url: str | None = None


def parse(found: Found) -> AwsConnection:
    """Return what the connection holds.

    Raises:
        ConfigurationError: It holds what can't be used.
    """
    extra = found.extras(_TAKEN, _REFUSED, _changes_nothing)
    given = {name: str(value) for name, value in extra.items()}
    key_id, secret = given.get("aws_access_key_id"), given.get("aws_secret_access_key")
    # As in Airflow's Amazon provider: login and password come first, and count as a pair.
    if found.login and found.password:
        key_id, secret = found.login, found.password
    elif not (key_id and secret) and (found.login or found.password or key_id or secret):
        raise found.bad(
            "has half of a pair of keys; it needs both a login (the access key's id) and a password (its secret), or "
            "neither for botocore's own chain"
        )
    token = given.get("aws_session_token")
    if token and not key_id:
        raise found.bad("has the extra aws_session_token, but no login and password that it could belong to")
    found.check_sendable({"access key's id": key_id, "secret": secret, "aws_session_token": token})
    return AwsConnection(
        conn_id=found.conn_id,
        access_key_id=key_id,
        secret_access_key=secret,
        session_token=token,
        region_name=found.checked("an extra region_name", given.get("region_name"), urls.check_region),
        endpoint_url=found.checked("an extra endpoint_url", given.get("endpoint_url"), urls.check_endpoint),
    )


def _changes_nothing(name: str, value: Any) -> bool:
    if name == "verify":
        return value is True
    # Other services are not asked.
    return name == "service_config" and (not value or (isinstance(value, dict) and not value.get("s3")))
