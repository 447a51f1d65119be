"""A directory appears under its final name only when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from flamingo_lite.errors import FlamingoError

MARKS = ("config.json", "checkpoint.pt", "training_checkpoint.json")
"""A directory with one of these holds a model."""

SUBDIRECTORIES = frozenset({"connector_tokenizer", "qformer_tokenizer"})
"""What a model's directory may have below it."""


def check_replaceable(path: Path) -> None:
    """Raises FlamingoError unless `path` is free, an empty directory, or one that holds a model and nothing below it
    that is not a model's: whatever stands there will be deleted.
    """
    if not path.exists():
        return
    inside = list(path.iterdir()) if path.is_dir() else [path]
    holds_model = any((path / mark).is_file() for mark in MARKS)
    strange = [
        entry for entry in inside if not holds_model or entry.is_dir() and entry.name not in SUBDIRECTORIES
    ]
    if strange:
        raise FlamingoError(
            f"{path} is no model's directory (it holds {strange[0].name}), and would be deleted; choose a free name"
        )


@contextmanager
def whole_directory(path: Path, check: Callable[[Path], None] = check_replaceable) -> Iterator[Path]:
    """An empty directory to write into, which takes the place of `path` when the block ends well.

    Raises FlamingoError as `check` does, by default when something other than a model stands at `path`, and when the
    disk refuses, leaving nothing under `path` that was not there before.
    """
    check(path)
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
