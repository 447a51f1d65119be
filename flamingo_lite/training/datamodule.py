"""Batches of documents from shards, prepared in worker processes.

Batch number i is a pure function of (seed, shards, batch size, i), so training resumes at any batch, and the
number of workers changes nothing but the speed.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import lightning.pytorch as lightning
import torch
from torch.utils.data import DataLoader, Dataset

from flamingo_lite.batch import Batch
from flamingo_lite.data.shards import Shards, sample_order
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.processing import VisionLanguageProcessor


class Batches(Dataset[Batch | str]):
    """Item i is batch i of an endless run over the epochs, each in an order of its own; a batch may span two.

    Over ranks, it is the rank's share of a global batch of `world_size * batch_size` documents. An error that
    the user can mend is returned as its message: a DataLoader would bury it in the traceback of a worker.
    """

    def __init__(
        self,
        directory: str | Path,
        processor: VisionLanguageProcessor,
        batch_size: int,
        seed: int,
        max_length: int | None = None,
        pack: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.shards = Shards(directory)
        if not len(self.shards):
            raise FlamingoError(f"{directory}: the shards hold no documents; expected at least one")
        self.processor = processor
        self.batch_size = batch_size
        self.seed = seed
        self.max_length = max_length
        self.pack = pack
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, index: int) -> Batch | str:
        try:
            encoded = [
                self.processor.encode(self._document(place), True, self.max_length, name=f"sample {place}")
                for place in self.indices(index)
            ]
            return self.processor.collate(encoded, pack=self.pack)
        except FlamingoError as error:
            return str(error)

    def indices(self, number: int) -> list[int]:
        """The documents of this rank's batch `number`, by their place in the shards."""
        samples = len(self.shards)
        start = (number * self.world_size + self.rank) * self.batch_size
        places = range(start, start + self.batch_size)
        return [_order(samples, self.seed, place // samples)[place % samples] for place in places]

    def _document(self, index: int) -> Document:
        return self.shards[index][1]


class ShardDataModule(lightning.LightningDataModule):
    """Batches number `skip` to `total` - 1 of the run; see `Batches`. `workers` 0: made in this process."""

    def __init__(
        self,
        directory: str | Path,
        processor: VisionLanguageProcessor,
        batch_size: int,
        seed: int,
        total: int,
        workers: int = 0,
        max_length: int | None = None,
        pack: bool = False,
        skip: int = 0,
    ) -> None:
        super().__init__()
        self.directory = directory
        self.processor = processor
        self.batch_size = batch_size
        self.seed = seed
        self.total = total
        self.workers = workers
        self.max_length = max_length
        self.pack = pack
        self.skip = skip

    def train_dataloader(self) -> "Unburied":
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = Batches(
            self.directory,
            self.processor,
            self.batch_size,
            self.seed,
            self.max_length,
            self.pack,
            rank,
            world_size,
        )
        return Unburied(
            DataLoader(
                batches,
                batch_size=None,
                sampler=range(self.skip, self.total),
                num_workers=self.workers,
                # Its own generator: the loader must not draw from the one that training is seeded with.
                generator=torch.Generator().manual_seed(self.seed),
                pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            )
        )


class Unburied:
    """A loader's batches; a message in place of one is raised here, in the main process."""

    def __init__(self, loader: DataLoader[Batch | str]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, str):
                raise FlamingoError(batch)
            yield batch


@lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> list[int]:
    return sample_order(samples, seed, epoch)
