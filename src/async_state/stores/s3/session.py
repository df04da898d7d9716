"""Sessions of aiobotocore: what clients and credentials come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_state.stores.base import without_collections
from async_state.stores.s3 import _botocore
from async_state.stores.s3.options import S3Options

if TYPE_CHECKING:
    from aiobotocore.session import AioSession


def new_session(options: S3Options) -> AioSession:
    """Return a session that takes credentials and region from the options, where they have some."""
    with without_collections():
        session = _botocore.new_session()
    if options.region_name:
        # Also for the services that give credentials: in a private network, STS may be reached in this region only.
        session.set_config_variable("region", options.region_name)
    connection = options.connection
    if connection.access_key_id:
        session.set_credentials(connection.access_key_id, connection.secret_access_key, connection.session_token)
    elif found := _botocore.environment_credentials():
        session.set_credentials(*found)
    return session
