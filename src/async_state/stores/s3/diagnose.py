"""What the command ``check`` asks about a bucket, beside the operations of a store. Through the client alone."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import anyio
from botocore.exceptions import ClientError

from async_state.errors import StoreTimeoutError
from async_state.stores.retry import Attempts, attempts, count_attempt
from async_state.stores.s3 import _botocore
from async_state.stores.s3.bucket import Bucket, open_bucket
from async_state.stores.s3.client import error_of
from async_state.stores.s3.endpoint import is_proxied
from async_state.stores.s3.errors import is_denied, is_not_implemented, map_exceptions
from async_state.stores.s3.operations import S3Error
from async_state.stores.s3.options import S3Options
from async_state.stores.tls import Tls, encryption_of

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

log = logging.getLogger(__name__)

#: What botocore's chain calls its providers, in the words of their documentation.
_PROVIDERS: Final = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "explicit": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the AWS config file",
    "assume-role": "a role that the AWS profile names",
    "assume-role-with-web-identity": "web identity (AWS_WEB_IDENTITY_TOKEN_FILE)",
    "sso": "AWS IAM Identity Center (SSO)",
    "custom-process": "credential_process of the AWS profile",
    "container-role": "the container's role (ECS, EKS Pod Identity)",
    "iam-role": "the instance's role (instance metadata)",
}
#: Answers that say that nothing is configured.
_NONE: Final = frozenset({"NoSuchLifecycleConfiguration", "ObjectLockConfigurationNotFoundError"})


class Place(NamedTuple):
    """Where the bucket is.

    Attributes:
        is_missing: The store says that there is no such bucket. Some make one when something is put there.
        region: Requests are signed for it.
        bucket_region: The store has the bucket there; empty where it does not say.
    """

    is_missing: bool
    region: str
    bucket_region: str


@dataclass(frozen=True)
class Answer:
    """What the store says of one of the bucket's settings.

    Attributes:
        found: Its configuration, as botocore parses it; empty where there is none.
        refused: Why the store does not tell, or an empty string.
        is_unknown: Whether the store has no such setting at all.
        is_denied: Whether these credentials may not ask for it.
    """

    found: Mapping[str, Any]
    refused: str = ""
    is_unknown: bool = False
    is_denied: bool = False


class Diagnosis:
    """A bucket that is open, and what there is to know of it.

    Args:
        options: The store's.
        bucket: Open.
        client: Its client.
        timeout: Seconds for each question.

    Attributes:
        url: Where the bucket's requests go.
    """

    def __init__(self, options: S3Options, bucket: Bucket, client: S3Client, timeout: float) -> None:
        self._options = options
        self._bucket = bucket
        self._client = client
        self._timeout = timeout
        self.url = bucket.direct.endpoint.bucket_url if bucket.direct else client.meta.endpoint_url

    @property
    def provider(self) -> str:
        """Who gave the credentials."""
        if self._options.connection.access_key_id:
            return f"the Airflow connection {self._options.connection.conn_id}"
        name = self._bucket.provider
        profile = os.environ.get("AWS_PROFILE")
        return _PROVIDERS.get(name, name) + (f", profile {profile}" if profile and "profile" not in name else "")

    @property
    def is_direct(self) -> bool:
        """Whether requests are sent directly."""
        return self._bucket.direct is not None

    @property
    def is_proxied(self) -> bool:
        """Whether requests go through a proxy."""
        return is_proxied(self.url)

    async def place(self) -> Place:
        """Return where the bucket is, if the store says."""
        answer: Mapping[str, Any] = {}
        try:
            with anyio.fail_after(self._timeout):
                answer = await self._client.head_bucket(Bucket=self._options.bucket)
        except ClientError as e:
            # Also an answer that denies everything else tells the region.
            answer = e.response
        except Exception as e:
            # The operations that follow tell what is wrong.
            log.debug("The bucket's region is not known: %s: %s", type(e).__name__, e)
        metadata = answer.get("ResponseMetadata", {})
        region = metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
        return Place(metadata.get("HTTPStatusCode") == 404, self._client.meta.region_name, region)

    async def tls(self) -> Tls | None:
        """Connect to the endpoint, and return its encryption; ``None`` for one without.

        Raises:
            StoreError: There is no connection, or its certificate is not accepted.
        """
        with map_exceptions(f"connect to {urlsplit(self.url).netloc}", self._options.where, attempts.get()):
            count_attempt()
            context = partial(_botocore.tls_context, self._bucket.ca_bundle)
            return await encryption_of(self.url, context, self._options.connect_timeout)

    async def versioning(self) -> Answer:
        """Return the answer to GetBucketVersioning."""
        asked = self._client.get_bucket_versioning(Bucket=self._options.bucket)
        return await self._setting("GetBucketVersioning", asked)

    async def lifecycle(self) -> Answer:
        """Return the answer to GetBucketLifecycleConfiguration."""
        asked = self._client.get_bucket_lifecycle_configuration(Bucket=self._options.bucket)
        return await self._setting("GetBucketLifecycleConfiguration", asked)

    async def object_lock(self) -> Answer:
        """Return the answer to GetObjectLockConfiguration."""
        asked = self._client.get_object_lock_configuration(Bucket=self._options.bucket)
        return await self._setting("GetObjectLockConfiguration", asked)

    async def _setting(self, operation: str, asked: Awaitable[Any]) -> Answer:
        try:
            with anyio.fail_after(self._timeout), error_of(operation):
                return Answer(await asked)
        except S3Error as e:
            if e.code in _NONE:
                return Answer({})
            why = e.code or f"HTTP {e.status}"
            return Answer({}, why, is_unknown=is_not_implemented(e), is_denied=is_denied(e))
        # It is not worth the check that one of these fails in any other way.
        except Exception as e:
            return Answer({}, type(e).__name__)


@asynccontextmanager
async def diagnosis(options: S3Options, timeout: float) -> AsyncIterator[Diagnosis]:
    """Open the bucket for the block: find its credentials and its endpoint.

    Args:
        options: The store's.
        timeout: Seconds for that, and for each question about it.

    Raises:
        StoreError: There are no credentials, or botocore can't use the options.
    """
    made = Attempts()
    token = attempts.set(made)
    try:
        async with AsyncExitStack() as stack:
            with map_exceptions(f"find credentials for {options.url('')}", options.where, made):
                with anyio.move_on_after(timeout) as scope:
                    bucket = await stack.enter_async_context(open_bucket(options))
                if scope.cancelled_caught:
                    raise StoreTimeoutError(
                        f"botocore found no credentials within {timeout:g} s: check the service that gives them (STS, "
                        "instance metadata), or name an Airflow connection in [async_state] aws_conn_id"
                    )
            yield Diagnosis(options, bucket, (await bucket.client()).client, timeout)
    finally:
        attempts.reset(token)
