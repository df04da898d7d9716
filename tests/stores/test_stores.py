"""One contract for every store, below the backend."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import pytest

from async_state import Settings, iothread
from async_state.errors import StoreAccessError, StoreError
from async_state.stores import Store, open_store
from async_state.stores.file import FileStore

SettingsOf = Callable[..., Settings]

pytestmark = pytest.mark.anyio

NAME = "v1/task/dag/run%2F1/task/-1/worker/key"


@pytest.fixture(scope="session")
def store(store_settings: SettingsOf) -> Store:
    settings = store_settings()
    return open_store(settings.url, settings, {})


@pytest.fixture
def prefix() -> str:
    return f"v1/task/{uuid.uuid4().hex}/"


async def names(store: Store, prefix: str) -> list[str]:
    async def listed() -> list[str]:
        return [name async for page in store.list(prefix) for name in page]

    return sorted(await iothread.arun(listed))


async def test_what_is_put_is_got(store: Store, prefix: str) -> None:
    name = f"{prefix}run/t/-1/worker/a%2Fb%25:.gz~{'0' * 32}"
    assert await iothread.arun(store.get, name) is None
    for body in (b"", b"x", bytes(range(256)) * 4096):
        await iothread.arun(store.put, name, body, "")
        assert await iothread.arun(store.get, name) == body


async def test_a_listing_is_of_its_prefix(store: Store, prefix: str) -> None:
    kept = [f"{prefix}r/t/1/worker/a", f"{prefix}r/t/1/worker/b%2Fc:d", f"{prefix}r/t/1/server/a"]
    for name in [*kept, f"{prefix}r/t/10/worker/a", f"{prefix}r/t2/1/worker/a"]:
        await iothread.arun(store.put, name, b"1", "")
    assert await names(store, f"{prefix}r/t/1/") == sorted(kept)
    assert len(await names(store, prefix)) == 5
    assert await names(store, f"{prefix}none/") == []


async def test_a_deletion_is_of_its_names(store: Store, prefix: str) -> None:
    kept, gone = f"{prefix}r/t/1/worker/kept", [f"{prefix}r/t/1/worker/a%2F{i}" for i in range(5)]
    for name in [kept, *gone]:
        await iothread.arun(store.put, name, b"1", "")
    assert await iothread.arun(store.delete, gone) == {}
    assert await iothread.arun(store.delete, gone) == {}
    assert await iothread.arun(store.delete, gone[:1]) == {}
    assert await names(store, prefix) == [kept]


async def test_writers_of_one_object_do_not_mix(store: Store, prefix: str, request: pytest.FixtureRequest) -> None:
    if "rclone" in request.node.name:
        pytest.skip("rclone's server writes in place: it answers 500 to a read meanwhile, or with another's checksum")
    name = f"{prefix}r/t/1/worker/k"
    bodies = [bytes([65 + i]) * 50_000 for i in range(8)]
    seen: list[bytes | None] = []

    async def read() -> None:
        seen.append(await iothread.arun(store.get, name))

    async with anyio.create_task_group() as group:
        for body in bodies:
            group.start_soon(iothread.arun, store.put, name, body, "")
            group.start_soon(read)
    assert set(seen) <= {None, *bodies}
    assert await iothread.arun(store.get, name) in bodies


async def test_a_store_works_on_after_it_is_closed(store: Store, prefix: str) -> None:
    name = f"{prefix}r/t/1/worker/k"
    await iothread.arun(store.put, name, b"1", "")
    await iothread.arun(store.aclose)
    await iothread.arun(store.aclose)
    assert await iothread.arun(store.get, name) == b"1"


async def test_s3_is_used_on_the_io_thread_only() -> None:
    settings = Settings(url="s3://bucket")
    with pytest.raises(RuntimeError, match=r"iothread\.arun"):
        await open_store(settings.url, settings, {}).get("name")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "a" / "state"


@pytest.fixture
def files(root: Path) -> FileStore:
    return FileStore(root.as_uri(), timeout=20)


async def test_files_belong_to_their_owner_alone(files: FileStore, root: Path) -> None:
    previous = os.umask(0)
    try:
        await iothread.arun(files.put, NAME, b"1", "")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((root / NAME).stat().st_mode) == 0o600
    directories = [path for path in [root, *root.rglob("*")] if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}


async def test_a_deleted_file_leaves_no_directory_behind(files: FileStore, root: Path) -> None:
    await iothread.arun(files.put, NAME, b"1", "")
    await iothread.arun(files.put, f"{NAME}2", b"1", "")
    await iothread.arun(files.delete, [NAME])
    assert [path for path in root.rglob("*") if path.is_file()] == [root / f"{NAME}2"]
    await iothread.arun(files.delete, [f"{NAME}2"])
    assert list(root.iterdir()) == []


async def test_a_write_that_fails_leaves_the_file_as_it_was(
    files: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await iothread.arun(files.put, NAME, b"before", "")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    # A full disk can't be had here without a file system of one's own.
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        await iothread.arun(files.put, NAME, b"after", "")
    assert str(root / NAME) in str(caught.value)
    assert await iothread.arun(files.get, NAME) == b"before"
    assert [path for path in root.rglob("*") if path.is_file()] == [root / NAME]


async def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    below = FileStore(f"{tmp_path.as_uri()}/file/state", timeout=20)
    with pytest.raises(StoreError, match=str(tmp_path / "file")):
        await iothread.arun(below.put, NAME, b"1", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
async def test_a_forbidden_file_is_named(files: FileStore, root: Path) -> None:
    await iothread.arun(files.put, NAME, b"1", "")
    (root / NAME).chmod(0)
    with pytest.raises(StoreAccessError, match="who owns it"):
        await iothread.arun(files.get, NAME)


async def test_many_processes_write_and_clear_one_directory(root: Path, files: FileStore) -> None:
    program = """
import sys
from async_state import iothread
from async_state.purge import purge_prefix
from async_state.stores.file import FileStore
files, me = FileStore(sys.argv[1], timeout=20), sys.argv[2]
for i in range(60):
    iothread.run(files.put, f"v1/task/d/r/t/-1/worker/{me}-{i}", b"1", "")
    if i % 20 == 10:
        iothread.run(purge_prefix, files, "v1/task/d/r/t/-1/", concurrency=4)
iothread.run(files.put, f"v1/task/d/r/t/-1/worker/{me}", me.encode(), "")
"""
    writers: Sequence[str] = [str(i) for i in range(4)]
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", program, root.as_uri(), writer], env=dict(os.environ))
        for writer in writers
    ]
    assert [await anyio.to_thread.run_sync(process.wait) for process in processes] == [0] * len(writers)
    assert not list(root.rglob(".*"))
    left = await names(files, "v1/")
    # A process's last clear may have taken what another one wrote after its own; but nothing was cleared after the last
    # clear of all, so what that process wrote after it is there.
    after_clear = {writer: {f"{writer}-{i}" for i in range(51, 60)} | {writer} for writer in writers}
    assert any(written <= {name.rpartition("/")[2] for name in left} for written in after_clear.values())
    for name in left:
        body = await iothread.arun(files.get, name)
        assert body is not None
        assert body.decode() in ("1", *writers)
