"""``file:///path``: a directory tree, with nothing to install. It works across the processes of one machine.

Writes are atomic: a temporary file beside the object, flushed to the disk, then renamed over it. Files and directories
belong to their owner alone. No symbolic link below the root is followed.

Whoever deletes what has not changed locks the directory against renames meanwhile, by ``flock``. File systems without
it leave the time between two system calls.

A disk can block for as long as it likes, so every operation works on a thread, which nothing can stop. An operation
that is cancelled or runs out of time is given up instead: its thread changes no more files. If the thread is in the
middle of a change, later operations of this process wait for its end. So nothing that is given up undoes what comes
later. Other processes know nothing of it and do not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Concatenate, Final, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from async_state import threads
from async_state.codec import MAX_BODY_BYTES, content_encoding
from async_state.errors import CorruptObjectError, StoreAccessError, StoreError
from async_state.stores.base import Details, Entry, Tagged, deadline

T = TypeVar("T")
P = ParamSpec("P")

#: Object names are percent-encoded and never start like this, so no object is taken for a temporary file.
_TEMPORARY: Final = ".~"
#: The file that whoever updates an object holds locked, below the root.
_LOCK: Final = ".~lock"
#: How often a write begins again after another process has removed its directory.
_MAX_WRITES: Final = 100
#: What some file systems (CIFS, FUSE) answer when a directory is flushed, which they do by themselves or not at all.
_CANNOT_FLUSH: Final = (errno.EINVAL, errno.ENOTSUP)


class FileStore:
    """Objects as files below one directory, which is made at the first write.

    Args:
        url: The directory, as a ``file://`` URL.
    """

    delete_limit = 1000

    def __init__(self, url: str) -> None:
        self.root = Path(unquote(urlsplit(url).path))

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        return await self._call(timeout, "read", name, self._read, name)

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        await self._call(timeout, "write", name, self._write, name, body)

    async def get_tagged(self, name: str, *, timeout: float) -> Tagged | None:
        body = await self.get(name, timeout=timeout)
        return None if body is None else Tagged(body, None)

    async def put_if_unchanged(
        self, name: str, body: bytes, content_encoding: str, seen: Tagged | None, *, timeout: float
    ) -> bool:
        expected = seen.body if seen else None
        return await self._call(timeout, "write", name, self._write_if_unchanged, name, body, expected)

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        return await self._call(timeout, "delete", names[0], self._unlink, names)

    async def entries(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[Entry], None]:
        walk = _Walk(self, prefix)
        while page := await self._call(timeout, "list", prefix, walk.next_page, self.delete_limit):
            yield page

    async def head(self, name: str, *, timeout: float) -> Details | None:
        return await self._call(timeout, "read", name, self._head, name)

    async def delete_unchanged(self, seen: Details, *, timeout: float) -> bool:
        return await self._call(timeout, "delete", seen.entry.name, self._unlink_unchanged, seen.entry)

    async def copy_from(self, base_url: str, name: str, seen: Details | None, *, timeout: float) -> bool:
        return False

    async def put_over(
        self, name: str, body: bytes, content_encoding: str, seen: Details | None, *, timeout: float
    ) -> None:
        await self._call(timeout, "write", name, self._write_over, name, body, seen and seen.entry)

    async def aclose(self) -> None:
        """Nothing to release: no file stays open."""

    async def _call(
        self,
        timeout: float,
        verb: str,
        name: str,
        function: Callable[Concatenate[_Work, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call the function on a thread.

        Raises:
            StoreTimeoutError: The time is over.
            StoreError: The function raised an `OSError`.
        """
        with deadline(timeout, f"{verb} {self.root / name}"):
            await self._settled()
            work = _Work(self.root)
            try:
                return await threads.call(partial(work.do, function, *args, **kwargs))
            except asyncio.CancelledError:
                work.give_up()
                raise
            except StoreError:
                raise
            except OSError as e:
                raise self._error(verb, name, e) from e
        raise AssertionError("the deadline raises")

    async def _settled(self) -> None:
        """Wait for changes in the middle of which an earlier operation was given up."""
        loop = asyncio.get_running_loop()
        # After a fork, there are those of a loop that is gone.
        while ends := [end for end, root in _unsettled.items() if root == self.root and end.get_loop() is loop]:
            await asyncio.wait(ends)

    def _error(self, verb: str, name: str, error: OSError) -> StoreError:
        place = str(self.root / name)
        if error.filename not in (None, place):
            place += f" ({error.filename})"
        if isinstance(error, PermissionError):
            return StoreAccessError(f"not allowed to {verb} {place}: {error.strerror}; check who owns it")
        return StoreError(f"could not {verb} {place}: {error.strerror}")

    def path(self, name: str) -> Path:
        """Return the path of an object, or of a prefix.

        Raises:
            StoreError: A symbolic link is on the way from the root.
        """
        path = self.root / name
        directory = path if not name or name.endswith("/") else path.parent
        expected = os.path.join(os.path.realpath(self.root), os.path.relpath(directory, self.root))
        if os.path.realpath(directory) != os.path.normpath(expected):
            raise StoreError(
                f"the directory {directory} is a symbolic link, or is below one; this store follows no link below "
                f"{self.root}: replace the link by what it points to"
            )
        return path

    def _read(self, work: _Work, name: str) -> bytes | None:
        file = self._open(name)
        if file is None:
            return None
        with file:
            # A file never changes once it has its name.
            if (size := os.fstat(file.fileno()).st_size) <= MAX_BODY_BYTES:
                return file.read(size)
        raise CorruptObjectError(
            f"the object {self.path(name)} can't be read: it has {size} bytes, and no value takes more "
            f"than {MAX_BODY_BYTES}. Delete the key so that the next set writes it anew"
        )

    def _open(self, name: str) -> BinaryIO | None:
        try:
            return os.fdopen(os.open(self.path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
        except FileNotFoundError:
            return None

    def _write_over(self, work: _Work, name: str, body: bytes, seen: Entry | None) -> None:
        def is_unchanged() -> bool:
            found = None
            with contextlib.suppress(FileNotFoundError):
                found = _entry(name, self.path(name).lstat())
            return found == seen

        self._write(work, name, body, is_unchanged)

    def _write(self, work: _Work, name: str, body: bytes, condition: Callable[[], bool] | None = None) -> None:
        path = self.path(name)
        # A clear by another process may remove the directory again before the file is in it, or the temporary file.
        for _ in range(_MAX_WRITES):
            self._make_directory(path.parent)
            with contextlib.suppress(FileNotFoundError):
                return self._replace(work, path, body, condition)
        raise FileNotFoundError(errno.ENOENT, "its directory keeps disappearing", str(path.parent))

    def _write_if_unchanged(self, work: _Work, name: str, body: bytes, expected: bytes | None) -> bool:
        self._make_directory(self.root)
        descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Held by one thread of all processes that update anything here; closing the file gives it back.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if self._read(work, name) != expected:
                return False
            self._write(work, name, body)
            return True
        finally:
            os.close(descriptor)

    def _make_directory(self, directory: Path) -> None:
        # `mkdir(parents=True)` gives the mode to the last one only.
        missing = [p for p in (directory, *directory.parents) if p.is_relative_to(self.root)]
        self.root.parent.mkdir(parents=True, exist_ok=True)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                path.mkdir(mode=0o700)

    def _replace(self, work: _Work, path: Path, body: bytes, condition: Callable[[], bool] | None) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            with _open_directory(path.parent) as directory:
                # With a condition, nobody else writes or deletes on one here until this is over.
                _lock(directory, fcntl.LOCK_EX if condition else fcntl.LOCK_SH)
                if condition and not condition():
                    Path(temporary).unlink()
                    return
                with work.change():
                    Path(temporary).replace(path)
                _flush(directory)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            if work.given_up:
                self._prune(path.parent)
            raise

    def _unlink(self, work: _Work, names: Sequence[str]) -> dict[str, StoreError]:
        failed: dict[str, StoreError] = {}
        for name in names:
            try:
                path = self.path(name)
                with work.change():
                    path.unlink(missing_ok=True)
                self._prune(path.parent)
            except StoreError as e:
                failed[name] = e
            except OSError as e:
                failed[name] = self._error("delete", name, e)
        return failed

    def _head(self, work: _Work, name: str) -> Details | None:
        file = self._open(name)
        if file is None:
            return None
        with file:
            return Details(_entry(name, os.fstat(file.fileno())), content_encoding(file.read(4)), {}, "")

    def _unlink_unchanged(self, work: _Work, seen: Entry) -> bool:
        path = self.path(seen.name)
        with contextlib.suppress(FileNotFoundError), _open_directory(path.parent) as directory:
            _lock(directory, fcntl.LOCK_EX)
            with work.change():
                if _entry(seen.name, path.lstat()) != seen:
                    return False
                path.unlink()
        self._prune(path.parent)
        return True

    def _prune(self, directory: Path) -> None:
        """Remove directories that have become empty, up to the root."""
        while directory != self.root:
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:  # not empty
                return
            directory = directory.parent


class _Walk:
    """A listing, one page at a time."""

    def __init__(self, store: FileStore, prefix: str) -> None:
        self._entries = self._walk(store, prefix)
        self._failure: OSError | None = None

    def next_page(self, work: _Work, size: int) -> Sequence[Entry]:
        page = list(islice(self._entries, size))
        # All others first, since whoever clears deletes what is listed.
        if not page and self._failure is not None:
            raise self._failure
        return page

    def _walk(self, store: FileStore, prefix: str) -> Iterator[Entry]:
        # Temporary files too, as a process that was killed leaves one: whoever is still writing one begins again.
        # Links too, but not what they point to.
        root = len(str(store.root)) + 1
        left = self._scan(store.path(prefix))
        while left:
            found = left.pop()
            if found.is_dir(follow_symlinks=False):
                left += self._scan(found)
                continue
            if found.path[root:] == _LOCK:
                continue
            # Somebody else may have deleted it.
            with contextlib.suppress(FileNotFoundError):
                yield _entry(found.path[root:], found.stat(follow_symlinks=False))

    def _scan(self, directory: os.PathLike[str]) -> list[os.DirEntry[str]]:
        """Return what is in the directory, in the reverse order of names."""
        try:
            with os.scandir(directory) as found:
                # As in a name, where a slash follows a directory.
                return sorted(found, key=lambda e: f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name)[::-1]
        except FileNotFoundError:
            return []
        except OSError as e:
            self._failure = e
            return []


class _GivenUpError(Exception):
    """Nobody waits for the work any more."""


class _Work:
    """What a thread does for one operation."""

    def __init__(self, root: Path) -> None:
        self.given_up = False
        self._root = root
        self._changing = threading.Lock()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def do(self, function: Callable[Concatenate[_Work, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function on this thread."""
        try:
            return function(self, *args, **kwargs)
        finally:
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                self._end.get_loop().call_soon_threadsafe(self._end.set_result, None)

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Allow the thread to make one change that others see, unless the work is given up.

        Raises:
            _GivenUpError: It is.
        """
        with self._changing:
            if self.given_up:
                raise _GivenUpError
            yield

    def give_up(self) -> None:
        """Have the thread make no further change. Called on the loop."""
        self.given_up = True
        # Otherwise, a change is over, or does not begin any more.
        if self._changing.locked():
            _unsettled[self._end] = self._root
            self._end.add_done_callback(_unsettled.pop)


#: The ends of work that was given up in the middle of a change, and the root of the store.
_unsettled: Final[dict[asyncio.Future[None], Path]] = {}


def _entry(name: str, status: os.stat_result) -> Entry:
    # Each write makes a file of its own, so that even an equal content is another one.
    etag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    return Entry(name, status.st_size, datetime.fromtimestamp(status.st_mtime, timezone.utc), etag)


@contextlib.contextmanager
def _open_directory(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(directory: int, kind: int) -> None:
    """Lock the directory until it is closed, on file systems that can."""
    with contextlib.suppress(OSError):
        fcntl.flock(directory, kind)


def _flush(directory: int) -> None:
    """Make a new name in the directory survive a power cut."""
    try:
        os.fsync(directory)
    except OSError as e:
        if e.errno not in _CANNOT_FLUSH:
            raise
