"""What an S3 store is opened with: the place where an option of `Settings` becomes an argument of S3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from async_state.connections import Connection
from async_state.connections.aws import AwsConnection
from async_state.settings import Settings
from async_state.stores.base import bucket_and_prefix


class PutOption(NamedTuple):
    """An option of `Settings` that goes with each object that is written."""

    value: Callable[[Settings], str | None]
    #: Its name as an argument of PutObject, and as a header of the request.
    argument: str
    header: str


PUT_OPTIONS: Final = (
    PutOption(lambda settings: settings.server_side_encryption, "ServerSideEncryption", "x-amz-server-side-encryption"),
    PutOption(lambda settings: settings.sse_kms_key_id, "SSEKMSKeyId", "x-amz-server-side-encryption-aws-kms-key-id"),
)


@dataclass(frozen=True)
class S3Options:
    """One bucket, the prefix in it, and how to reach it. ``None`` leaves the choice to botocore.

    Attributes:
        bucket: the bucket's name.
        prefix: what every key begins with: empty, or ending in ``/``.
        read_timeout: seconds that one request waits for the store to send anything.
        max_attempts: the most requests that one operation sends; 0 for any number.
        max_concurrency: the most connections that a process keeps to the bucket.
        endpoint_url: the store's address.
        region_name: the bucket's region.
        connection: where credentials come from; an empty one stands for botocore's own chain.
        put_arguments: arguments of every PutObject, by their S3 names.
    """

    bucket: str
    prefix: str = ""
    read_timeout: float = 10.0
    max_attempts: int = 0
    max_concurrency: int = 24
    endpoint_url: str | None = None
    region_name: str | None = None
    connection: AwsConnection = field(default_factory=AwsConnection)
    put_arguments: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, url: str, settings: Settings, connection: Connection) -> S3Options:
        """Return the options for the base URL ``url``.

        Args:
            url: ``s3://bucket/prefix``, as `Settings` has accepted it.
            settings: endpoint and region in them win over the connection's. The endpoint is that of ``settings.url``.
            connection: the Airflow connection that ``aws_conn_id`` names, or an empty one.

        Raises:
            TypeError: The connection is for another store.
        """
        if not isinstance(connection, AwsConnection):
            raise TypeError(f"{url} takes an AwsConnection, not {type(connection).__name__}")
        endpoint_url = settings.endpoint_url if settings.url.startswith("s3://") else None
        bucket, prefix = bucket_and_prefix(url)
        return cls(
            bucket=bucket,
            prefix=prefix,
            # A request that is answered with nothing leaves time for another one.
            read_timeout=settings.timeout / 2,
            max_attempts=settings.max_attempts,
            max_concurrency=settings.max_concurrency,
            endpoint_url=endpoint_url or connection.endpoint_url or None,
            region_name=settings.region_name or connection.region_name or None,
            connection=connection,
            put_arguments=tuple(
                (option.argument, value) for option in PUT_OPTIONS if (value := option.value(settings))
            ),
        )

    def url(self, name: str) -> str:
        """Return the URL of the object ``name``, as references and messages have it."""
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def put_arguments_of(self, content_encoding: str) -> dict[str, str]:
        """Return the arguments of a PutObject, but for the object and its metadata."""
        encoded = {"ContentEncoding": content_encoding} if content_encoding else {}
        return {"ContentType": "application/json", **dict(self.put_arguments), **encoded}

    @property
    def connect_timeout(self) -> float:
        """Seconds that making a connection may take."""
        return min(5.0, self.read_timeout)

    @property
    def where(self) -> str:
        """The endpoint and region that were configured, for messages."""
        return f"endpoint {self.endpoint_url or 'default'}, region {self.region_name or 'default'}"


def put_headers(arguments: Mapping[str, str]) -> dict[str, str]:
    """Return the HTTP headers for arguments of PutObject."""
    headers = {"ContentType": "Content-Type", "ContentEncoding": "Content-Encoding"}
    headers |= {"IfMatch": "If-Match", "IfNoneMatch": "If-None-Match"}
    headers |= {option.argument: option.header for option in PUT_OPTIONS}
    return {headers[name]: value for name, value in arguments.items()}
