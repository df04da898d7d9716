"""An Airflow connection as credentials, region and endpoint for S3.

A connection is looked up on the thread that calls the backend, never on the I/O thread. Airflow's channel to the
supervisor serves one thread at a time: a lookup from a second thread, for which the first one waits, never ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from async_state import urls
from async_state.errors import ConfigurationError

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
class Connection:
    """The credentials of an Airflow connection, and where they are valid. What is ``None`` is left to botocore's chain.

    ``Connection()`` stands for that chain alone.
    """

    conn_id: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region_name: str | None = None
    endpoint_url: str | None = None


def get(conn_id: str) -> Connection:
    """Look the connection up. Blocks the calling thread while Airflow answers.

    Each call asks Airflow anew, so a second one returns credentials that were replaced after the first.

    Args:
        conn_id: The connection's id, as in ``[async_state] aws_conn_id``.

    Returns:
        What the connection holds.

    Raises:
        ConfigurationError: There is no such connection, or it holds what can't be used. Or this thread runs an event
            loop that waits for another answer of Airflow, where a lookup would never end.
    """
    from airflow.sdk import Connection as AirflowConnection
    from airflow.sdk.execution_time import comms

    try:
        found = AirflowConnection.get(conn_id)
        extra = found.extra_dejson
    except Exception as e:
        raise _not_found(conn_id, e) from e
    # It is no `Exception`, and may hang the task's process if it is left to itself. task-sdk 1.3.0 and 1.3.1 lack it.
    except getattr(comms, "DeadlockImminentError", ()) as e:
        raise ConfigurationError(
            f"[async_state] aws_conn_id: the connection {conn_id!r} can't be looked up by a call on an event loop that "
            "waits for another answer from Airflow; set [async_state] patch_accessors = True, or await "
            "async_state.accessors.AsyncStateStore instead, or leave the option empty for botocore's own chain"
        ) from e
    return _connection(conn_id, found, extra)


async def aget(conn_id: str) -> Connection:
    """Look the connection up without blocking the running event loop. As `get` otherwise.

    Args:
        conn_id: The connection's id, as in ``[async_state] aws_conn_id``.

    Returns:
        What the connection holds.

    Raises:
        ConfigurationError: There is no such connection, or it holds what can't be used.
    """
    from airflow.sdk import Connection as AirflowConnection

    try:
        found = await AirflowConnection.async_get(conn_id)
        # Reading the extra asks Airflow to mask it. Before task-sdk 1.3.2 there is only the way that blocks.
        awaits = hasattr(found, "aextra_dejson")
        extra = await found.aextra_dejson() if awaits else found.extra_dejson
    except Exception as e:
        raise _not_found(conn_id, e) from e
    return _connection(conn_id, found, extra)


def _connection(conn_id: str, found: Any, extra: Any) -> Connection:
    # The SDK takes an extra that is no JSON for an empty one.
    extra = extra or {}
    if not isinstance(extra, dict) or (not extra and not _is_empty(found.extra)):
        raise _bad(conn_id, "has an extra that is no JSON object")
    _refuse_other_extras(conn_id, extra)
    given = {name: str(extra[name]) for name in _TAKEN if extra.get(name)}
    key_id, secret = given.get("aws_access_key_id"), given.get("aws_secret_access_key")
    # As in Airflow's Amazon provider: login and password come first, and count as a pair.
    if found.login and found.password:
        key_id, secret = str(found.login), str(found.password)
    elif not (key_id and secret) and (found.login or found.password or key_id or secret):
        raise _bad(
            conn_id,
            "has half of a pair of keys; it needs both a login (the access key's id) and a password (its secret), or "
            "neither for botocore's own chain",
        )
    token = given.get("aws_session_token")
    if token and not key_id:
        raise _bad(conn_id, "has the extra aws_session_token, but no login and password that it could belong to")
    for what, value in ("access key's id", key_id), ("secret", secret), ("aws_session_token", token):
        if value and not re.fullmatch(r"[!-~]+", value):
            raise _bad(conn_id, f"has a space, a line break or another character in its {what} that can't be sent")
    return Connection(
        conn_id=conn_id,
        access_key_id=key_id,
        secret_access_key=secret,
        session_token=token,
        region_name=_checked(conn_id, "region_name", given, urls.check_region),
        endpoint_url=_checked(conn_id, "endpoint_url", given, urls.check_endpoint),
    )


def _refuse_other_extras(conn_id: str, extra: Mapping[str, Any]) -> None:
    """Refuse what is not taken, since state would go elsewhere, or with other rights, than the connection says.

    That holds for an unknown extra too: it may be a misspelt ``endpoint_url``.
    """
    for name, value in extra.items():
        if name in _TAKEN or _changes_nothing(name, value):
            continue
        if name in _REFUSED:
            raise _bad(conn_id, f"has the extra {name}, which is not supported: {_REFUSED[name]}")
        import difflib

        nearest = difflib.get_close_matches(name, _TAKEN, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else "remove it, or give state a connection of its own"
        raise _bad(conn_id, f"has the extra {name}, which is not known: {advice}")


def _changes_nothing(name: str, value: Any) -> bool:
    if name == "verify":
        return value is True or value is None
    if name == "service_config":
        # Other services are not asked.
        return not value or (isinstance(value, dict) and not value.get("s3"))
    return value in (None, "", {}, [])


def _checked(conn_id: str, name: str, given: Mapping[str, str], check: Callable[[str], str]) -> str | None:
    try:
        return check(given[name]) if name in given else None
    except ValueError as e:
        raise _bad(conn_id, f"has an extra {name} that can't be used: it {e}") from None


def _is_empty(extra: str | None) -> bool:
    try:
        return not json.loads(extra or "{}")
    except ValueError:
        return False


def _not_found(conn_id: str, e: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"[async_state] aws_conn_id: could not get the connection {conn_id!r}: {urls.mask(str(e))}"
    )


def _bad(conn_id: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"[async_state] aws_conn_id: the connection {conn_id!r} {what}")
