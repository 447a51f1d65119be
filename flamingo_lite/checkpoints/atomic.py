"""A directory appears under its final name only when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from flamingo_lite.errors import FlamingoError


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """An empty directory to write into, which takes the place of `path` when the block ends well.

    Raises FlamingoError when the disk refuses, leaving nothing under `path` that was not there before.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        _put_in_place(temporary, path)
    except (OSError, SafetensorError) as error:
        raise FlamingoError(f"cannot write {path}: {error}; nothing was left there half-written") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    # mkdtemp makes a private directory; the result should be as readable as any other.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        os.replace(path, old / path.name)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, path)
