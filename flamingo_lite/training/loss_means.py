"""What the loss of a step is a mean of: all its tokens, or, as OpenFlamingo's, the means of the sources of data added up.

Shape letters: b batch, t text positions, s sources.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_lite.batch import IGNORED
from flamingo_lite.data.prepared import PreparedBatch

LOSS_MEANS = ("tokens", "sources")


def trained_items(labels: Tensor, weights: Tensor | None) -> Tensor:
    """What the summed loss of a batch is divided by: its trained-on tokens, or their weights (b t) added up."""
    is_trained = labels[:, 1:] != IGNORED
    # Not by picking the trained ones out: how many they are is on the device, which would be waited for.
    return is_trained.sum() if weights is None else (weights[:, 1:] * is_trained).sum()


def source_weights(loss_weights: Tensor, trained: Tensor) -> Tensor:
    """(s + 1) what a token of each source counts where a step's loss, their weighted sum over the number of all, is to
    be sum(loss_weight * mean over the source's tokens); the last is for positions of no source. Both arguments: (s), the
    latter the step's trained-on tokens.
    """
    return F.pad(loss_weights * trained.sum() / trained.clamp(min=1), (0, 1))


class SourceMeans:
    """The loss weights of batches, from what their whole step is trained on over all ranks.

    `loss_weights`: of the sources. `reduce`: adds a tensor up over the ranks.
    """

    def __init__(self, loss_weights: Sequence[float], reduce: Callable[[Tensor], Tensor]) -> None:
        self.loss_weights = list(loss_weights)
        self.reduce = reduce
        self._weights = torch.zeros(0)

    def weights(self, prepared: PreparedBatch, is_first: bool) -> Tensor:
        """(b t). `is_first`: the batch is the first of its step, and all ranks are at theirs."""
        if is_first:
            device = prepared.source_ids.device
            trained = torch.tensor(prepared.step_trained, dtype=torch.float32)
            trained = self.reduce(trained.to(device, non_blocking=True))
            known = torch.tensor(self.loss_weights).to(device, non_blocking=True)
            self._weights = source_weights(known, trained)
        return self._weights[prepared.source_ids]
