"""The chunked loss against cross-entropy over all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flamingo_lite.nn.loss import next_token_loss


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("num_items", [None, 17])
def test_chunks_change_neither_loss_nor_gradients(chunk: int, num_items: int | None) -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 11)
    hidden = torch.randn(3, 7, 6, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7)).masked_fill(torch.rand(3, 7) < 0.4, -100)
    loss = next_token_loss(hidden, labels, head, num_items, chunk)
    expected = F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    expected = expected / (num_items or (labels[:, 1:] != -100).sum())
    torch.testing.assert_close(loss, expected)
    inputs = (hidden, *head.parameters())
    for ours, wanted in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_no_trained_token_is_a_loss_of_zero_that_reaches_the_head() -> None:
    head, hidden = nn.Linear(6, 11), torch.randn(2, 4, 6, requires_grad=True)
    loss = next_token_loss(hidden, torch.full((2, 4), -100), head)
    loss.backward()
    assert loss == 0 and head.weight.grad is not None and hidden.grad is not None
