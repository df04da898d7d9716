"""``file:///path``: a directory tree, with nothing to install. It works across processes of one machine.

Writes are atomic: a temporary file beside the object, flushed to the disk, then renamed over it. Files and
directories belong to their owner alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import anyio.to_thread

from async_state.errors import StoreAccessError, StoreError
from async_state.stores.base import deadline

T = TypeVar("T")

#: Object names are percent-encoded and never start like this, so no object is taken for one.
_TEMPORARY = ".~"
_PRUNE_RACES = 100


class FileStore:
    """Objects as files below one directory, which is made at the first write."""

    delete_limit = 1000

    def __init__(self, url: str, timeout: float = 20) -> None:
        self._root = Path(unquote(urlsplit(url).path))
        self._timeout = timeout

    async def get(self, name: str, *, timeout: float) -> bytes | None:
        return await self._call("read", name, self._read, self._root / name)

    async def put(self, name: str, body: bytes, content_encoding: str, *, timeout: float) -> None:
        await self._call("write", name, self._write, self._root / name, body)

    async def delete(self, names: Sequence[str], *, timeout: float) -> Mapping[str, StoreError]:
        return await self._call("delete", names[0], self._unlink, names)

    async def list(self, prefix: str, *, timeout: float) -> AsyncGenerator[Sequence[str], None]:
        names = self._walk(prefix)
        while page := await self._call("list", prefix, _page, names, self.delete_limit):
            yield page

    async def aclose(self) -> None:
        """Nothing to release: no file stays open."""

    async def _call(self, verb: str, name: str, function: Callable[..., T], *args: object) -> T:
        place = self._root / name
        with deadline(self._timeout, f"{verb} {place}"):
            try:
                # A thread, since a disk can block for as long as it likes; given up on when the deadline passes.
                return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
            except PermissionError as e:
                raise StoreAccessError(f"not allowed to {verb} {place}: {e.strerror}; check who owns it") from e
            except OSError as e:
                raise StoreError(f"could not {verb} {place}: {e.strerror}") from e
        raise AssertionError("the deadline raises")

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, path: Path, body: bytes) -> None:
        # A clear by another process may remove the directory again before the file is in it, or the temporary file.
        for _ in range(_PRUNE_RACES):
            self._make_directory(path.parent)
            with contextlib.suppress(FileNotFoundError):
                return self._replace(path, body)
        raise FileNotFoundError(errno.ENOENT, "its directory keeps disappearing", str(path.parent))

    def _make_directory(self, directory: Path) -> None:
        # `mkdir(parents=True)` gives the mode to the last one only.
        missing = [p for p in (directory, *directory.parents) if p.is_relative_to(self._root)]
        self._root.parent.mkdir(parents=True, exist_ok=True)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                path.mkdir(mode=0o700)

    @staticmethod
    def _replace(path: Path, body: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)  # the new name survives a power cut too
            finally:
                os.close(directory)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _unlink(self, names: Sequence[str]) -> dict[str, StoreError]:
        failed: dict[str, StoreError] = {}
        for name in names:
            path = self._root / name
            try:
                path.unlink(missing_ok=True)
                self._prune(path.parent)
            except OSError as e:
                failed[name] = StoreError(f"could not delete {path}: {e.strerror}")
        return failed

    def _prune(self, directory: Path) -> None:
        """Remove directories that hold nothing any more, up to the root."""
        while directory != self._root:
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:  # not empty
                return
            directory = directory.parent

    def _walk(self, prefix: str) -> Iterator[str]:
        # Temporary files too, as a process that was killed leaves one. Whoever is still writing one starts anew.
        for directory, _, files in os.walk(self._root / prefix):
            for file in files:
                yield os.path.relpath(os.path.join(directory, file), self._root)


def _page(names: Iterator[str], size: int) -> Sequence[str]:
    return list(islice(names, size))
