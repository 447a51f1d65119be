"""Checking shards: each tar against its line of the manifest, and every sample in it down to the pixels.

A shard is checked by what its bytes hold, not by what the manifest and the index say of them; where they differ,
that is a finding. `repair` copies what can be used.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from flamingo_lite.data.limits import Limits
from flamingo_lite.data.make import available_cores
from flamingo_lite.data.manifest import Manifest, Shard, parse_manifest, sha256_of
from flamingo_lite.data.samples import KEY, from_sample
from flamingo_lite.data.shard_index import index_bytes, sample_offsets
from flamingo_lite.data.shard_writer import ShardWriter
from flamingo_lite.data.stores import MANIFEST, LocalStore, local_directory
from flamingo_lite.data.tar import Scan, parse, read_stretch, scan
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError, SampleError

EXAMPLES = 3  # rejects of each reason that are told in full
PADDING = 2**20  # bytes of zeros behind the end mark that writers may leave


@dataclass
class Findings:
    """What was found in some shards. `samples`: all, of which `rejects` counts the unusable ones by reason and
    `examples` tells the first; `problems`: what is wrong with a shard as a whole; `skipped`: members never read;
    `unusable`: the numbers of the rejects, when it is of one shard."""

    shards: int = 0
    samples: int = 0
    images: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    unusable: set[int] = field(default_factory=set)

    def reject(self, error: SampleError, count: int = 1) -> None:
        """Counts samples that cannot be used."""
        self.rejects[error.reason] += count
        told = self.examples.setdefault(error.reason, [])
        if len(told) < EXAMPLES:
            told.append(str(error))

    def add(self, other: "Findings") -> None:
        """Adds what was found in other shards."""
        self.shards += other.shards
        self.samples += other.samples
        self.images += other.images
        self.rejects += other.rejects
        self.problems += other.problems
        self.skipped += other.skipped
        for reason, told in other.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *told][:EXAMPLES]

    @property
    def whole(self) -> bool:
        return not self.rejects and not self.problems


@dataclass(frozen=True)
class Task:
    """One shard to check. `shard`: what the manifest says of it; None where there is no manifest."""

    path: Path
    shard: Shard | None
    limits: Limits = Limits()


def tasks(directory: str | Path, limits: Limits | None = None) -> tuple[list[Task], Manifest | None]:
    """The shards of a directory: those of its manifest, or every tar where there is none.

    Errors: `FlamingoError` for a directory without tars, and a damaged manifest.
    """
    directory = local_directory(directory)
    if (directory / MANIFEST).is_file():
        store = LocalStore(directory)
        manifest = parse_manifest(store.manifest(), str(directory / MANIFEST), directory)
        named = [Task(directory / shard.name, shard, limits or Limits()) for shard in manifest.shards]
        return named, manifest
    with suppress(OSError):
        if found := sorted(path for path in directory.iterdir() if path.suffix == ".tar"):
            return [Task(path, None, limits or Limits()) for path in found], None
    raise FlamingoError(f"{directory}: holds neither {MANIFEST} nor a .tar; expected a directory of shards")


def strays(manifest: Manifest) -> list[str]:
    """Tars beside the shards that the manifest does not name."""
    named = {shard.name for shard in manifest.shards}
    return sorted(path.name for path in manifest.directory.glob("*.tar") if path.name not in named)


def check(todo: list[Task], workers: int = 0) -> Iterator[Findings]:
    """What is found in each shard, in their order. `workers`: processes; 0 = one per core."""
    count = min(workers or available_cores(), len(todo))
    if count <= 1:
        yield from map(check_shard, todo)
        return
    # Spawned, not forked: the parent may hold threads whose locks a fork would copy locked.
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        yield from pool.imap(check_shard, todo)


def check_shard(task: Task) -> Findings:
    """What is found in one shard: every sample is parsed, every image decoded."""
    found = Findings(shards=1)
    try:
        if task.path.exists() and not task.path.is_file():
            raise OSError("neither a file nor a link to one")  # a pipe under a shard's name never ends
        content = scan(task.path)
        found.problems += _problems(task, content)
        found.skipped += content.skipped
        for number, sample in enumerate(read(task, content)):
            found.samples += 1
            if isinstance(sample, SampleError):
                found.reject(sample)
                found.unusable.add(number)
            else:
                found.images += len(sample[1].images)
    except OSError as error:
        found.problems.append(f"{task.path}: cannot be read ({error.strerror or error}); check the storage")
    if task.shard is not None and (lost := task.shard.samples - found.samples) > 0:
        found.samples += lost
        error = SampleError(
            f"{task.path}: the last {lost:,} samples are missing; restore the shard", "truncated"
        )
        found.reject(error, lost)
    return found


def read(task: Task, content: Scan, decode: bool = True) -> Iterator[tuple[str, Document] | SampleError]:
    """(key, document) of each sample that lies in a shard, or why it cannot be used. `decode`: every image, too."""
    repeated = set(content.repeated)
    for number, (start, stop) in enumerate(_stretches(task, content)):
        where = f"{task.path}: sample {number}"
        try:
            sample = parse(read_stretch(task.path, start, stop, where, task.limits), where, task.limits)
            name = f"{task.path}/{sample.key}"
            if number in repeated:
                raise SampleError(
                    f"{name}: the key came before; members of a sample lie together", "duplicate"
                )
            document = from_sample(sample.members, name, task.limits)
            if decode:
                for image in document.images:
                    image.pil()
        except SampleError as error:
            yield error
        else:
            yield sample.key, document


def repair(todo: list[Task], unusable: list[set[int]], writer: ShardWriter) -> Findings:
    """Copies all samples but the `unusable` ones of each shard; returns what was copied, and rejects of the writer.

    Keys are kept where they are plain and come once in the directory; else they say where the sample lay.
    """
    copied = Findings()
    keys: set[str] = set()
    for position, (task, left_out) in enumerate(zip(todo, unusable, strict=True)):
        if not task.path.is_file():
            continue
        copied.shards += 1
        for number, sample in enumerate(read(task, scan(task.path), decode=False)):
            if number in left_out or isinstance(sample, SampleError):
                continue
            key, document = sample
            if not KEY.fullmatch(key) or key in keys:
                key = f"shard-{position:06d}-{number:08d}"
            try:
                writer.write(key, document)
            except SampleError as error:
                copied.reject(error)
                continue
            keys.add(key)
            copied.samples += 1
            copied.images += len(document.images)
    return copied


def _stretches(task: Task, content: Scan) -> list[tuple[int, int]]:
    """Where the samples lie: as the tar says, and where that is damaged, as its index remembers."""
    if content.tail is None or task.shard is None:
        return content.stretches
    try:
        offsets = sample_offsets(LocalStore(task.path.parent), task.shard).tolist()
    except FlamingoError:
        return content.stretches
    return list(pairwise(offsets))


def _problems(task: Task, content: Scan) -> Iterator[str]:
    """What is wrong with the shard as a whole."""
    if content.tail is not None:
        yield f"damaged: {content.tail}"
    elif (trouble := _behind_the_end(task.path, content.end)) is not None:
        yield trouble
    if (shard := task.shard) is None:
        return
    if content.tail is None:  # else the counts differ because of the damage
        yield from _differences(task.path, shard, content)
    if (size := task.path.stat().st_size) != shard.bytes:
        yield f"{task.path}: {size:,} bytes, {MANIFEST} says {shard.bytes:,}"
    elif sha256_of(task.path) != shard.sha256:
        yield f"{task.path}: its sha256 differs from the one in {MANIFEST}"


def _differences(path: Path, shard: Shard, content: Scan) -> Iterator[str]:
    for name, counted in (("samples", len(content.offsets)), ("images", content.images)):
        if counted != (said := getattr(shard, name)):
            yield f"{path}: holds {counted:,} {name}, {MANIFEST} says {said:,}"
    if shard.offsets and list(shard.offsets) != content.offsets:
        yield f"{path}: samples do not begin where {MANIFEST} says"
    index = path.with_name(f"{path.name}.idx")
    expected = index_bytes([*content.offsets, content.end])
    with suppress(FileNotFoundError):
        # Its size first: whatever lies under that name need not fit into memory.
        if index.stat().st_size != len(expected) or index.read_bytes() != expected:
            yield f"{index}: samples do not begin where the index says; delete it, and the shard is scanned"


def _behind_the_end(path: Path, end: int) -> str | None:
    """Two archives, one behind the other, are read as one only up to the end of the first."""
    with path.open("rb") as file:
        file.seek(end)
        padding = file.read(PADDING)
        more = os.fstat(file.fileno()).st_size - end - len(padding)
    if more or padding.strip(b"\0"):
        return f"{path}: something lies behind the end of the archive, at byte {end:,}, and is never read"
    return None
