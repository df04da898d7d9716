"""stores/file.py: what a directory can do wrong that no other store can."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from async_state import iothread
from async_state.errors import CorruptObjectError, StoreError, StoreTimeoutError
from async_state.purge import purge_prefix
from async_state.stores import file
from async_state.stores.file import FileStore
from tests.stores.test_stores import arun, names

pytestmark = pytest.mark.anyio

PREFIX = "v1/task/dag/run%2F1/task/-1/"
NAME = f"{PREFIX}worker/key"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "a" / "state"


@pytest.fixture
def files(root: Path) -> FileStore:
    return FileStore(root.as_uri())


async def test_files_belong_to_their_owner_alone(files: FileStore, root: Path) -> None:
    previous = os.umask(0)
    try:
        await arun(files.put, NAME, b"1", "")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((root / NAME).stat().st_mode) == 0o600
    directories = [path for path in [root, *root.rglob("*")] if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}


async def test_a_deleted_file_leaves_no_directory_behind(files: FileStore, root: Path) -> None:
    await arun(files.put, NAME, b"1", "")
    await arun(files.put, f"{NAME}2", b"1", "")
    await arun(files.delete, [NAME])
    assert [path for path in root.rglob("*") if path.is_file()] == [root / f"{NAME}2"]
    await arun(files.delete, [f"{NAME}2"])
    assert list(root.iterdir()) == []


async def test_a_write_that_fails_leaves_the_file_as_it_was(
    files: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await arun(files.put, NAME, b"before", "")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    # A full disk can't be had here without a file system of one's own.
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        await arun(files.put, NAME, b"after", "")
    assert str(root / NAME) in str(caught.value)
    assert await arun(files.get, NAME) == b"before"
    assert [path for path in root.rglob("*") if path.is_file()] == [root / NAME]


async def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    below = FileStore(f"{tmp_path.as_uri()}/file/state")
    with pytest.raises(StoreError, match=str(tmp_path / "file")):
        await arun(below.put, NAME, b"1", "")


async def test_many_processes_write_and_clear_one_directory(root: Path, files: FileStore) -> None:
    program = """
import sys
from async_state import iothread
from async_state.purge import purge_prefix
from async_state.stores.file import FileStore
files, me = FileStore(sys.argv[1]), sys.argv[2]
for i in range(60):
    iothread.run(iothread.arun, files.put, f"v1/task/d/r/t/-1/worker/{me}-{i}", b"1", "", timeout=20)
    if i % 20 == 10:
        iothread.run(iothread.arun, purge_prefix, files, "v1/task/d/r/t/-1/", concurrency=4, timeout=20)
iothread.run(iothread.arun, files.put, f"v1/task/d/r/t/-1/worker/{me}", me.encode(), "", timeout=20)
"""
    writers: Sequence[str] = [str(i) for i in range(4)]
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", program, root.as_uri(), writer], env=dict(os.environ))
        for writer in writers
    ]
    assert [await anyio.to_thread.run_sync(process.wait) for process in processes] == [0] * len(writers)
    # Every process finished its own last write after all its clears; another's clear may have taken it.
    assert not list(root.rglob(".*"))
    for name in await names(files, "v1/"):
        body = await arun(files.get, name)
        assert body is not None
        assert body.decode() in ("1", *writers)


async def test_a_write_is_flushed_and_so_is_its_name(
    files: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bytes | None]] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        flushed.append((path, (root / NAME).read_bytes() if (root / NAME).exists() else None))

    monkeypatch.setattr(os, "fsync", seen)
    await arun(files.put, NAME, b"1", "")
    (temporary, before), (directory, after) = flushed
    # The content before it has its name, and the directory once it has.
    assert Path(temporary).parent == (root / NAME).parent
    assert before is None
    assert directory == str((root / NAME).parent)
    assert after == b"1"


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
async def test_a_file_system_that_can_not_flush_directories(
    files: FileStore, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    fsync = os.fsync

    def answering(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(answer, os.strerror(answer))
        fsync(descriptor)

    # Neither CIFS nor a FUSE file system can be mounted here.
    monkeypatch.setattr(os, "fsync", answering)
    if answer == errno.EIO:
        with pytest.raises(StoreError, match=os.strerror(answer)):
            await arun(files.put, NAME, b"1", "")
    else:
        await arun(files.put, NAME, b"1", "")
        assert await arun(files.get, NAME) == b"1"


# Objects that are too large.


async def test_a_huge_file_is_refused_unread(files: FileStore, root: Path) -> None:
    await arun(files.put, NAME, b"1", "")
    # A hole of a tebibyte, which no memory would hold.
    os.truncate(root / NAME, 2**40)
    with pytest.raises(CorruptObjectError, match=str(2**40)) as caught:
        await arun(files.get, NAME)
    assert str(root / NAME) in str(caught.value)


async def test_the_bound_on_a_file_is_exact(files: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MAX_BODY_BYTES", 1000)
    await arun(files.put, NAME, bytes(1000), "")
    assert await arun(files.get, NAME) == bytes(1000)
    await arun(files.put, NAME, bytes(1001), "")
    with pytest.raises(CorruptObjectError, match="1001"):
        await arun(files.get, NAME)


# Links.


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory outside the root, with a file where an object of a linked scope would be."""
    path = tmp_path / "elsewhere"
    (path / "worker").mkdir(parents=True)
    (path / "worker" / "key").write_bytes(b"outside")
    return path


@pytest.mark.parametrize("depth", range(1, 7))
async def test_a_linked_directory_is_not_followed(files: FileStore, root: Path, elsewhere: Path, depth: int) -> None:
    linked = root.joinpath(*NAME.split("/")[:depth])
    linked.parent.mkdir(parents=True)
    rest = NAME.split("/")[depth:]
    outside = elsewhere.joinpath(*rest)
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.write_bytes(b"outside")
    linked.symlink_to(elsewhere)
    operations: Sequence[Callable[[], Any]] = [
        lambda: arun(files.get, NAME),
        lambda: arun(files.put, NAME, b"1", ""),
        lambda: iothread.arun(purge_prefix, files, PREFIX, concurrency=2, timeout=20),
    ]
    for operation in operations:
        with pytest.raises(StoreError, match="symbolic link") as caught:
            await operation()
        assert str(root) in str(caught.value)
    failed = await arun(files.delete, [NAME])
    assert "symbolic link" in str(failed[NAME])
    assert outside.read_bytes() == b"outside"
    assert {path for path in elsewhere.rglob("*") if path.is_file()} == {outside, elsewhere / "worker" / "key"}


async def test_a_clear_removes_a_link_and_not_what_it_points_to(files: FileStore, root: Path, elsewhere: Path) -> None:
    await arun(files.put, NAME, b"1", "")
    (root / PREFIX / "directory").symlink_to(elsewhere)
    (root / PREFIX / "worker" / "file").symlink_to(elsewhere / "worker" / "key")
    with pytest.raises(StoreError):
        await arun(files.get, f"{PREFIX}worker/file")
    await iothread.arun(purge_prefix, files, PREFIX, concurrency=2, timeout=20)
    assert list(root.iterdir()) == []
    assert (elsewhere / "worker" / "key").read_bytes() == b"outside"


async def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "disk")
    files = FileStore(f"{tmp_path.as_uri()}/state")
    await arun(files.put, NAME, b"1", "")
    assert (tmp_path / "disk" / NAME).read_bytes() == b"1"
    assert await names(files, "v1/") == [NAME]
    assert await arun(files.delete, [NAME]) == {}
    assert list((tmp_path / "disk").iterdir()) == []


# Permissions.


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """A directory of the user as whom the next test's program runs; pytest's own ones are closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() == 0:
            os.chown(directory, 65534, 65534)
        yield Path(directory)


def test_what_permissions_forbid_is_reported(anybodys: Path) -> None:
    program = """
import json, os, sys
from pathlib import Path
from async_state import iothread
from async_state.errors import StoreError
from async_state.purge import purge_prefix
from async_state.stores.file import FileStore

def outcome(function, *args, **more):
    try:
        return repr(iothread.run(iothread.arun, function, *args, timeout=20, **more))
    except StoreError as e:
        return f"{type(e).__name__}: {e}"

def clear():
    return outcome(purge_prefix, files, "v1/task/d/", concurrency=2)

# Everything is imported before the code can't be read any more.
files = FileStore(Path(sys.argv[1], "first").as_uri())
assert outcome(files.put, "v1/task/d/k", b"1", "") == clear() == "None"
if os.geteuid() == 0:  # who may do everything
    os.setgid(65534)
    os.setuid(65534)
root = Path(sys.argv[1], "state")
files = FileStore(root.as_uri())
for name in ("closed/k", "open/k", "writeless/k"):
    assert outcome(files.put, f"v1/task/d/{name}", b"1", "") == "None"
(root / "v1/task/d/open/k").chmod(0)
(root / "v1/task/d/closed").chmod(0)
(root / "v1/task/d/writeless").chmod(0o500)
print(json.dumps([
    outcome(files.get, "v1/task/d/open/k"),
    outcome(files.get, "v1/task/d/closed/k"),
    outcome(files.put, "v1/task/d/writeless/k", b"2", ""),
    outcome(files.delete, ["v1/task/d/writeless/k"]),
    clear(),
    [str(path.relative_to(root)) for path in root.rglob("*")],
]))
(root / "v1/task/d/writeless").chmod(0o700)
print(json.dumps(clear()))
(root / "v1/task/d/closed").chmod(0o700)
print(json.dumps([clear(), os.listdir(root)]))
"""
    command = [sys.executable, "-W", "error", "-c", program, str(anybodys)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    forbidden, without_writeless, after = map(json.loads, done.stdout.splitlines())
    get_file, get_directory, put, delete, clear, left = forbidden
    directory = anybodys / "state" / "v1" / "task" / "d"
    for said, verb, path in (
        (get_file, "read", directory / "open" / "k"),
        (get_directory, "read", directory / "closed" / "k"),
        (put, "write", directory / "writeless" / "k"),
    ):
        assert said.startswith(f"StoreAccessError: not allowed to {verb} {path}")
        assert "who owns it" in said
    assert f"StoreAccessError('not allowed to delete {directory}/writeless/k" in delete
    assert clear.startswith("PurgeError: 1 object(s)")
    assert str(directory / "writeless" / "k") in clear
    # The others are deleted.
    assert "v1/task/d/open" not in left
    assert without_writeless.startswith("StoreAccessError: not allowed to list")
    assert str(directory / "closed") in without_writeless
    assert after == ["None", []]


# Disks that are slow or stuck.


class Disk:
    """A disk that answers late, of which there is none here: one function of the system waits until it is told not to.

    What follows it, in the store and on the real disk, is real.
    """

    def __init__(self) -> None:
        self.reached, self.answers = threading.Event(), threading.Event()
        self._waited = False

    def delay(
        self, function: Callable[..., Any], concerns: Callable[..., bool] = lambda *_, **__: True
    ) -> Callable[..., Any]:
        """Return the function, of which the first call waits that ``concerns`` the test."""

        def delayed(*args: Any, **kwargs: Any) -> Any:
            if not self._waited and concerns(*args, **kwargs):
                self._waited = True
                self.reached.set()
                self.answers.wait()
            return function(*args, **kwargs)

        return delayed


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.answers.set()


async def give_up(disk: Disk, how: str, operation: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
    """Start the operation, wait until the disk delays it, and cancel it; or let its time run out, if before or then."""
    if how == "timeout":
        with pytest.raises(StoreTimeoutError):
            await arun(operation, *args, timeout=0.01)
        await anyio.to_thread.run_sync(disk.reached.wait)
    else:
        begun = asyncio.create_task(arun(operation, *args))
        await anyio.to_thread.run_sync(disk.reached.wait)
        begun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begun


async def begun_is_over(root: Path) -> None:
    """Wait until the write that was given up has removed its temporary file."""
    with anyio.fail_after(60):
        # Not `rglob`, which fails where a directory disappears meanwhile.
        while any(name.startswith(".~") for _, _, found in os.walk(root) for name in found):
            await anyio.sleep(0.01)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
@pytest.mark.parametrize("later", ["set", "delete", "clear"])
async def test_a_write_that_was_given_up_undoes_nothing(
    files: FileStore, root: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, how: str, later: str
) -> None:
    def is_here(descriptor: int) -> bool:
        # A thread of an earlier test may still write elsewhere.
        return Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(root)

    monkeypatch.setattr(os, "fsync", disk.delay(os.fsync, is_here))
    await give_up(disk, how, files.put, NAME, b"old", "")
    if later == "set":
        await arun(files.put, NAME, b"new", "")
    elif later == "delete":
        assert await arun(files.delete, [NAME]) == {}
    else:
        await iothread.arun(purge_prefix, files, PREFIX, concurrency=2, timeout=20)
    disk.answers.set()
    await begun_is_over(root)
    assert await arun(files.get, NAME) == (b"new" if later == "set" else None)
    if later != "set":
        with anyio.fail_after(60):
            while list(root.iterdir()):
                await anyio.sleep(0.01)


@pytest.mark.parametrize("later", ["set", "delete", "clear"])
async def test_a_write_that_was_given_up_while_it_took_effect_undoes_nothing(
    files: FileStore, root: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    await arun(files.put, NAME, b"before", "")
    monkeypatch.setattr(Path, "replace", disk.delay(Path.replace))
    await give_up(disk, "cancel", files.put, NAME, b"old", "")
    # What does not wait has done its work when the disk answers.
    if later == "set":
        following: asyncio.Task[Any] = asyncio.create_task(arun(files.put, NAME, b"new", ""))
    elif later == "delete":
        following = asyncio.create_task(arun(files.delete, [NAME]))
    else:
        purge = iothread.arun(purge_prefix, files, PREFIX, concurrency=2, timeout=20)
        following = asyncio.create_task(purge)
    await asyncio.wait([following], timeout=0.3)
    disk.answers.set()
    await following
    await begun_is_over(root)
    assert await arun(files.get, NAME) == (b"new" if later == "set" else None)


async def test_a_clear_that_was_given_up_deletes_nothing_that_was_set_later(
    files: FileStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{PREFIX}worker/{i}" for i in range(9)]
    for name in keys:
        await arun(files.put, name, b"old", "")
    monkeypatch.setattr(Path, "unlink", disk.delay(Path.unlink))
    await give_up(disk, "cancel", files.delete, keys)
    following = asyncio.gather(*(arun(files.put, name, b"new", "") for name in keys))
    await asyncio.wait([following], timeout=0.3)
    disk.answers.set()
    await following
    assert {await arun(files.get, name) for name in keys} == {b"new"}


async def test_a_read_sees_what_was_given_up_or_never_will(
    files: FileStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", disk.delay(Path.replace))
    await give_up(disk, "cancel", files.put, NAME, b"old", "")
    reading = asyncio.create_task(arun(files.get, NAME))
    await asyncio.wait([reading], timeout=0.3)
    disk.answers.set()
    assert await reading == b"old"


async def test_a_stuck_disk_outlives_no_deadline(
    files: FileStore, root: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", disk.delay(Path.replace))
        await give_up(disk, "cancel", files.put, NAME, b"1", "")
    operations: Sequence[Callable[[], Any]] = [
        lambda: arun(files.get, NAME, timeout=0.05),
        lambda: arun(files.put, f"{NAME}2", b"1", "", timeout=0.05),
        lambda: arun(files.delete, [NAME], timeout=0.05),
        lambda: iothread.arun(purge_prefix, files, PREFIX, concurrency=2, timeout=0.05),
    ]
    with anyio.fail_after(60):
        for operation in operations:
            with pytest.raises(StoreTimeoutError, match=str(root)):
                await operation()
        # Another disk is no worse for it.
        assert await arun(FileStore((root / "other").as_uri()).get, NAME) is None
    disk.answers.set()
    await arun(files.put, NAME, b"2", "")
    assert await arun(files.get, NAME) == b"2"


async def test_a_read_that_blocks_outlives_no_deadline(files: FileStore, root: Path) -> None:
    (root / NAME).parent.mkdir(parents=True)
    # Opening a pipe blocks until somebody writes to it.
    os.mkfifo(root / NAME)
    with anyio.fail_after(60):
        for _ in range(3):
            with pytest.raises(StoreTimeoutError, match=str(root / NAME)):
                await arun(files.get, NAME, timeout=0.05)
        await arun(files.put, f"{NAME}2", b"1", "")
    os.close(os.open(root / NAME, os.O_WRONLY))


# Deleting what has not changed, while others write.


async def test_a_file_that_is_written_between_a_comparison_and_its_deletion_stays(
    files: FileStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await arun(files.put, NAME, b"old", "")
    seen = await arun(files.head, NAME)
    assert seen is not None
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", disk.delay(Path.unlink))
        deleting = asyncio.create_task(arun(files.delete_unchanged, seen))
        await anyio.to_thread.run_sync(disk.reached.wait)
    # A write that does not wait has replaced the file by now, and the deletion is of that one.
    writing = asyncio.create_task(arun(files.put, NAME, b"new", ""))
    await asyncio.wait([writing], timeout=0.3)
    disk.answers.set()
    assert await deleting
    await writing
    assert await arun(files.get, NAME) == b"new"


async def test_a_file_system_that_can_not_lock_directories(files: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    await arun(files.put, NAME, b"1", "")
    seen = await arun(files.head, NAME)
    assert seen is not None
    await arun(files.put, NAME, b"1", "")
    assert not await arun(files.delete_unchanged, seen)
    seen = await arun(files.head, NAME)
    assert seen is not None
    assert await arun(files.delete_unchanged, seen)
    assert await arun(files.head, NAME) is None


async def test_a_deletion_of_what_was_seen_leaves_no_directory_behind(files: FileStore, root: Path) -> None:
    await arun(files.put, NAME, b"1", "")
    seen = await arun(files.head, NAME)
    assert seen is not None
    assert await arun(files.delete_unchanged, seen)
    assert list(root.iterdir()) == []
    assert await arun(files.delete_unchanged, seen)


async def test_links_and_temporary_files_are_listed_and_not_followed(
    files: FileStore, root: Path, tmp_path: Path
) -> None:
    await arun(files.put, NAME, b"1", "")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"1234567")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / NAME).with_name("link").symlink_to(tmp_path / "elsewhere" / "file")
    (root / "v1" / ".~left").write_bytes(b"12")

    async def listed() -> dict[str, int]:
        pages = [page async for page in files.entries("", timeout=20)]
        return {entry.name: entry.size for page in pages for entry in page}

    found = await iothread.arun(listed)
    assert set(found) == {"link", f"{PREFIX}worker/link", "v1/.~left", NAME}
    assert (found[NAME], found["v1/.~left"]) == (1, 2)
    with pytest.raises(StoreError):
        await arun(files.head, f"{PREFIX}worker/link")
