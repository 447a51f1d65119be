"""One run per folder: a second one that wants the same output waits a moment, and is then told."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise FlamingoError(f"{folder} cannot be written ({reason}); choose another output=") from error
    with file:
        _lock(file.fileno(), folder)
        yield
        path.unlink(missing_ok=True)


def _lock(descriptor: int, folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise FlamingoError(
                    f"{folder} is in use by another run; wait for it, end it, or choose another output="
                ) from error
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return
