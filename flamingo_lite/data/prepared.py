"""A batch as it leaves a worker: what the model eats, where it came from, and what could not be used.

Shape letters: b batch, t text positions.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flamingo_lite.batch import Batch
from flamingo_lite.data.batches import Position
from flamingo_lite.data.features import KnownFeatures
from flamingo_lite.image_transform import ImageTransform

NO_SOURCE = -1  # the source id of a position that belongs to no document


class Reject(NamedTuple):
    """A sample that was not used. `key`: its own, or its number in the shard where that is not known."""

    source: str
    shard: str
    key: str
    reason: str
    message: str


class Used(NamedTuple):
    """A sample that was used, by name."""

    source: str
    shard: str
    key: str


@dataclass
class PreparedBatch:
    """`batch`, its images uint8 until `to` normalises them; and beside it for each position the number of its source and
    what it counts in the loss (None: all 1).

    `samples`: the documents of the batch; `rejects`: those that are missing from it; `outcomes`: for all of them in
    the plan's order, whether each was used. `capacity`: the positions that its rows could have held, None where
    rows are not packed. `trained`: the trained-on tokens of each source; `step_trained`: the same of all the batches that
    this rank adds up to a step, where that was asked for. `cut`: documents whose last turns were left out. `position`: where
    the run stands after this batch, None inside an accumulated step. `known`: the features of images that a cache has; their
    pixels are 0.
    """

    batch: Batch
    image_transform: ImageTransform
    source_ids: Tensor  # (b t) int64, NO_SOURCE on padding
    loss_weights: Tensor | None = None  # (b t) float
    samples: tuple[Used, ...] = ()
    rejects: tuple[Reject, ...] = ()
    outcomes: tuple[bool, ...] = ()
    capacity: int | None = None
    tokens: int = 0
    trained: tuple[int, ...] = ()
    step_trained: tuple[int, ...] = ()
    cut: int = 0
    position: Position | None = None
    known: KnownFeatures | None = None

    @property
    def documents(self) -> int:
        return len(self.samples)

    def names_of_row(self, row: int) -> list[str]:
        """The samples that share a row, as source/shard/key."""
        segments = self.batch.segment_ids
        numbers = [row] if segments is None else segments[row].unique().tolist()
        return ["/".join(self.samples[number]) for number in numbers if 0 <= number < len(self.samples)]

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "PreparedBatch":
        """The batch on another device, its images normalised there: on the way they are a quarter as large."""
        weights = self.loss_weights
        batch = self.batch.to(device, non_blocking)
        if batch.pixel_values.dtype == torch.uint8:
            pixels = self.image_transform.normalized(batch.pixel_values)
            batch = replace(batch, pixel_values=pixels)
        return replace(
            self,
            batch=batch,
            source_ids=self.source_ids.to(device, non_blocking=non_blocking),
            loss_weights=None if weights is None else weights.to(device, non_blocking=non_blocking),
            known=None if self.known is None else self.known.to(device, non_blocking),
        )

    def pin_memory(self) -> "PreparedBatch":
        """The batch in page-locked memory (torch's DataLoader calls this)."""
        weights = self.loss_weights
        return replace(
            self,
            batch=self.batch.pin_memory(),
            source_ids=self.source_ids.pin_memory(),
            loss_weights=None if weights is None else weights.pin_memory(),
            known=None if self.known is None else self.known.pin_memory(),
        )
