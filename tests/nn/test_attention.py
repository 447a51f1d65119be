"""Grouped and dense attention against a loop over positions, written as the definition reads."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamingo_lite.nn.attention import attend
from flamingo_lite.nn.masks import first_images, media_layout, previous_layout, step_layout


def reference(query: Tensor, key: Tensor, value: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Each position attends to the latents of the images first..last; without any, it gets zero."""
    out, shared = torch.zeros_like(query), query.shape[2] // key.shape[1]
    for row in range(query.shape[0]):
        for position in range(query.shape[1]):
            lo, hi = int(first[row, position]), int(last[row, position])
            if hi < 0:
                continue
            keys = key[lo : hi + 1].transpose(1, 2).flatten(0, 1).repeat_interleave(shared, 1)  # (i n) h e
            values = value[lo : hi + 1].transpose(1, 2).flatten(0, 1).repeat_interleave(shared, 1)
            scores = torch.einsum("he,khe->hk", query[row, position], keys) * query.shape[-1] ** -0.5
            out[row, position] = torch.einsum("hk,khe->he", scores.softmax(-1), values)
    return out


@st.composite
def media_indices(draw: st.DrawFn) -> Tensor:
    """A (b t) media index as a processor writes it: rows in order, images counted through, padding on either side."""
    t, next_image, rows = draw(st.integers(1, 10)), 0, []
    for _ in range(draw(st.integers(1, 3))):
        current, row = -1, []
        for mark in draw(st.lists(st.booleans(), min_size=t, max_size=t)):
            if mark:
                current, next_image = next_image, next_image + 1
            row.append(current)
        padding = draw(st.integers(0, 2))
        rows.append([-1] * padding + row + [-1] * (2 - padding))
    return torch.tensor(rows)


@settings(max_examples=60, deadline=None)
@given(media_indices(), st.booleans(), st.sampled_from([1, 2]), st.integers(0, 2**31))
def test_attention_equals_the_definition_in_values_and_gradients(
    index: Tensor, previous: bool, key_value_heads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    m = int(index.max()) + 1
    query = torch.randn(*index.shape, 2, 4, dtype=torch.float64, requires_grad=True)
    sizes = (max(m, 1), key_value_heads, 3, 4)
    key, value = (torch.randn(sizes, dtype=torch.float64, requires_grad=True) for _ in range(2))
    layout = previous_layout(index, None) if previous else media_layout(index, len(key))
    first = first_images(index).masked_fill(index < 0, -1) if previous else index
    out, expected = attend(query, key, value, layout), reference(query, key, value, first, index)
    torch.testing.assert_close(out, expected)
    assert (out[index < 0] == 0).all()
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), (query, key, value))
    if m == 0:
        assert all((g == 0).all() for g in gradients)
        return
    for ours, wanted in zip(
        gradients, torch.autograd.grad((expected * weight).sum(), (query, key, value)), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_images_shared_between_rows_in_any_order() -> None:
    torch.manual_seed(0)
    index = torch.tensor([[3, 3, 0, 0, 0], [0, 0, 0, 0, 3], [-1, 1, 1, 1, 1]])
    query, key, value = torch.randn(3, 5, 2, 4), torch.randn(4, 2, 3, 4), torch.randn(4, 2, 3, 4)
    out = attend(query, key, value, media_layout(index, 4))
    torch.testing.assert_close(out, reference(query, key, value, index, index))


@settings(max_examples=60, deadline=None)
@given(media_indices(), st.sampled_from([1, 2]), st.integers(0, 2**31))
def test_a_step_equals_the_same_positions_grouped_by_image(
    index: Tensor, key_value_heads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    index, images = index[:, -1:], max(int(index.max()) + 1, 1)
    query = torch.randn(*index.shape, 2, 4, dtype=torch.float64, requires_grad=True)
    sizes = (images, key_value_heads, 3, 4)
    key, value = (torch.randn(sizes, dtype=torch.float64, requires_grad=True) for _ in range(2))
    step, grouped = (
        attend(query, key, value, step_layout(index)),
        attend(query, key, value, media_layout(index, images)),
    )
    torch.testing.assert_close(step, grouped)
    weight = torch.randn_like(step)
    found, wanted = (
        torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (step, grouped)
    )
    torch.testing.assert_close(found, wanted)


def test_a_step_without_any_image_is_zero_and_still_reaches_every_input() -> None:
    query = torch.randn(2, 1, 2, 4, requires_grad=True)
    key, value = (torch.randn(0, 2, 3, 4, requires_grad=True) for _ in range(2))
    out = attend(query, key, value, step_layout(torch.tensor([[-1], [-1]])))
    assert (out == 0).all()
    assert all(g is not None for g in torch.autograd.grad(out.sum(), (query, key, value)))


def test_media_first_keeps_packed_documents_apart() -> None:
    torch.manual_seed(0)
    last, first = torch.tensor([[0, 1, 1, -1, 2]]), torch.tensor([[0, 0, 0, 2, 2]])
    query, key, value = torch.randn(1, 5, 2, 4), torch.randn(3, 2, 3, 4), torch.randn(3, 2, 3, 4)
    out = attend(query, key, value, previous_layout(last, first))
    torch.testing.assert_close(out, reference(query, key, value, first, last))
