"""A bounded cache of whole files on the local disk, shared by the processes of a machine.

An entry appears whole, under its final name, or not at all. Entries and transfers under way together never
take more than the limit; the least recently used entries go first.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import BaseFileLock, FileLock, Timeout

from flamingo_lite.errors import FlamingoError

# Names are hashes of contents: what has changed has another name, and no other file is ever taken for an entry.
_ENTRY = re.compile(r"[0-9a-f]{64}\.(?:tar|idx)")
_PARTIAL = re.compile(r"([0-9a-f]{64}\.(?:tar|idx))\.([0-9]+)\.partial")
_FULL = (errno.ENOSPC, errno.EDQUOT)

PATIENCE = 600.0
"""Seconds to wait for other processes' transfers to leave room."""
POLL = 0.02


@dataclass(frozen=True)
class FileCache:
    """The entries in `directory`/shards, at most `limit` bytes of them. Picklable; processes may share it."""

    directory: Path
    limit: int

    def path(self, name: str) -> Path:
        """Where the entry lies, if it is there."""
        return self.directory / "shards" / name

    def open(self, name: str, size: int, fetch: Callable[[Path], None]) -> BinaryIO:
        """The entry `name`, opened for reading; where it is missing, `fetch` writes `size` bytes to a path first.

        Of several processes that want it, one fetches. What is open stays readable after its eviction. Errors:
        `FlamingoError` where `size` is above the limit or the directory cannot be used; those of `fetch`.
        """
        if file := self._cached(name, size):
            return file
        if size > self.limit:
            raise FlamingoError(
                f"data.cache.bytes is {self.limit:,}, and one shard alone takes {size:,}; raise data.cache.bytes"
            )
        with _disk(self.directory):
            for folder in ("shards", "locks"):
                (self.directory / folder).mkdir(parents=True, exist_ok=True)
            lock = self._lock(name)
            lock.acquire()
        try:
            # While this process waited, another one may have fetched it.
            return self._cached(name, size) or self._fetched(name, size, fetch)
        finally:
            lock.release()

    def _cached(self, name: str, size: int) -> BinaryIO | None:
        with _disk(self.directory):
            try:
                file = self.path(name).open("rb")
            except FileNotFoundError:
                return None
            if os.fstat(file.fileno()).st_size != size:  # damaged by whoever else writes there
                file.close()
                self.path(name).unlink(missing_ok=True)
                return None
            with suppress(FileNotFoundError):  # evicted just now: still readable
                _touch(self.path(name))
            return file

    def _fetched(self, name: str, size: int, fetch: Callable[[Path], None]) -> BinaryIO:
        partial = self._reserve(name, size)
        try:
            fetch(partial)
            with _disk(self.directory):
                with partial.open("r+b") as written:
                    os.fsync(written.fileno())
                # Nobody counts or evicts while it changes its name and is opened.
                with self._room():
                    _touch(partial)
                    os.replace(partial, self.path(name))
                    return self.path(name).open("rb")
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _reserve(self, name: str, size: int) -> Path:
        """An empty file whose name claims `size` bytes of the limit for the transfer into it."""
        partial = self.path(f"{name}.{size}.partial")
        started = time.monotonic()
        while True:
            with _disk(self.directory), self._room():
                if self._make_room(name, size):
                    partial.touch()
                    return partial
            if time.monotonic() - started > PATIENCE:
                raise FlamingoError(
                    f"data.cache.bytes is {self.limit:,}, and transfers under way have left no room for {size:,} more "
                    f"in {PATIENCE:.0f} seconds; raise data.cache.bytes"
                )
            time.sleep(POLL)

    def _make_room(self, name: str, size: int) -> bool:
        """Evicts until `size` more bytes fit; False if transfers under way take too much of the limit."""
        claimed, entries = 0, []
        for found in os.scandir(self.directory / "shards"):
            if match := _PARTIAL.fullmatch(found.name):
                claimed += 0 if self._abandoned(match[1], name, Path(found.path)) else int(match[2])
            elif _ENTRY.fullmatch(found.name):
                with suppress(FileNotFoundError):  # a damaged one that its reader has just removed
                    entry = found.stat()
                    entries.append((entry.st_mtime_ns, entry.st_size, Path(found.path)))
        used = claimed + sum(bytes_ for _, bytes_, _ in entries)
        for _, bytes_, path in sorted(entries):
            if used + size <= self.limit or claimed + size > self.limit:
                break
            with suppress(PermissionError):  # Windows keeps what is open
                path.unlink(missing_ok=True)
                used -= bytes_
        return used + size <= self.limit

    def _abandoned(self, name: str, own: str, partial: Path) -> bool:
        """Removes what a process that was killed has left: nobody holds the lock of its name, or we do."""
        if _stripe(name) == _stripe(own):
            partial.unlink(missing_ok=True)
            return True
        lock = self._lock(name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        try:
            partial.unlink(missing_ok=True)
        finally:
            lock.release()
        return True

    def _room(self) -> BaseFileLock:
        """The lock under which entries are counted, evicted and published."""
        return FileLock(self.directory / "locks" / "room.lock")

    def _lock(self, name: str) -> BaseFileLock:
        """The lock under which an entry is fetched."""
        return FileLock(self.directory / "locks" / f"{_stripe(name)}.lock")


def _touch(path: Path) -> None:
    """Used now. The system's own clock of files ticks in milliseconds, which would not tell uses apart."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _stripe(name: str) -> str:
    """256 locks for all names: there may be a million of them, and lock files stay."""
    return name[:2]


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """Errors: `FlamingoError` for what the disk refuses."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # filelock's word for a disk without locks
        raise disk_error(directory, error) from error


def disk_error(directory: Path, error: BaseException) -> FlamingoError:
    full = isinstance(error, OSError) and error.errno in _FULL
    said = (error.strerror if isinstance(error, OSError) else None) or error
    return FlamingoError(
        f"{directory}: the cache of shards cannot be used ({said}); "
        + (
            "free some space or lower data.cache.bytes"
            if full
            else "set data.cache.directory to a local disk"
        )
    )


def is_full(error: BaseException) -> bool:
    """Is it the local disk that has no room?"""
    return isinstance(error, OSError) and error.errno in _FULL
