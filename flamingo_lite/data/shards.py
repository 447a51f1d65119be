"""Shards: the documents of a directory or address by number, and in an order that is a function of (seed, epoch).

Samples are cut out by `tar.py` and decoded by `samples.py`: nothing is unpickled, no shell is started, no
address is fetched, and only files that the manifest names are opened.
"""

import time
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from flamingo_lite.data.limits import Limits
from flamingo_lite.data.manifest import Manifest, Shard, load_manifest, read_manifest
from flamingo_lite.data.order import Order, keeping_last
from flamingo_lite.data.samples import from_sample
from flamingo_lite.data.shard_index import Offsets, sample_offsets
from flamingo_lite.data.shard_writer import ShardWriter, write_shards
from flamingo_lite.data.stores import Store, open_store
from flamingo_lite.data.tar import parse, stretch_of
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError, SampleError

__all__ = [
    "Manifest",
    "Shard",
    "ShardWriter",
    "Shards",
    "load_manifest",
    "read_samples",
    "read_shards",
    "write_shards",
]

PAUSES = (0.1, 1.0)
"""Seconds before a shard that could not be read is tried again: storage that hiccups is no reason to lose a sample."""
OPEN_INDEXES = 256
"""Shards whose sample offsets are kept: more than the windows of several sources hold."""
WINDOW = 8
"""Shards whose samples are mixed with each other, where nothing else is said."""


class Shards:
    """The samples of a location by number, in the manifest's order: `shards[i]` is (key, document).

    Opening reads the manifest alone. Picklable: a worker process opens files of its own.
    Errors: `SampleError` naming the shard and the sample that is damaged, cut off, or no interleaved document;
    `FlamingoError` for a shard that cannot be read at the third try, and for one that is not the manifest's.
    """

    def __init__(
        self, location: str | Path | Store, limits: Limits | None = None, manifest: Manifest | None = None
    ) -> None:
        self.store = open_store(location) if isinstance(location, str | Path) else location
        self.limits = limits
        # Workers go by the manifest that the run began with, whatever has come to lie far away since.
        self.manifest = read_manifest(self.store) if manifest is None else manifest
        self.ends = list(accumulate(shard.samples for shard in self.manifest.shards))
        self._offsets = keeping_last(OPEN_INDEXES, self._read_offsets)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> tuple[str, Document]:
        number, within = self.place(index)
        shard = self.manifest.shards[number]
        where = self.name(index)
        sample = parse(self._read(number, shard, within, where), where, self.limits)
        name = f"{self.store.location}/{shard.name}/{sample.key}"
        return sample.key, from_sample(sample.members, name, self.limits)

    def __getstate__(self) -> tuple[Store, Limits | None, Manifest]:
        return self.store, self.limits, self.manifest

    def __setstate__(self, state: tuple[Store, Limits | None, Manifest]) -> None:
        self.__init__(*state)

    def place(self, index: int) -> tuple[int, int]:
        """The number of the shard that sample `index` is in, and its number there. Errors: `IndexError`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.ends, index)
        return number, index - (self.ends[number] - self.manifest.shards[number].samples)

    def name(self, index: int) -> str:
        """What messages call a sample that may have no key."""
        number, within = self.place(index)
        return f"{self.store.location}/{self.manifest.shards[number].name}: sample {within}"

    def _read(self, number: int, shard: Shard, within: int, where: str) -> bytes:
        """Errors: `SampleError` for what the shard does not hold; `FlamingoError` when it cannot be read."""
        for pause in (*PAUSES, None):
            try:
                offsets = self._offsets(number)
                if within + 1 >= len(offsets):
                    raise SampleError(
                        f"{where}: truncated, the shard ends before it; restore the shard", "truncated"
                    )
                start, stop = int(offsets[within]), int(offsets[within + 1])
                with self.store.open(shard) as file:
                    return stretch_of(file, start, stop, where, self.limits)
            except OSError as error:
                trouble = error
                if pause is not None:
                    time.sleep(pause)
        raise FlamingoError(
            f"{self.store.location}/{shard.name}: the shard cannot be read "
            f"({trouble.strerror or type(trouble).__name__}, {len(PAUSES) + 1} times); check the storage, then go on"
        ) from trouble

    def _read_offsets(self, number: int) -> Offsets:
        return sample_offsets(self.store, self.manifest.shards[number])


def read_samples(
    location: str | Path | Store,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[str, Document]]:
    """(key, document) of this rank's share of the epoch's order; all ranks together see each sample once.

    Without a seed they come as they lie. Errors: as `Shards`.
    """
    shards = Shards(location)
    order = Order([shard.samples for shard in shards.manifest.shards], seed, WINDOW)
    for position in range(epoch * len(shards) + rank, (epoch + 1) * len(shards), world_size):
        yield shards[int(order.numbers(position, position + 1)[0])]


def read_shards(
    location: str | Path | Store,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Document]:
    """The documents of `read_samples`. Errors: as `Shards`."""
    return (document for _, document in read_samples(location, seed, epoch, rank, world_size))
