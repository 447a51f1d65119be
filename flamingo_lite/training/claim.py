"""One run per folder: a second one that wants the same output waits a moment, and is then told."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flamingo_lite.errors import FlamingoError, first_line

FILE = ".lock"
PATIENCE = 5.0
"""Seconds: the ranks of a run that was killed outlive it for a moment."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; it is free again when the process ends, however it ends.

    Errors: `FlamingoError` when another run holds it, and when nothing can be written there.
    """
    path = folder / FILE
    with _held(path, time.monotonic() + PATIENCE):
        try:
            yield
        finally:
            # Still held: whoever waits for this file will see that it is no longer the one at `path`.
            path.unlink(missing_ok=True)


def _held(path: Path, until: float) -> IO[str]:
    """The locked file at `path`, open."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise FlamingoError(
                f"{path.parent} cannot be written ({reason}); choose another output="
            ) from error
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            if time.monotonic() > until:
                raise FlamingoError(
                    f"{path.parent} is in use by another run; wait for it, end it, or choose another output="
                ) from error
            time.sleep(0.2)
            continue
        except OSError:  # a file system without locks
            return file
        if _is_at(file, path):
            return file
        file.close()  # its owner removed it between our opening and locking it


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
