"""Shards: documents in WebDataset tars, read in an order that is a pure function of (seed, epoch, manifest).

Samples are cut out by `tar.py` and decoded by `samples.py`: nothing is unpickled, no shell is started, no
address is fetched, and only files that the manifest names are opened.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from flamingo_lite.data.manifest import Manifest, Shard, load_manifest
from flamingo_lite.data.samples import from_sample
from flamingo_lite.data.shard_writer import ShardWriter, write_shards
from flamingo_lite.data.tar import parse, read_stretch
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError

__all__ = [
    "Manifest",
    "Shard",
    "ShardWriter",
    "Shards",
    "load_manifest",
    "read_samples",
    "read_shards",
    "sample_order",
    "write_shards",
]


class Shards:
    """The samples of a directory by number, in the manifest's order: `shards[i]` is (key, document).

    Errors: `FlamingoError` naming the shard and the sample that is damaged, or is no interleaved document.
    """

    def __init__(self, directory: str | Path | Manifest) -> None:
        self.manifest = directory if isinstance(directory, Manifest) else load_manifest(directory)
        self._ends = list(accumulate(shard.samples for shard in self.manifest.shards))

    def __len__(self) -> int:
        return self.manifest.samples

    def __getitem__(self, index: int) -> tuple[str, Document]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        shard = self.manifest.shards[number]
        within = index - (self._ends[number] - shard.samples)
        path = self.manifest.directory / shard.name
        ends = [*shard.offsets[within + 1 : within + 2], shard.bytes]
        return _parse(_read(path, shard.offsets[within], ends[0]), path, within)


def sample_order(samples: int, seed: int | None, epoch: int = 0) -> list[int]:
    """The order in which an epoch visits the samples: permuted by (seed, epoch); 0, 1, ... without a seed."""
    order = list(range(samples))
    if seed is not None:
        random.Random(f"shards/{seed}/{epoch}").shuffle(order)
    return order


def read_samples(
    directory: str | Path | Manifest,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[str, Document]]:
    """(key, document) of this rank's share of the epoch's order; all ranks together see each sample once."""
    shards = Shards(directory)
    for index in sample_order(len(shards), seed, epoch)[rank::world_size]:
        yield shards[index]


def read_shards(
    directory: str | Path | Manifest,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Document]:
    """The documents of `read_samples`. Errors: as `load_manifest` and `Shards`."""
    return (document for _, document in read_samples(directory, seed, epoch, rank, world_size))


def _read(path: Path, start: int, stop: int) -> bytes:
    try:
        return read_stretch(path, start, stop, str(path))
    except OSError as error:
        raise FlamingoError(f"{path}: the shard cannot be read ({error.strerror})") from error


def _parse(data: bytes, path: Path, number: int) -> tuple[str, Document]:
    """The one sample in this stretch of a tar."""
    sample = parse(data, f"{path}: sample {number}")
    return sample.key, from_sample(sample.members, f"{path}/{sample.key}")
