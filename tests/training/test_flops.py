"""Arithmetic counted operation by operation, against products that are written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flamingo_lite.training.flops import FlopsByPart

Inputs = tuple[Tensor, Tensor, Tensor]


def drawn(heads: int, shared: int) -> Inputs:
    """Queries of 5 positions, keys and values of 7 with fewer heads; 16 numbers each, which the kernels want."""
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 5, 16),
        torch.randn(2, shared, 7, 16),
        torch.randn(2, shared, 7, 16),
    )
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1])


@pytest.mark.parametrize("shared", [4, 2])
def test_fused_attention_counts_as_its_products_and_its_scores_again_on_the_way_back(shared: int) -> None:
    inputs = drawn(4, shared)
    counts = []
    for attention in (written_out, fused):
        with FlopsByPart({}) as counter:
            out = attention(*inputs)
            forward = counter.flops.total()
            out.sum().backward()
        counts.append((forward, counter.flops.total() - forward))
    (forward, backward), found = counts
    assert found == (forward, backward + forward // 2)
    torch.testing.assert_close(written_out(*inputs), fused(*inputs))
