"""Next-token loss without the logits of all positions: only trained positions are projected, chunk by chunk.

Shape letters: b batch, t text positions, k trained positions, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def next_token_loss(
    hidden: Tensor,
    labels: Tensor,
    project: Callable[[Tensor], Tensor],
    num_items: Tensor | int | None = None,
    chunk: int = 1024,
) -> Tensor:
    """Sum of cross-entropies over trained tokens / `num_items` (default: their number here) -> scalar,
    float32.

    `hidden` (b t d), `labels` (b t) unshifted with -100 where nothing is trained, `project`: (k d) -> (k v).
    With more than one chunk the logits are recomputed in the backward pass, so at most `chunk` rows of them
    exist at a time. A batch without a trained token has loss 0 (never NaN) that still reaches every
    parameter.
    """
    targets = labels[:, 1:]
    is_trained = targets != -100
    # By number, not by mask: how many there are then follows from the labels alone, not from the hidden states.
    trained = F.pad(is_trained, (0, 1)).flatten().nonzero().squeeze(1)
    states, targets = hidden.flatten(0, 1).index_select(0, trained), targets[is_trained]
    if len(targets) == 0:
        return 0.0 * project(hidden[:1, 0]).float().sum()

    def chunk_loss(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(project(states).float(), targets, reduction="sum")

    if len(targets) <= chunk:
        total = chunk_loss(states, targets)
    else:
        pieces = zip(states.split(chunk), targets.split(chunk), strict=True)
        losses = [checkpoint(chunk_loss, s, y, use_reentrant=False) for s, y in pieces]
        total = torch.stack(losses).sum()
    return total / (len(targets) if num_items is None else num_items)
