"""Shards: documents in WebDataset tars, read in an order that is a pure function of (seed, epoch, manifest).

Samples are parsed by webdataset and decoded by `samples.py`: nothing is unpickled, no shell is started, no
address is fetched, and only files that the manifest names are opened.
"""

import io
import random
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from flamingo_lite.data.manifest import Manifest, Shard, load_manifest
from flamingo_lite.data.samples import from_sample, is_member
from flamingo_lite.data.shard_writer import ShardWriter, write_shards
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError

__all__ = [
    "Manifest",
    "Shard",
    "ShardDataset",
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


class ShardDataset(IterableDataset[Document]):
    """One epoch of a directory's documents for a DataLoader; `set_epoch` chooses the next order.

    Every sample comes exactly once over all ranks and workers. `batch_size` is the DataLoader's: workers then
    take whole batches in turn, and the batches are the same whatever their number. `even`: leave out the last
    samples of the order that do not divide among the ranks, so that every rank has as many.
    Rank and world size default to those of torch.distributed, or 0 of 1.
    """

    def __init__(
        self,
        directory: str | Path | Manifest,
        seed: int | None = None,
        batch_size: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        even: bool = False,
    ) -> None:
        self.shards = Shards(directory)
        self.seed = seed
        self.batch_size = batch_size
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self.world_size = world_size or (torch.distributed.get_world_size() if distributed else 1)
        self.even = even
        # Shared memory, so that persistent workers, which hold copies of the dataset, see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration follows."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """This rank's number of documents in an epoch."""
        return len(range(self.rank, self._samples(), self.world_size))

    def __iter__(self) -> Iterator[Document]:
        order = sample_order(len(self.shards), self.seed, int(self._epoch))[: self._samples()]
        mine = order[self.rank :: self.world_size]
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for start in range(first * self.batch_size, len(mine), step * self.batch_size):
            for index in mine[start : start + self.batch_size]:
                yield self.shards[index][1]

    def _samples(self) -> int:
        return len(self.shards) - (len(self.shards) % self.world_size if self.even else 0)


def _read(path: Path, start: int, stop: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
    except OSError as error:
        raise FlamingoError(f"{path}: the shard cannot be read ({error.strerror})") from error
    if len(data) < stop - start:
        raise FlamingoError(f"{path}: truncated while it was in use; make the shards again")
    return data


def _parse(data: bytes, path: Path, number: int) -> tuple[str, Document]:
    """The one sample in this stretch of a tar."""
    # webdataset would inflate a compressed archive without bound: only plain tars begin with this mark.
    if data[257:262] != b"ustar":
        raise FlamingoError(f"{path}: sample {number} is damaged (no tar header); make the shard again")
    stream = [{"url": str(path), "stream": io.BytesIO(data)}]
    try:
        samples = list(group_by_keys(tar_file_expander(stream, select_files=is_member)))
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise FlamingoError(f"{path}: sample {number} is damaged ({reason}); make the shard again") from error
    if len(samples) != 1:
        raise FlamingoError(
            f"{path}: sample {number} has {len(samples)} keys with json or images; expected one"
        )
    key = samples[0]["__key__"]
    return key, from_sample(samples[0], f"{path}/{key}")
