"""Next-token loss without the logits of all positions: only trained positions are projected, chunk by chunk.

Each chunk's gradients are computed beside its loss, in the forward pass: as fast as one matrix of all logits, which a
recomputation in the backward pass is not, and of the logits nothing outlives its chunk.
Shape letters: b batch, t text positions, k trained positions, d width, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100

LOGITS_AT_ONCE = 2**26
"""How many logits a chunk may have: 256 MB in float32, of which three or four copies live at once."""

CHUNKS, LEAST_ROWS = 8, 128
"""An eighth of the logits is little beside the rest of a step; products of fewer rows than 128 would take longer."""

SCALE = 2.0**10
"""Gradients of single logits are far below what float16 can hold; a power of two changes no other digit of them."""


def chunk_rows(vocabulary: int) -> int:
    """How many positions are projected at once."""
    return max(1, LOGITS_AT_ONCE // vocabulary)


def next_token_loss(
    hidden: Tensor,
    labels: Tensor,
    project: Callable[[Tensor], Tensor],
    num_items: Tensor | int | None = None,
    weights: Tensor | None = None,
    parameters: Iterable[Tensor] = (),
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """The loss (scalar, float32), and the cross-entropy (b t) of each label, 0 where nothing is trained, detached.

    The loss is sum(weights * cross-entropy) / `num_items`, by default the sum of the weights (without any: the number
    of trained tokens). `hidden` (b t d), `labels` (b t) unshifted with -100 where nothing is trained, `weights` (b t)
    of the labels, `project`: (k d) -> (k v). `parameters`: all that `project` reads and that may train; no other
    gets a gradient here. Of the logits an eighth exist at a time, in 128 to `chunk` rows. A batch without a trained token
    has loss 0, never NaN, that still reaches every parameter. It can be differentiated once.
    """
    is_trained = F.pad(labels[:, 1:] != IGNORED, (0, 1))
    # By number, not by mask: how many there are then follows from the labels alone, not from the hidden states.
    trained = is_trained.flatten().nonzero().squeeze(1)
    # The label of position i stands at i + 1, and no trained position is the last of its row.
    targets = labels.flatten().index_select(0, trained + 1)
    no_losses = hidden.new_zeros(labels.numel(), dtype=torch.float32)
    if len(trained) == 0:
        return 0.0 * project(hidden[:1, 0]).float().sum(), no_losses.view_as(labels)
    states = hidden.flatten(0, 1).index_select(0, trained)
    chosen = None if weights is None else weights.flatten().index_select(0, trained + 1).float()
    chunk = min(chunk, max(LEAST_ROWS, math.ceil(len(trained) / CHUNKS)))
    trains = [p for p in parameters if p.requires_grad] if torch.is_grad_enabled() else []
    total, losses = _ChunkedLoss.apply(
        states, targets, chosen, project, chunk, torch.is_grad_enabled(), *trains
    )
    if num_items is None:
        num_items = (
            len(trained) if chosen is None else chosen.sum() + (chosen.sum() == 0)
        )  # a sum of 0 is a loss of 0
    return total / num_items, no_losses.index_copy(0, trained + 1, losses).view_as(labels)


class _ChunkedLoss(torch.autograd.Function):
    """The weighted sum of cross-entropies and each of them (k); its gradients are there after the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        project: Callable[[Tensor], Tensor],
        chunk: int,
        wants_gradients: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        needed = [p for p in (states, *parameters) if p.requires_grad] if wants_gradients else []
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        gradients: list[Tensor | None] = [None] * len(parameters)
        of_states = torch.empty_like(states) if needed else None
        for start in range(0, len(states), chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(bool(needed)):
                rows = states[part].detach().requires_grad_(bool(needed))
                # As a view: what hooks modules for their backward pass (torch's counters) takes no leaf in autograd.grad.
                logits = project(rows.view_as(rows)).float()
                losses[part] = own = F.cross_entropy(logits, targets[part], reduction="none")
                if of_states is None:
                    continue
                weighted = own if weights is None else own * weights[part]
                found = torch.autograd.grad(SCALE * weighted.sum(), (rows, *parameters), allow_unused=True)
            of_states[part] = found[0]
            gradients = [_sum(known, more) for known, more in zip(gradients, found[1:], strict=True)]
        ctx.save_for_backward(of_states, *gradients)
        ctx.mark_non_differentiable(losses)
        return (losses if weights is None else losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]  # the decorator hides `static`
        # In place, for a gradient of the output matrix is as large as the matrix.
        of_states, *gradients = (
            g if g is None else g.mul_(grad_outputs[0] / SCALE) for g in ctx.saved_tensors
        )
        return of_states, None, None, None, None, None, *gradients


def _sum(known: Tensor | None, more: Tensor | None) -> Tensor | None:
    if known is None or more is None:
        return more if known is None else known
    return known.add_(more)
