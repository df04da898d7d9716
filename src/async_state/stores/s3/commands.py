"""Requests that only the command ``airflow async-state`` sends, through the client alone: their speed matters little.

As those of `operations.Operations`, each counts its attempts and tries nothing again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from async_state.stores.base import Details
from async_state.stores.s3.client import Client, entry, error_of
from async_state.stores.s3.errors import OF_VERSIONS, is_conflict, is_not_implemented, is_of_credentials, is_retryable
from async_state.stores.s3.operations import S3Error

#: S3's limit on the keys of one DeleteObjects request.
_MOST_KEYS: Final = 1000
#: The id that S3 gives to what is written while a bucket keeps no versions: each write replaces the one before.
_NO_VERSION: Final = "null"


async def head(s3: Client, key: str) -> Details | None:
    """Return what S3 says of an object, named by its key, or ``None`` if there is none."""
    try:
        with error_of("HeadObject"):
            answer = await s3.client.head_object(Bucket=s3.bucket, Key=key)
            version = answer.get("VersionId", "")
            return Details(
                entry(key, answer["ContentLength"], answer["LastModified"], answer.get("ETag", "")),
                answer.get("ContentEncoding", ""),
                {name.lower(): value for name, value in answer.get("Metadata", {}).items()},
                "" if version == _NO_VERSION else version,
            )
    except S3Error as e:
        # An answer to HEAD has no body, so no code either.
        if e.status == 404:
            return None
        raise


async def delete_if_match(s3: Client, key: str, *, etag: str) -> bool:
    """Delete an object while it has this ETag, and return whether it is gone.

    A store may ignore the condition; one that refuses the request is asked for the ETag before an unconditional one.
    """
    try:
        with error_of("DeleteObject"):
            await s3.client.delete_object(Bucket=s3.bucket, Key=key, IfMatch=f'"{etag}"')
        return True
    except S3Error as e:
        if e.status == 412 or e.code == "NoSuchKey":
            # It may be that an attempt whose answer was lost has deleted it.
            return await head(s3, key) is None
        if not is_not_implemented(e):
            raise
    found = await head(s3, key)
    if found is not None and found.entry.etag != etag:
        return False
    await s3.delete(key)
    return True


async def delete_version(s3: Client, key: str, *, version: str) -> bool:
    """Delete a version of an object for good, after all earlier ones, and return whether the object is gone.

    Nothing is deleted where the version is not the current one. What is written meanwhile stays.
    """
    current, earlier = await _versions(s3, key)
    if current != version:
        return not current
    for start in range(0, len(earlier), _MOST_KEYS):
        batch: Any = [{"Key": key, "VersionId": id_} for id_ in earlier[start : start + _MOST_KEYS]]
        with _error_of_versions("DeleteObjects"):
            answer = await s3.client.delete_objects(Bucket=s3.bucket, Delete={"Objects": batch, "Quiet": True})
        for refused in answer.get("Errors", ()):
            raise S3Error(refused.get("Code", ""), refused.get("Message", ""), operation=OF_VERSIONS)
    with _error_of_versions("DeleteObject"):
        await s3.client.delete_object(Bucket=s3.bucket, Key=key, VersionId=version)
    return True


async def copy(
    s3: Client, key: str, *, source: Mapping[str, str], arguments: Mapping[str, str], seen: Details | None
) -> bool:
    """Copy an object with its metadata over what was seen, and return whether S3 could, and was allowed to.

    A store may ignore the condition, and releases of botocore that do not know it send none.

    Args:
        s3: of the bucket to copy to.
        key: of the copy.
        source: the bucket and the key to copy from.
        arguments: those of PutObject.
        seen: what is copied over, or ``None``. What is there meanwhile stays.
    """
    model: Any = s3.client.meta.service_model.operation_model("CopyObject")
    known = model.input_shape.members

    async def send(condition: Mapping[str, str]) -> None:
        with error_of("CopyObject"):
            sent = {name: value for name, value in condition.items() if name in known}
            named: Any = {"CopySource": source, **arguments, **sent}
            await s3.client.copy_object(Bucket=s3.bucket, Key=key, **named)

    try:
        await _conditionally(send, seen)
    except S3Error as e:
        if is_retryable(e) or is_of_credentials(e):
            raise
        return False
    return True


async def put_over(
    s3: Client,
    key: str,
    *,
    body: bytes,
    arguments: Mapping[str, str],
    metadata: Mapping[str, str],
    seen: Details | None,
) -> None:
    """Write an object over what was seen, or ``None``. What is there meanwhile stays, as in `copy`."""
    await _conditionally(lambda condition: s3.put(key, body, {**arguments, **condition}, metadata), seen)


async def _conditionally(send: Callable[[Mapping[str, str]], Awaitable[None]], seen: Details | None) -> None:
    """Send a request that writes over what was seen and nothing else; without a condition to a store that knows none.

    It may be that an attempt whose answer was lost has written: whoever asks for it looks afterwards.
    """
    try:
        await send({"IfMatch": f'"{seen.entry.etag}"'} if seen else {"IfNoneMatch": "*"})
    except S3Error as e:
        # AWS says that there is no such key where what was seen is gone, and also where there is nothing to copy.
        if is_conflict(e) and (seen is not None or e.code != "NoSuchKey"):
            return
        if not is_not_implemented(e):
            raise
        await send({})


async def _versions(s3: Client, key: str) -> tuple[str, list[str]]:
    """Return the id of an object's current version, empty if there is none, and those of all others, oldest first."""
    current = ""
    others: list[str] = []
    markers: list[str] = []
    more: Any = {}
    while True:
        with _error_of_versions("ListObjectVersions"):
            page = await s3.client.list_object_versions(Bucket=s3.bucket, Prefix=key, **more)
        for version in page.get("Versions", ()):
            if version["Key"] != key:
                continue
            if version.get("IsLatest"):
                current = version["VersionId"]
            else:
                others.append(version["VersionId"])
        markers += [marker["VersionId"] for marker in page.get("DeleteMarkers", ()) if marker["Key"] == key]
        # The shortest name with a prefix comes first.
        if not page.get("IsTruncated") or page.get("NextKeyMarker") != key:
            return current, [*reversed(markers), *reversed(others)]
        more = {"KeyMarker": key, "VersionIdMarker": page["NextVersionIdMarker"]}


@contextmanager
def _error_of_versions(operation: str) -> Iterator[None]:
    """As `error_of`, for a request that needs more rights than others of its name."""
    try:
        with error_of(operation):
            yield
    except S3Error as e:
        e.operation = OF_VERSIONS if e.operation == operation else e.operation
        raise
