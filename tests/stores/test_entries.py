"""What every store says of its objects, and how one is deleted only where it is still the one that was seen."""

from __future__ import annotations

import contextlib
import itertools
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest

from async_state import Settings, codec, connections, iothread
from async_state.stores import Store, open_store
from async_state.stores.base import Entry
from async_state.stores.s3 import S3Store
from async_state.testing import Answer, FakeS3, Request, faults
from async_state.testing.faults import Exchange, Fault
from tests import servers
from tests.stores.s3.direct import send_nothing_directly
from tests.stores.test_stores import arun

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.anyio

NAME = "v1/task/dag/run%2F1/task/-1/worker/a%2Fb:c~d%25 e"


@dataclass
class Place:
    """A kind of store, with a new base URL each time it is asked for one."""

    kind: str
    root: str
    endpoint_url: str | None = None

    def settings(self) -> Settings:
        return Settings(url=f"{self.root}/{uuid.uuid4().hex}", endpoint_url=self.endpoint_url)

    def client(self) -> S3Client:
        assert self.endpoint_url
        return servers.s3_client(self.endpoint_url)


KINDS = [
    "memory",
    "file",
    "moto",
    "moto by its client",
    "moto with versions",
    "rclone",
    "seaweedfs",
    "seaweedfs with versions",
]


@pytest.fixture(scope="module")
def seaweedfs_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield url


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    kind = request.param
    if kind == "memory":
        yield Place(kind, "memory://entries")
    elif kind == "file":
        yield Place(kind, tmp_path_factory.mktemp("entries").as_uri())
    elif kind == "rclone":
        yield Place(kind, "s3://state", request.getfixturevalue("rclone_url"))
    else:
        server = kind.split()[0]
        url = (
            request.getfixturevalue("seaweedfs_url")
            if server == "seaweedfs"
            else request.getfixturevalue("moto_server").url
        )
        place = Place(kind, f"s3://{kind.replace(' ', '-')}", url)
        with contextlib.closing(place.client()) as client, pytest.MonkeyPatch.context() as patch:
            name = place.root.removeprefix("s3://")
            # An answer that was lost is asked for again.
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=name)
            if "versions" in kind:
                client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
            if "client" in kind:
                send_nothing_directly(patch)
            yield place


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    settings = place.settings()
    opened = open_store(settings.url, settings, connections.empty(settings.url))
    yield opened
    iothread.run(iothread.arun, opened.aclose)


def on(*kinds: str) -> pytest.MarkDecorator:
    """Run a test on these kinds of store only."""
    return pytest.mark.parametrize("place", kinds, indirect=True)


async def entries(store: Store, prefix: str = "") -> list[Entry]:
    async def listed() -> list[Entry]:
        return [entry async for page in store.entries(prefix, timeout=20) for entry in page]

    return await iothread.arun(listed)


async def test_head_says_what_the_listing_says(store: Store) -> None:
    before = datetime.now(timezone.utc)
    await arun(store.put, NAME, b"12345", "")
    (entry,) = await entries(store)
    details = await arun(store.head, NAME)
    assert details is not None
    assert details.entry == entry
    assert (entry.name, entry.size) == (NAME, 5)
    assert before - timedelta(seconds=2) <= entry.modified <= datetime.now(timezone.utc) + timedelta(seconds=2)
    assert entry.etag
    assert '"' not in entry.etag


async def test_head_of_nothing(store: Store) -> None:
    assert await arun(store.head, NAME) is None
    await arun(store.put, f"{NAME}2", b"1", "")
    assert await arun(store.head, NAME) is None


async def test_head_tells_how_an_object_is_packed(store: Store, place: Place) -> None:
    body, encoding = codec.encode("[]", "gzip")
    await arun(store.put, NAME, body, encoding)
    details = await arun(store.head, NAME)
    assert details is not None
    assert details.content_encoding == "gzip"
    assert details.metadata == ({"crc32": f"{zlib.crc32(body):08x}"} if place.endpoint_url else {})


async def test_a_listing_of_everything_is_in_the_order_of_names(store: Store, place: Place) -> None:
    names = ["v1/owner", "foreign", "v1/t/a-b", "v1/t/a/b", "v1/t/a0", "v1/t/é", "v1/u", "v1/t.txt", "v2"]
    for name in names:
        await arun(store.put, name, b"1", "")

    async def listed(prefix: str) -> list[str]:
        found = [entry.name for entry in await entries(store, prefix)]
        # SeaweedFS lists a directory beside what has its name and more, and rclone did so up to 1.70.
        return sorted(found) if place.kind.startswith(("seaweedfs", "rclone")) else found

    assert await listed("") == sorted(names)
    assert await listed("v1/t/") == ["v1/t/a-b", "v1/t/a/b", "v1/t/a0", "v1/t/é"]
    assert await listed("v1/none/") == []


# Of the others, the clear of the contract's suite lists as many.
@on("memory", "file")
async def test_a_listing_goes_on_behind_a_page(store: Store) -> None:
    names = [f"v1/{number:04}" for number in range(1001)]

    async def put() -> None:
        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(partial(store.put, name, b"1", "", timeout=60))

    await iothread.arun(put)
    assert [entry.name for entry in await entries(store)] == names


async def test_what_was_seen_is_deleted(store: Store) -> None:
    for body in b"1", b"2", b"3":
        await arun(store.put, NAME, body, "")
    await arun(store.put, f"{NAME}2", b"kept", "")
    seen = await arun(store.head, NAME)
    assert seen is not None
    assert await arun(store.delete_unchanged, seen)
    assert await arun(store.get, NAME) is None
    assert await arun(store.head, NAME) is None
    assert [entry.name for entry in await entries(store)] == [f"{NAME}2"]


async def test_what_was_written_since_is_kept(store: Store, place: Place) -> None:
    await arun(store.put, NAME, b"1", "")
    seen = await arun(store.head, NAME)
    assert seen is not None
    await arun(store.put, NAME, b"2", "")
    if place.kind == "rclone":
        # It ignores If-Match, which is why whoever deletes calls `head` immediately before.
        assert await arun(store.delete_unchanged, seen)
        assert await arun(store.get, NAME) is None
        return
    assert not await arun(store.delete_unchanged, seen)
    assert await arun(store.get, NAME) == b"2"


async def test_what_somebody_else_has_deleted_is_gone(store: Store) -> None:
    await arun(store.put, NAME, b"1", "")
    seen = await arun(store.head, NAME)
    assert seen is not None
    await arun(store.delete, [NAME])
    assert await arun(store.delete_unchanged, seen)
    assert await arun(store.delete_unchanged, seen)
    assert await arun(store.get, NAME) is None


async def test_what_was_seen_is_written_over(store: Store) -> None:
    await arun(store.put_over, NAME, b"1", "", None)
    assert await arun(store.get, NAME) == b"1"
    seen = await arun(store.head, NAME)
    body, encoding = codec.encode("[1]", "gzip")
    await arun(store.put_over, NAME, body, encoding, seen)
    assert await arun(store.get, NAME) == body
    details = await arun(store.head, NAME)
    assert details is not None
    assert details.content_encoding == "gzip"
    assert [entry.name for entry in await entries(store)] == [NAME]


async def test_what_was_written_since_is_not_written_over(store: Store, place: Place) -> None:
    await arun(store.put, NAME, b"1", "")
    seen = await arun(store.head, NAME)
    await arun(store.put, NAME, b"2", "")
    for earlier in None, seen:
        await arun(store.put_over, NAME, b"3", "", earlier)
        # It ignores both conditions, which is why whoever writes calls `head` immediately before.
        assert await arun(store.get, NAME) == (b"3" if place.kind == "rclone" else b"2")
    assert [entry.name for entry in await entries(store)] == [NAME]


async def test_what_was_deleted_since_stays_away(store: Store, place: Place) -> None:
    await arun(store.put, NAME, b"1", "")
    seen = await arun(store.head, NAME)
    await arun(store.delete, [NAME])
    await arun(store.put_over, NAME, b"2", "", seen)
    assert [entry.name for entry in await entries(store)] == ([NAME] if place.kind == "rclone" else [])


async def test_a_copy_inside_the_store(store: Store, place: Place) -> None:
    settings = place.settings()
    source = open_store(settings.url, settings, connections.empty(settings.url))
    body, encoding = codec.encode("[1]", "gzip")
    await arun(source.put, NAME, body, encoding)
    copied = await arun(store.copy_from, settings.url, NAME, None)
    assert copied == bool(place.endpoint_url)
    if copied:
        assert await arun(store.get, NAME) == body
        original, copy = await arun(source.head, NAME), await arun(store.head, NAME)
        assert original is not None
        assert copy is not None
        assert (copy.content_encoding, copy.entry.size) == ("gzip", len(body))
        assert copy.metadata["crc32"] == original.metadata["crc32"]
    assert not await arun(store.copy_from, settings.url, f"{NAME}-none", None)
    assert await arun(store.get, f"{NAME}-none") is None
    await iothread.arun(source.aclose)


# Buckets with versions.


def versions(place: Place, store: S3Store) -> list[str]:
    """The versions and markers below the base URL, as their names end."""
    with contextlib.closing(place.client()) as client:
        options = store._options
        found = client.list_object_versions(Bucket=options.bucket, Prefix=options.prefix)
    return [
        f"{kind} {item['Key'].removeprefix(options.prefix)}"
        for kind in ("Versions", "DeleteMarkers")
        for item in found.get(kind, [])  # type: ignore[attr-defined]
    ]


@pytest.fixture
def versioned(store: Store) -> S3Store:
    assert isinstance(store, S3Store)
    return store


with_versions = on("moto with versions", "seaweedfs with versions")


@with_versions
async def test_all_versions_of_what_was_seen_are_deleted(versioned: S3Store, place: Place) -> None:
    await arun(versioned.put, NAME, b"1", "")
    await arun(versioned.delete, [NAME])
    for body in b"2", b"3":
        await arun(versioned.put, NAME, body, "")
    await arun(versioned.put, f"{NAME}2", b"kept", "")
    seen = await arun(versioned.head, NAME)
    assert seen is not None
    assert seen.version
    assert await arun(versioned.delete_unchanged, seen)
    assert versions(place, versioned) == [f"Versions {NAME}2"]


@with_versions
async def test_a_version_that_was_written_since_stays_with_all_before(versioned: S3Store, place: Place) -> None:
    await arun(versioned.put, NAME, b"1", "")
    seen = await arun(versioned.head, NAME)
    assert seen is not None
    # The same content has the same ETag, and is another version.
    await arun(versioned.put, NAME, b"1", "")
    assert not await arun(versioned.delete_unchanged, seen)
    assert versions(place, versioned) == [f"Versions {NAME}"] * 2


@on("moto with versions")
async def test_a_version_that_is_written_meanwhile_stays(versioned: S3Store, place: Place, moto: FakeS3) -> None:
    """At each request of the deletion in turn."""
    for step in range(3):
        for body in b"1", b"2":
            await arun(versioned.put, NAME, body, "")
        seen = await arun(versioned.head, NAME)
        assert seen is not None
        sent = itertools.count()

        def write(exchange: Exchange, sent: Iterator[int] = sent, step: int = step) -> Answer:
            answer = exchange.carry_out(exchange.body)
            if next(sent) == step:
                with contextlib.closing(place.client()) as client:
                    client.put_object(Bucket=versioned._options.bucket, Key=versioned._options.prefix + NAME, Body=b"3")
            return answer

        with moto.failing(Fault(write), when=lambda request: request.method != "PUT") as hit:
            assert await arun(versioned.delete_unchanged, seen)
        assert len(hit.requests) == 3
        assert await arun(versioned.get, NAME) == b"3"
        assert versions(place, versioned) == [f"Versions {NAME}"]
        assert await arun(versioned.delete, [NAME]) == {}


@with_versions
async def test_what_was_written_while_no_versions_were_kept(versioned: S3Store, place: Place) -> None:
    """Its id says nothing of its content, so the ETag decides; no version that was kept before comes back."""
    bucket_name = versioned._options.bucket
    await arun(versioned.put, NAME, b"0", "")
    with contextlib.closing(place.client()) as client:
        client.put_bucket_versioning(Bucket=bucket_name, VersioningConfiguration={"Status": "Suspended"})
        try:
            await arun(versioned.put, NAME, b"1", "")
            seen = await arun(versioned.head, NAME)
            assert seen is not None
            assert seen.version == ""
            await arun(versioned.put, NAME, b"2", "")
            assert not await arun(versioned.delete_unchanged, seen)
            assert await arun(versioned.get, NAME) == b"2"
            seen = await arun(versioned.head, NAME)
            assert seen is not None
            assert await arun(versioned.delete_unchanged, seen)
            assert await arun(versioned.head, NAME) is None
        finally:
            client.put_bucket_versioning(Bucket=bucket_name, VersioningConfiguration={"Status": "Enabled"})


# Answers that get lost, and stores that know no condition.


@on("moto", "moto with versions")
async def test_a_deletion_whose_answer_was_lost(store: Store, moto: FakeS3) -> None:
    await arun(store.put, NAME, b"1", "")
    seen = await arun(store.head, NAME)
    assert seen is not None
    with moto.failing(faults.reset_before_answer(), times=1, method="DELETE") as hit:
        assert await arun(store.delete_unchanged, seen)
    assert len(hit.requests) == 1
    assert await arun(store.head, NAME) is None


@on("moto")
async def test_a_store_that_refuses_conditions(store: Store, moto: FakeS3) -> None:
    def refuse(request: Request) -> Answer | None:
        if "if-match" not in request.headers:
            return None
        return "501 Not Implemented", [], b"<Error><Code>NotImplemented</Code><Message>If-Match</Message></Error>"

    await arun(store.put, NAME, b"1", "")
    seen = await arun(store.head, NAME)
    assert seen is not None
    moto.intercept = refuse
    await arun(store.put, NAME, b"2", "")
    assert not await arun(store.delete_unchanged, seen)
    assert await arun(store.get, NAME) == b"2"
    seen = await arun(store.head, NAME)
    assert seen is not None
    assert await arun(store.delete_unchanged, seen)
    assert await arun(store.head, NAME) is None
