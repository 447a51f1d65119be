"""The chunked loss against torch's cross-entropy and transformers' causal loss over all logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from flamingo_lite.nn.loss import chunk_rows, next_token_loss
from flamingo_lite.training.live_bytes import LiveBytes


def labels_of(rows: int, length: int, vocabulary: int) -> Tensor:
    labels = torch.randint(0, vocabulary, (rows, length))
    labels[torch.rand(rows, length) < 0.4] = -100
    labels[0, 1] = 0  # one at least
    return labels


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs, retain_graph=True))


@settings(deadline=None, max_examples=30)
@given(
    chunk=st.integers(1, 30),
    num_items=st.sampled_from([None, 17]),
    seed=st.integers(0, 2**16),
    is_weighted=st.booleans(),
    has_bias=st.booleans(),
)
def test_chunks_change_neither_loss_nor_gradients(
    chunk: int, num_items: int | None, seed: int, is_weighted: bool, has_bias: bool
) -> None:
    torch.manual_seed(seed)
    head = nn.Linear(6, 11, bias=has_bias)
    hidden = torch.randn(3, 7, 6, requires_grad=True)
    labels = labels_of(3, 7, 11)
    weights = torch.rand(3, 7) if is_weighted else None
    loss, token_losses = next_token_loss(hidden, labels, head, num_items, weights, head.parameters(), chunk)
    each = F.cross_entropy(head(hidden)[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    counted = (labels[:, 1:] != -100).float() if weights is None else weights[:, 1:] * (labels[:, 1:] != -100)
    expected = (each * counted).sum() / (num_items or counted.sum())
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(token_losses[:, 1:], each.detach(), atol=1e-6, rtol=1e-6)
    assert not token_losses[:, 0].any() and not token_losses.requires_grad
    inputs = [hidden, *head.parameters()]
    for ours, wanted in zip(gradients(loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-6)


def test_it_is_transformers_loss_for_causal_models() -> None:
    torch.manual_seed(0)
    head, hidden, labels = nn.Linear(6, 11), torch.randn(3, 7, 6), labels_of(3, 7, 11)
    expected = ForCausalLMLoss(head(hidden), labels, 11, num_items_in_batch=torch.tensor(13))
    torch.testing.assert_close(next_token_loss(hidden, labels, head, 13)[0], expected)


def test_a_tied_matrix_gets_the_gradients_of_both_its_uses() -> None:
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(11, 6))
    labels = labels_of(3, 7, 11)
    hidden = F.embedding(labels.clamp(min=0), table).tanh()
    ours, _ = next_token_loss(hidden, labels, lambda x: x @ table.T, parameters=[table], chunk=4)
    expected = F.cross_entropy((hidden @ table.T)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(gradients(ours, [table]), gradients(expected, [table]), atol=1e-6, rtol=1e-6)


def test_what_the_head_does_not_read_gets_no_gradient() -> None:
    head, other = nn.Linear(6, 11), nn.Parameter(torch.zeros(2))
    hidden, labels = torch.randn(1, 5, 6), torch.arange(5)[None]
    next_token_loss(hidden, labels, head, parameters=[*head.parameters(), other])[0].backward()
    assert other.grad is None and head.weight.grad is not None


def test_a_frozen_head_costs_no_gradient_of_its_matrix() -> None:
    head = nn.Linear(6, 11).requires_grad_(False)
    hidden, labels = torch.randn(2, 5, 6, requires_grad=True), torch.arange(10).view(2, 5)
    next_token_loss(hidden, labels, head, parameters=head.parameters())[0].backward()
    assert head.weight.grad is None and hidden.grad is not None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_autocast_leaves_gradients_within_the_types_own_error(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    head, hidden = nn.Linear(16, 400), torch.randn(2, 9, 16, requires_grad=True)
    labels = labels_of(2, 9, 400)
    exact = gradients(
        next_token_loss(hidden, labels, head, parameters=head.parameters())[0], [hidden, head.weight]
    )
    with torch.autocast("cpu", dtype):
        loss, _ = next_token_loss(hidden, labels, head, parameters=head.parameters(), chunk=4)
    assert loss.dtype == torch.float32
    for ours, wanted in zip(gradients(loss, [hidden, head.weight]), exact, strict=True):
        assert (ours - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_gradients_too_small_for_half_precision_survive_a_scaled_loss() -> None:
    """Of a token of probability 1e-8, whose share of the gradient float16 cannot hold unscaled."""
    column = torch.tensor([1.0, 19.375])
    hidden = torch.ones(1, 2, 1, dtype=torch.float16, requires_grad=True)
    loss, _ = next_token_loss(hidden, torch.tensor([[-100, 1]]), lambda x: x * column.half())
    (scaled,) = torch.autograd.grad(loss * 2.0**15, hidden)
    expected = 2.0**15 * torch.sigmoid(torch.tensor(-18.375))
    torch.testing.assert_close(scaled[0, 0, 0].float(), expected, rtol=0.02, atol=0.0)


def test_no_trained_token_is_a_loss_of_zero_that_reaches_the_head() -> None:
    head, hidden = nn.Linear(6, 11), torch.randn(2, 4, 6, requires_grad=True)
    loss, token_losses = next_token_loss(hidden, torch.full((2, 4), -100), head)
    loss.backward()
    assert loss == 0 and head.weight.grad is not None and hidden.grad is not None
    assert token_losses.shape == (2, 4) and not token_losses.any()


def test_weights_of_zero_are_a_loss_of_zero() -> None:
    hidden = torch.randn(1, 4, 6, requires_grad=True)
    loss, _ = next_token_loss(hidden, torch.arange(4)[None], nn.Linear(6, 11), weights=torch.zeros(1, 4))
    loss.backward()
    assert loss == 0 and hidden.grad is not None and not hidden.grad.any()


def test_without_gradients_nothing_is_differentiated() -> None:
    head, hidden = nn.Linear(6, 11), torch.randn(1, 4, 6, requires_grad=True)
    with torch.no_grad():
        loss, _ = next_token_loss(hidden, torch.arange(4)[None], head, parameters=head.parameters())
    assert not loss.requires_grad


Loss = Callable[[Tensor, Tensor, nn.Linear], Tensor]


def plain(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    return ForCausalLMLoss(head(hidden), labels, head.out_features)


def chunked(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    chunk = chunk_rows(head.out_features)
    return next_token_loss(hidden, labels, head, parameters=head.parameters(), chunk=chunk)[0]


@contextmanager
def no_numbers() -> Iterator[None]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def peak(loss: Loss, trains: bool) -> int:
    labels = torch.zeros(2, 2048, dtype=torch.int64)
    with no_numbers():
        head = nn.Linear(1024, 128 * 1024, bias=False).requires_grad_(trains)
        hidden = torch.empty(2, 2048, 1024, requires_grad=True)
    with LiveBytes([head.weight]) as live:
        loss(hidden, labels, head).backward()
    return live.most


@pytest.mark.parametrize("trains", [False, True])
def test_4k_tokens_of_a_vocabulary_of_128k_take_at_most_half_the_memory_of_all_logits(trains: bool) -> None:
    assert peak(chunked, trains) <= peak(plain, trains) / 2
