"""The loss of each source of data: sums that stay on the device until a row is written.

Shape letters: b batch, t text positions, s sources.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flamingo_lite.batch import IGNORED
from flamingo_lite.evaluation.panels import column_part


class SourceLosses:
    """Per-token losses added up by source, over batches; `columns` tells them per trained-on token and starts anew."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [column_part(name) for name in names]
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, token_losses: Tensor, labels: Tensor, source_ids: Tensor) -> None:
        """All (b t): the cross-entropy of each label, the labels, and which source a position is of; -1: of none."""
        sums = sums_by_source(token_losses, labels, source_ids, len(self.names))
        self._sums = sums if self._sums is None else self._sums + sums

    def columns(self, strategy: Any) -> dict[str, Tensor]:
        """{"loss/<source>": ...} over all ranks, all of which must ask; nan for a source without a token."""
        sums = torch.zeros(2, len(self.names)) if self._sums is None else self._sums
        losses, tokens = strategy.reduce(sums.to(strategy.root_device), reduce_op="sum")
        self._sums = None
        return {
            f"loss/{name}": loss for name, loss in zip(self.names, (losses / tokens).unbind(), strict=True)
        }


def sums_by_source(token_losses: Tensor, labels: Tensor, source_ids: Tensor, sources: int) -> Tensor:
    """(2 s) float32: the losses and the trained-on tokens of each source."""
    is_trained = labels != IGNORED
    is_trained[:, 0] = False  # nothing comes before it
    # What is of no source goes to one more, so that no size hangs on what is in the tensors: that would wait for them.
    place = torch.where(is_trained & (source_ids >= 0), source_ids, sources).flatten()
    values = torch.stack([token_losses.float().flatten(), torch.ones_like(place, dtype=torch.float32)])
    return values.new_zeros(2, sources + 1).index_add_(1, place, values)[:, :sources].contiguous()
