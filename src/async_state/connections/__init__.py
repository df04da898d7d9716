"""An Airflow connection as credentials, account and endpoint of an object store.

    found.py       what Airflow answered, and what is wrong with it
    aws.py         a connection of type aws, for ``s3://``
    google.py      a connection of type google_cloud_platform, for ``gs://``
    azure.py       a connection of type wasb, for ``az://``

A connection is looked up on the thread that calls the backend, never on the I/O thread. Airflow's channel to the
supervisor serves one thread at a time: a lookup from a second thread, for which the first one waits, never ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from async_state import urls
from async_state.connections.found import Found
from async_state.errors import ConfigurationError

if TYPE_CHECKING:
    from async_state.settings import Settings

#: Who finds the credentials where an option is empty.
_CHAINS: Final = {
    "aws_conn_id": "botocore's own chain",
    "gcp_conn_id": "Google's Application Default Credentials",
    "wasb_conn_id": "Azure's default credentials",
}


@dataclass(frozen=True)
class Connection:
    """The credentials of an Airflow connection, and where they are valid; each store has a kind of its own.

    What is ``None`` in it is left to the cloud's own chain. An empty one of its kind stands for that chain alone.
    """

    conn_id: str | None = None


def conn_id(url: str, settings: Settings) -> str | None:
    """Return the id of the connection that the settings name for a base URL's store, if any."""
    option = urls.connection_option(url)
    found: str | None = getattr(settings, option) if option else None
    return found


def empty(url: str) -> Connection:
    """Return the connection of the right kind for a base URL that leaves everything to the cloud's own chain."""
    match urls.connection_option(url):
        case "aws_conn_id":
            from async_state.connections.aws import AwsConnection

            return AwsConnection()
        case "gcp_conn_id":
            from async_state.connections.google import GoogleConnection

            return GoogleConnection()
        case "wasb_conn_id":
            from async_state.connections.azure import AzureConnection

            return AzureConnection()
    return Connection()


def get(option: str, conn_id: str) -> Connection:
    """Look the connection up. Blocks the calling thread while Airflow answers.

    Each call asks Airflow anew, so a second one returns credentials that were replaced after the first.

    Args:
        option: The option that names it: ``aws_conn_id``, ``gcp_conn_id`` or ``wasb_conn_id``.
        conn_id: The connection's id, as in that option.

    Returns:
        What the connection holds, as the option's kind of connection.

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
        raise _not_found(option, conn_id, e) from e
    # It is no `Exception`, and may hang the task's process if it is left to itself. task-sdk 1.3.0 and 1.3.1 lack it.
    except getattr(comms, "DeadlockImminentError", ()) as e:
        raise ConfigurationError(
            f"[async_state] {option}: the connection {conn_id!r} can't be looked up by a call on an event loop that "
            "waits for another answer from Airflow; set [async_state] patch_accessors = True, or await "
            f"async_state.accessors.AsyncStateStore instead, or leave the option empty for {_CHAINS[option]}"
        ) from e
    return _parsed(Found.of(option, conn_id, found, extra))


async def aget(option: str, conn_id: str) -> Connection:
    """Look the connection up without blocking the running event loop. As `get` otherwise.

    Args:
        option: The option that names it: ``aws_conn_id``, ``gcp_conn_id`` or ``wasb_conn_id``.
        conn_id: The connection's id, as in that option.

    Returns:
        What the connection holds, as the option's kind of connection.

    Raises:
        ConfigurationError: There is no such connection, or it holds what can't be used.
    """
    from airflow.sdk import Connection as AirflowConnection

    try:
        found = await AirflowConnection.async_get(conn_id)
        # Reading the extra asks Airflow to mask it. Before task-sdk 1.3.2 there is only the way that blocks.
        awaits = hasattr(found, "aextra_dejson")
        extra: Any = await found.aextra_dejson() if awaits else found.extra_dejson
    except Exception as e:
        raise _not_found(option, conn_id, e) from e
    return _parsed(Found.of(option, conn_id, found, extra))


def _parsed(found: Found) -> Connection:
    match found.option:
        case "gcp_conn_id":
            from async_state.connections import google

            return google.parse(found)
        case "wasb_conn_id":
            from async_state.connections import azure

            return azure.parse(found)
    from async_state.connections import aws

    return aws.parse(found)


def _not_found(option: str, conn_id: str, e: Exception) -> ConfigurationError:
    return ConfigurationError(f"[async_state] {option}: could not get the connection {conn_id!r}: {urls.mask(str(e))}")
