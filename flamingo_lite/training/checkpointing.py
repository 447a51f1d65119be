"""Checkpoints that can be trusted: written aside, read back, put in place whole; the last few and the best stay.

A checkpoint is `step-<step>.ckpt` with `step-<step>.json` beside it, which holds its sha256 and is written last: without
it, or when the two disagree, the checkpoint before is taken.
"""

import contextlib
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins import CheckpointIO

from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.training.beside import Say
from flamingo_lite.training.module import TrainingModule

FOLDER = "checkpoints"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Record:
    """What stands beside a checkpoint. `loss`: the mean of the training loss since the one before."""

    step: int
    bytes: int
    sha256: str
    loss: float


class VerifiedCheckpointIO(CheckpointIO):
    """Writes a checkpoint so that it is there whole or not at all, and reads nothing but tensors and plain values.

    `record` is the last one's; `failure` says why it could not be written. A disk that refuses is no reason to lose
    the run: the checkpoints before stay as they are.
    """

    def __init__(self) -> None:
        self.record: Record | None = None
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.record, self.failure = None, None
        loss = float(checkpoint["mean_loss"])
        try:
            self.record = write_checkpoint(checkpoint, Path(path), int(checkpoint["global_step"]), loss)
        except OSError as error:
            self.failure = error.strerror or first_line(error)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        _remove(Path(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path, step: int, loss: float) -> Record:
    """Writes `path` and its record. Errors: `OSError`, nothing having changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        written = _write(checkpoint, temporary)
        found = sha256_of(temporary)
        if found != written.sha256:
            raise OSError(f"what was read back from {path} is not what was written")
        temporary.replace(path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    record = Record(step, written.bytes, written.sha256, loss)
    try:
        write_atomically(_record_path(path), (json.dumps(asdict(record)) + "\n").encode())
    except FlamingoError as error:
        raise OSError(str(error)) from error
    return record


def latest_checkpoint(folder: Path, say: Say) -> Path | None:
    """The newest checkpoint that is whole; `say` gets a line for each newer one that is not, which is put aside.

    Errors: `FlamingoError` when there are checkpoints and not one is whole; they then stay, so that the next start says
    so again rather than start over.
    """
    problems: dict[Path, str] = {}
    for _, path in sorted(_checkpoints(folder), reverse=True):
        problem = problem_of(path)
        if problem is None:
            for damaged, line in problems.items():
                _put_aside(damaged)
                say(f"{line}; continuing from {path.name}")
            return path
        problems[path] = f"{path} {problem}"
    if problems:
        newest = next(iter(problems.values()))
        raise FlamingoError(
            f"no checkpoint in {folder} is whole ({newest}); restore one, or start over with resume=never"
        )
    return None


def problem_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where it is what was written."""
    record = read_record(path)
    if record is None:
        return "was not written to its end"
    size = path.stat().st_size
    if size != record.bytes:
        return f"is cut short ({size} of {record.bytes} bytes)"
    return (
        None
        if sha256_of(path) == record.sha256
        else "is damaged (its sha256 is not the one it was written with)"
    )


def read_record(path: Path) -> Record | None:
    """The record beside the checkpoint `path`; None where there is none, or none that can be read."""
    try:
        return Record(**json.loads(_record_path(path).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def keep_last_and_best(folder: Path, keep: int) -> None:
    """Removes all but the last `keep` checkpoints and the one with the lowest loss, and what was left unfinished."""
    records = {path: record for _, path in sorted(_checkpoints(folder)) if (record := read_record(path))}
    last = list(records)[-keep:]
    best = min(records, key=lambda path: records[path].loss, default=None)
    for _, path in _checkpoints(folder):
        if path not in last and path != best:
            _remove(path)
    for path in folder.glob(".step-*.ckpt.*"):
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CheckpointKeeper(lightning.Callback):
    """Saves every `every` optimizer steps and at the last; `say` gets a line when the disk refuses."""

    def __init__(self, folder: Path, every: int, keep: int, files: VerifiedCheckpointIO, say: Say) -> None:
        self.folder, self.every, self.keep, self.files, self.say = folder, every, keep, files, say
        self.saved: int | None = None
        self._losses: list[float] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if pl_module.report is None:
            return
        if not pl_module.report.skipped:
            self._losses.append(pl_module.report.loss)
        if step % self.every == 0 or step == trainer.max_steps:
            self.save(trainer)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["mean_loss"] = sum(self._losses) / len(self._losses) if self._losses else float("inf")

    def save(self, trainer: lightning.Trainer) -> bool:
        """Was it written? All ranks call this together, and the first knows. A step is saved once."""
        step = trainer.global_step
        if step != self.saved:
            self.saved = step
            trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt")
            self._losses.clear()
            if trainer.is_global_zero:
                self._tidy(step)
        return self.files.failure is None

    def _tidy(self, step: int) -> None:
        if self.files.failure is None:
            keep_last_and_best(self.folder, self.keep)
            return
        before = "the one before stays" if _checkpoints(self.folder) else "there is none yet"
        self.say(f"no checkpoint at step {step} ({self.files.failure}): {before}, and training goes on")


class _HashingFile:
    """A file to write to, which knows the sha256 of what it was given."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            count = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.bytes += count
        return count

    def flush(self) -> None:
        self.file.flush()


@dataclass(frozen=True)
class _Written:
    sha256: str
    bytes: int


def _write(checkpoint: dict[str, Any], path: Path) -> _Written:
    target = _HashingFile(path)
    try:
        sink: Any = target  # all that torch asks of a file here is `write`
        torch.save(checkpoint, sink)
        target.flush()
        os.fsync(target.file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that it is the disk that is read back, not the memory before it
            os.posix_fadvise(target.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except RuntimeError as error:  # torch's own words for what the file refused
        raise target.error or OSError(first_line(error)) from error
    finally:
        with contextlib.suppress(OSError):
            target.file.close()
    return _Written(target.digest.hexdigest(), target.bytes)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    names = re.compile(r"step-(\d+)\.ckpt")
    found = ((names.fullmatch(path.name), path) for path in folder.glob("step-*.ckpt"))
    return [(int(match[1]), path) for match, path in found if match]


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _remove(path: Path) -> None:
    # The record first: a checkpoint without one does not count.
    _record_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _put_aside(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.replace(path.with_name(f"{path.name}.damaged"))


def _sync(folder: Path) -> None:
    """Makes the folder's new entry survive a loss of power, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
