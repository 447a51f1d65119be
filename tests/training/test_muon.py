"""Muon against torch's own, in which alone the precision of the iteration differs."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.training.muon import Muon, orthogonal

COEFFICIENTS = (3.4445, -4.775, 2.0315)
SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_the_updates_are_torchs_but_for_its_rounding(shapes: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    optimizer = Muon(ours, lr=0.1)
    reference = torch.optim.Muon(theirs, lr=0.1, adjust_lr_fn="match_rms_adamw")
    # With bfloat16 taken from torch's iteration, nothing is left between the two but the order of sums.
    with (
        patch.object(torch, "bfloat16", torch.float32),
        patch.object(torch.Tensor, "bfloat16", lambda tensor: tensor.clone()),
    ):
        for _ in range(3):
            for one, other in zip(ours, theirs, strict=True):
                one.grad = torch.randn(one.shape)
                other.grad = one.grad.clone()
            optimizer.step()
            reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_matrices_are_made_orthogonal_each_on_its_own(shapes: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    matrices = [torch.randn(shape) for shape in shapes]
    found = orthogonal(matrices, COEFFICIENTS, 5, 1e-7)
    for matrix, update in zip(matrices, found, strict=True):
        (alone,) = orthogonal([matrix], COEFFICIENTS, 5, 1e-7)
        torch.testing.assert_close(update, alone)
        # The same singular vectors, and singular values by the polynomial, five times over.
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        values = values / values.norm()
        for _ in range(5):
            values = sum(k * values**power for k, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))
        torch.testing.assert_close(update.double(), left * values @ right, atol=1e-3, rtol=1e-3)


def test_a_matrix_without_a_gradient_stays_as_it_is() -> None:
    moved, left = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    moved.grad = torch.ones(2, 3)
    optimizer = Muon([moved, left], lr=0.1)
    optimizer.step(lambda: None)
    assert torch.equal(left, torch.ones(2, 3)) and not torch.equal(moved, left)
    Muon([left], lr=0.1).step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
