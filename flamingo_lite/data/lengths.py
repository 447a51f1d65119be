"""The lengths of documents under a tokenizer: an index beside the shards, so that rows are packed without reading them.

One small file for each shard, in a folder whose name tells what decides the lengths (tokenizer, template, where
documents are cut), under a name with the shard's sha256: lengths of other shards are never taken for these.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from flamingo_lite.data.encoding import encode_for_training
from flamingo_lite.data.manifest import Shard
from flamingo_lite.data.order import Numbers, keeping_last
from flamingo_lite.data.shards import OPEN_INDEXES, Shards
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template

FOLDER = "lengths"
VERSION = 1
COMMAND = "flamingo-lite data index"
FEW = 4000
"""Documents that are measured before a second process would have started."""

Progress = Callable[[int, int], None]
"""Told how many documents are measured, and of how many."""


@dataclass(frozen=True)
class Measure:
    """What decides how long a document is."""

    processor: VisionLanguageProcessor
    template: Template
    max_length: int | None

    @property
    def key(self) -> str:
        """Equal for equal lengths: a hash of the tokenizer, the template and the length at which documents end."""
        parts = {
            "version": VERSION,
            "tokenizer": tokenizer_sha256(self.processor.tokenizer),
            "template": self.template.to_dict(),
            "max_length": self.max_length,
        }
        if self.template.conversation is not None and self.template.conversation.is_tokenizers:
            parts["chat_template"] = self.processor.tokenizer.chat_template
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Lengths:
    """Tokens and images of each document of a source, by its number; 0 tokens for a document that cannot be used.

    Errors: `FlamingoError` naming the shard that was not measured.
    """

    def __init__(self, shards: Shards, folder: Path) -> None:
        self.folder = folder
        self._shards = shards.manifest.shards
        self._ends = np.asarray(shards.ends, np.int64)
        self._load = keeping_last(OPEN_INDEXES, self._open)

    def take(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """(tokens, images) of the documents."""
        owners = np.searchsorted(self._ends, numbers, side="right")
        found = np.zeros((len(numbers), 2), np.int64)
        for shard in np.unique(owners).tolist():
            mine = owners == shard
            found[mine] = self._load(shard)[numbers[mine] - self._ends[shard] + self._shards[shard].samples]
        return found[:, 0], found[:, 1]

    def _open(self, number: int) -> NDArray[np.int32]:
        shard = self._shards[number]
        path = self.folder / file_name(shard)
        try:
            lengths = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FlamingoError(
                f"{path}: the lengths of {shard.name} cannot be read ({error}); run `{COMMAND}`"
            ) from error
        if lengths.shape != (shard.samples, 2) or lengths.dtype != np.int32:
            raise FlamingoError(
                f"{path}: holds {lengths.shape} {lengths.dtype} for {shard.samples} documents of {shard.name}; "
                f"delete it and run `{COMMAND}`"
            )
        return lengths


def index_lengths(
    shards: Shards,
    measure: Measure,
    elsewhere: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    fresh: bool = False,
) -> Lengths:
    """The lengths of all documents; measures the shards that were not yet. Processes that ask at once do it once.

    `elsewhere`: a folder for lengths of shards in a place that cannot be written to. `workers`: processes. `fresh`:
    measures all shards again.
    Errors: `FlamingoError` when there is no place to keep them, or a shard cannot be read.
    """
    folder = _folder(shards, measure.key, elsewhere)
    if not fresh and not missing_shards(shards, folder):
        return Lengths(shards, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            every = range(len(shards.manifest.shards))
            numbers = list(every) if fresh else missing_shards(shards, folder)
            total = sum(shards.manifest.shards[number].samples for number in numbers)
            done = 0
            for samples in _measured(shards, measure, folder, numbers, workers if total > FEW else 1):
                done += samples
                if progress is not None:
                    progress(done, total)
    except OSError as error:
        raise FlamingoError(
            f"{folder}: the lengths of documents cannot be written ({error.strerror or error}); free some space, "
            "or name a folder for them with data.cache.directory"
        ) from error
    return Lengths(shards, folder)


def missing_shards(shards: Shards, folder: Path) -> list[int]:
    """The numbers of the shards whose documents are not measured."""
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    return [i for i, shard in enumerate(shards.manifest.shards) if file_name(shard) not in present]


def file_name(shard: Shard) -> str:
    """The file with the lengths of one shard."""
    return f"{shard.name.removesuffix('.tar')}.{shard.sha256[:16]}.npy"


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies what a tokenizer makes of a text."""
    parts: dict[str, object] = {"begin": str(tokenizer.bos_token), "end": str(tokenizer.eos_token)}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # How the last call padded and cut is kept in there, too.
        core = json.loads(backend.to_str())
        parts["core"] = {name: value for name, value in core.items() if name not in ("padding", "truncation")}
    else:
        parts["core"] = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _folder(shards: Shards, key: str, elsewhere: Path | None) -> Path:
    beside = shards.store.beside / FOLDER / key
    place = next((path for path in (beside, *beside.parents) if path.exists()), beside)
    if not missing_shards(shards, beside) or os.access(place, os.W_OK):
        return beside
    if elsewhere is None:
        raise FlamingoError(
            f"{place}: cannot be written to, and the lengths of its documents must be kept somewhere; "
            "name a folder for them with data.cache.directory"
        )
    identity = hashlib.sha256("".join(shard.sha256 for shard in shards.manifest.shards).encode())
    return elsewhere / FOLDER / identity.hexdigest()[:16] / key


def _measured(
    shards: Shards, measure: Measure, folder: Path, numbers: list[int], workers: int
) -> Iterator[int]:
    """Measures the shards; yields how many documents each has, as they get done."""
    if min(workers, len(numbers)) <= 1:
        yield from (_measure_shard(shards, measure, folder, number) for number in numbers)
        return
    # Spawned, not forked: the parent may hold threads (torch's) whose locks a fork would copy locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(numbers)), context, initializer=_start_worker, initargs=(shards, measure, folder)
    )
    try:
        for future in as_completed([pool.submit(_measure_in_worker, number) for number in numbers]):
            yield future.result()
    except BrokenProcessPool as error:
        raise FlamingoError(
            f"{folder}: a process that measured documents was killed, perhaps for want of memory; "
            f"run `{COMMAND}` with fewer (data.workers)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _measure_shard(shards: Shards, measure: Measure, folder: Path, number: int) -> int:
    shard = shards.manifest.shards[number]
    first = shards.ends[number] - shard.samples
    lengths = np.zeros((shard.samples, 2), np.int32)
    for within in range(shard.samples):
        try:
            key, document = shards[first + within]
            encoded = encode_for_training(
                measure.processor, document, measure.template, measure.max_length, key
            )
        except SampleError:
            continue
        lengths[within] = len(encoded), len(encoded.images)
    path = folder / file_name(shard)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, lengths, allow_pickle=False)
    os.replace(temporary, path)
    return shard.samples


_WORK: list[tuple[Shards, Measure, Path]] = []


def _start_worker(shards: Shards, measure: Measure, folder: Path) -> None:
    _WORK[:] = [(shards, measure, folder)]


def _measure_in_worker(number: int) -> int:
    return _measure_shard(*_WORK[0], number)
