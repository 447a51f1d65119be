"""Writing shards: documents into numbered WebDataset tars with a manifest, whole or not at all."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import webdataset

from flamingo_lite.data.manifest import MANIFEST, Manifest, Shard, load_manifest, sha256_of
from flamingo_lite.data.samples import to_sample
from flamingo_lite.data.shard_index import index_bytes
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError


class ShardWriter:
    """Writes documents into shards: `with ShardWriter(directory) as writer: writer.write(key, document)`.

    Shards lie under temporary names until the block ends well; then they are renamed, and the manifest comes
    last. A block that fails leaves nothing behind. The bytes are a function of the documents alone.
    `info` may be added to until the block ends. Errors: `FlamingoError` when the directory has shards already (unless
    `overwrite`), a key comes twice in a shard, or the disk is full.
    """

    def __init__(
        self,
        directory: str | Path,
        samples_per_shard: int = 1000,
        info: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        if samples_per_shard < 1:
            raise FlamingoError(f"samples_per_shard is {samples_per_shard}; expected 1 or more")
        self.directory = Path(directory)
        self.info = dict(info or {})
        if (self.directory / MANIFEST).exists() and not overwrite:
            raise FlamingoError(
                f"{self.directory}: has shards already; choose another directory, or overwrite them"
            )
        self._created = not self.directory.exists()
        self._publishing = False
        self._series = ShardSeries(self.directory, "shard-{:06d}.tar", samples_per_shard)
        with writing_to(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, document: Document) -> None:
        """Adds one document."""
        self._series.write(key, document)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with writing_to(self.directory):
                self._publish()
        except BaseException:
            self._discard()
            raise

    def _publish(self) -> None:
        if not (shards := self._series.finish()):
            raise FlamingoError(f"{self.directory}: no documents were given, so there are no shards to write")
        manifest = Manifest(self.directory, shards, self.info)
        path = self.directory / MANIFEST
        write_temporary(path, manifest.to_json())
        # From here on an overwritten directory is no longer the old one: better no manifest than a wrong one.
        self._publishing = True
        path.unlink(missing_ok=True)
        self._series.publish()
        os.replace(temporary(path), path)
        sync_directory(self.directory)
        remove_strays(manifest)

    def _discard(self) -> None:
        self._series.discard()
        temporary(self.directory / MANIFEST).unlink(missing_ok=True)
        if self._publishing:
            (self.directory / MANIFEST).unlink(missing_ok=True)
        if self._created:
            with suppress(OSError):  # not empty: somebody else's files are in it by now
                self.directory.rmdir()


class ShardSeries:
    """Shards that belong together, written under temporary names and published together.

    `pattern` names them by their number in the series: "shard-{:06d}.tar". Each has its index beside it.
    """

    def __init__(self, directory: Path, pattern: str, samples_per_shard: int) -> None:
        self.directory = directory
        self._pattern = pattern
        self._samples_per_shard = samples_per_shard
        self._shards: list[Shard] = []
        self._tar: _OpenShard | None = None
        self._published: list[Path] = []

    def write(self, key: str, document: Document) -> None:
        """Adds one document."""
        sample = to_sample(key, document)
        with writing_to(self.directory):
            if self._tar is None:
                self._tar = _OpenShard(self.directory, self._pattern.format(len(self._shards)))
            self._tar.write(sample)
            if len(self._tar.offsets) == self._samples_per_shard:
                self._shards.append(self._tar.close())
                self._tar = None

    def finish(self) -> tuple[Shard, ...]:
        """All shards, closed, still under their temporary names."""
        if self._tar is not None:
            with writing_to(self.directory):
                self._shards.append(self._tar.close())
            self._tar = None
        return tuple(self._shards)

    def publish(self) -> None:
        """Gives the shards and their indices their names."""
        with writing_to(self.directory):
            for path in self._paths():
                self._published.append(path)
                os.replace(temporary(path), path)
            sync_directory(self.directory)

    def discard(self) -> None:
        """Removes whatever of the series lies in the directory."""
        if self._tar is not None:
            self._tar.abandon()
        for path in [*map(temporary, self._paths()), *self._published]:
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        shards = [self.directory / shard.name for shard in self._shards]
        return [path for shard in shards for path in (index_path(shard), shard)]


class _OpenShard:
    """A tar that is being written under its temporary name."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.path = temporary(directory / name)
        self.index = temporary(index_path(directory / name))
        self.offsets: list[int] = []
        self.images = 0
        self._keys: set[str] = set()
        self._file = self.path.open("wb")
        # A fixed time makes the bytes, and so the sha256, a function of the documents.
        self._writer = webdataset.TarWriter(self._file, encoder=False, mtime=0)

    def write(self, sample: dict[str, str | bytes]) -> None:
        key = str(sample["__key__"])
        if key in self._keys:
            raise FlamingoError(
                f"{self.name}: the key {key} comes twice; give each document a key of its own"
            )
        self._keys.add(key)
        self.offsets.append(self._writer.tarstream.offset)
        self._writer.write(sample)
        self.images += len(sample) - 2

    def close(self) -> Shard:
        index = index_bytes([*self.offsets, self._writer.tarstream.offset])
        self._writer.close()
        sync(self._file)
        self._file.close()
        with self.index.open("wb") as file:
            file.write(index)
            sync(file)
        size, samples = self.path.stat().st_size, len(self.offsets)
        return Shard(self.name, size, sha256_of(self.path), samples, self.images)

    def abandon(self) -> None:
        # A full disk refuses the last buffers once more. An archive left open would try again when collected.
        for close in (self._writer.close, self._file.close):
            with suppress(OSError):
                close()
        self.path.unlink(missing_ok=True)
        self.index.unlink(missing_ok=True)


def write_shards(
    documents: Iterable[tuple[str, Document]],
    directory: str | Path,
    samples_per_shard: int = 1000,
    info: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Writes (key, document) pairs, all or none; returns the manifest. Errors: as `ShardWriter`."""
    with ShardWriter(directory, samples_per_shard, info, overwrite) as writer:
        for key, document in documents:
            writer.write(key, document)
    return load_manifest(directory)


def remove_strays(manifest: Manifest) -> None:
    """Removes shards of the directory's former life, and of runs that were killed."""
    kept = {name for shard in manifest.shards for name in (shard.name, index_path(Path(shard.name)).name)}
    for pattern in ("shard-*.tar", "shard-*.tar.idx", ".shard-*.partial"):
        for found in manifest.directory.glob(pattern):
            if found.name not in kept:
                found.unlink()


def write_whole(path: Path, text: str) -> None:
    """Writes a small file, whole or not at all."""
    write_temporary(path, text)
    os.replace(temporary(path), path)
    sync_directory(path.parent)


def write_temporary(path: Path, text: str) -> None:
    """Writes a small file under its temporary name, or leaves none."""
    try:
        with temporary(path).open("w", encoding="utf-8") as file:
            file.write(text)
            sync(file)
    except BaseException:
        temporary(path).unlink(missing_ok=True)
        raise


def index_path(shard: Path) -> Path:
    """The index beside a shard: little-endian uint64 offsets of its samples, and where the last one ends."""
    return shard.with_name(shard.name + ".idx")


def temporary(path: Path) -> Path:
    """The name under which a file is written."""
    return path.with_name(f".{path.name}.partial")


def sync(file: IO[Any]) -> None:
    """Brings what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Brings renames in the directory to the disk."""
    if os.name == "nt":  # Windows cannot open a directory, and needs not
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Turns a failure of the disk into one line. Errors: `FlamingoError` naming the directory."""
    try:
        yield
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another directory"
        raise FlamingoError(
            f"{directory}: the shards cannot be written ({error.strerror}); {hint}"
        ) from error
