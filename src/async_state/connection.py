"""An Airflow connection as credentials for S3.

Looked up on the thread that calls the backend, never on the I/O thread: Airflow's channel to the supervisor serves one
thread at a time, and a lookup from a second one, while the first waits for it, never ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from async_state.errors import ConfigurationError

#: Of a connection's extras, those that botocore's client takes; the others that Airflow's Amazon provider knows would
#: need its session factory, and are refused rather than ignored.
_TAKEN: Final = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region_name", "endpoint_url"}
_REFUSED: Final = {"role_arn", "assume_role_method", "profile_name", "session_kwargs"}


def get_credentials(conn_id: str) -> dict[str, str]:
    """Return the connection's credentials, blocking while Airflow looks it up.

    Raises:
        ConfigurationError: there is no such connection, or it needs what only the Amazon provider does; or it can't be
            looked up here, on the thread of an event loop that waits for another answer from Airflow.
    """
    from airflow.sdk import Connection
    from airflow.sdk.execution_time import comms

    try:
        connection = Connection.get(conn_id)
        extra = connection.extra_dejson
    except Exception as e:
        raise _not_found(conn_id, e) from e
    # No `Exception`: left to itself, it may hang the task's process. Before task-sdk 1.3.2 there is none.
    except getattr(comms, "DeadlockImminentError", ()) as e:
        raise ConfigurationError(
            f"[async_state] aws_conn_id: the connection {conn_id!r} can't be looked up by a call on an event loop that "
            "waits for another answer from Airflow; set [async_state] patch_accessors = True, or await "
            "async_state.accessors.AsyncStateStore instead, or leave the option empty for botocore's own chain"
        ) from e
    return _credentials(conn_id, connection, extra)


async def aget_credentials(conn_id: str) -> dict[str, str]:
    """Return the connection's credentials. As `get_credentials`, without blocking the running loop."""
    from airflow.sdk import Connection

    try:
        connection = await Connection.async_get(conn_id)
        # To read the extra is to have it masked, for which Airflow is asked. Before task-sdk 1.3.2 that blocks.
        awaits = hasattr(connection, "aextra_dejson")
        extra = await connection.aextra_dejson() if awaits else connection.extra_dejson
    except Exception as e:
        raise _not_found(conn_id, e) from e
    return _credentials(conn_id, connection, extra)


def _credentials(conn_id: str, connection: Any, extra: dict[str, Any]) -> dict[str, str]:
    if refused := sorted(_REFUSED & extra.keys()):
        raise ConfigurationError(
            f"[async_state] aws_conn_id: the connection {conn_id!r} has {', '.join(refused)} in its extra, which is "
            "not supported; leave the option empty and give the worker that role or profile through botocore's chain"
        )
    found = {name: str(extra[name]) for name in _TAKEN if extra.get(name)}
    if connection.login:
        found["aws_access_key_id"] = connection.login
    if connection.password:
        found["aws_secret_access_key"] = connection.password
    return found


def _not_found(conn_id: str, e: Exception) -> ConfigurationError:
    return ConfigurationError(f"[async_state] aws_conn_id: could not get the connection {conn_id!r}: {e}")


@dataclass(frozen=True)
class Connection:
    conn_id: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region_name: str | None = None
    endpoint_url: str | None = None


def _of(d: dict[str, str], conn_id: str) -> Connection:
    return Connection(
        conn_id,
        d.get("aws_access_key_id"),
        d.get("aws_secret_access_key"),
        d.get("aws_session_token"),
        d.get("region_name"),
        d.get("endpoint_url"),
    )


def get(conn_id: str) -> Connection:
    return _of(get_credentials(conn_id), conn_id)


async def aget(conn_id: str) -> Connection:
    return _of(await aget_credentials(conn_id), conn_id)
