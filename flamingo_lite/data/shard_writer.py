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
from flamingo_lite.data.shard_index import index_bytes, index_name
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError


OWN_FILES = ("shard-*.tar", "shard-*.tar.idx", ".shard-*.partial")
"""What an earlier writer, finished or killed, may have left in the directory."""


class ShardWriter:
    """Writes documents into shards: `with ShardWriter(directory) as writer: writer.write(key, document)`.

    Shards lie under temporary names until the block ends well; then they are renamed, and the manifest comes
    last. A block that fails leaves nothing behind. The bytes are a function of the documents alone.
    Errors: `FlamingoError` when the directory has shards already (unless `overwrite`), a key comes twice in a
    shard, or the disk is full.
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
        self._samples_per_shard = samples_per_shard
        self._info = dict(info or {})
        self._shards: list[Shard] = []
        self._tar: _OpenShard | None = None
        if (self.directory / MANIFEST).exists() and not overwrite:
            raise FlamingoError(
                f"{self.directory}: has shards already; choose another directory, or overwrite them"
            )
        self._created = not self.directory.exists()
        self._published: list[Path] = []
        with _disk(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, document: Document) -> None:
        """Adds one document."""
        sample = to_sample(key, document)
        with _disk(self.directory):
            if self._tar is None:
                self._tar = _OpenShard(self.directory, f"shard-{len(self._shards):06d}.tar")
            self._tar.write(sample)
            if len(self._tar.offsets) == self._samples_per_shard:
                self._finish_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with _disk(self.directory):
                self._publish()
        except BaseException:
            self._discard()
            raise

    def _finish_shard(self) -> None:
        if self._tar is not None:
            self._shards.append(self._tar.close())
            self._tar = None

    def _publish(self) -> None:
        self._finish_shard()
        if not self._shards:
            raise FlamingoError(f"{self.directory}: no documents were given, so there are no shards to write")
        manifest = self.directory / MANIFEST
        with _temporary(manifest).open("w", encoding="utf-8") as file:
            file.write(Manifest(self.directory, tuple(self._shards), self._info).to_json())
            _sync(file)
        # From here on an overwritten directory is no longer the old one: better no manifest than a wrong one.
        manifest.unlink(missing_ok=True)
        names = self._names()
        for name in names:
            self._published.append(self.directory / name)
            os.replace(_temporary(self.directory / name), self.directory / name)
        _sync_directory(self.directory)
        for path in (p for pattern in OWN_FILES for p in self.directory.glob(pattern)):
            if path.name not in names:  # shards of the directory's former life, or of a run that was killed
                path.unlink()

    def _names(self) -> list[str]:
        """What the directory is to hold: each shard and its index, and the manifest at last."""
        shards = [name for shard in self._shards for name in (shard.name, index_name(shard.name))]
        return [*shards, MANIFEST]

    def _discard(self) -> None:
        if self._tar is not None:
            self._tar.abandon()
        temporary = (_temporary(self.directory / name) for name in self._names())
        for path in [*temporary, *self._published]:
            path.unlink(missing_ok=True)
        if self._created:
            with suppress(OSError):  # not empty: somebody else's files are in it by now
                self.directory.rmdir()


class _OpenShard:
    """A tar that is being written under its temporary name."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.path = _temporary(directory / name)
        self.index_path = _temporary(directory / index_name(name))
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
        _sync(self._file)
        self._file.close()
        with self.index_path.open("wb") as file:
            file.write(index)
            _sync(file)
        size, samples = self.path.stat().st_size, len(self.offsets)
        return Shard(self.name, size, sha256_of(self.path), samples, self.images)

    def abandon(self) -> None:
        # A full disk refuses the last buffers once more. An archive left open would try again when collected.
        for close in (self._writer.close, self._file.close):
            with suppress(OSError):
                close()
        self.path.unlink(missing_ok=True)
        self.index_path.unlink(missing_ok=True)


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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory, and needs not
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another directory"
        raise FlamingoError(
            f"{directory}: the shards cannot be written ({error.strerror}); {hint}"
        ) from error
