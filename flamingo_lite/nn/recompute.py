"""What is computed again in the backward pass in place of being kept: norms and activations, never a product of matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, of which only the inputs are kept for the backward pass.

    Recomputing ends where the last tensor that the backward pass wants is there: behind a norm that feeds a linear, in front
    of the product. Nothing random may happen inside. A training step on documents like MMC4's keeps 0.84 of what it kept
    before, in the same time (benchmarks/log.md).
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    made = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(made, Tensor)
    return made
