"""Layouts and masks as pure functions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.errors import FlamingoError
from flamingo_lite.nn.masks import check_media_index, first_images, media_layout, packing_mask

INDICES = st.integers(1, 4).flatmap(
    lambda b: st.integers(1, 12).flatmap(
        lambda t: st.lists(st.lists(st.integers(-1, 5), min_size=t, max_size=t), min_size=b, max_size=b)
    )
)


@settings(max_examples=200, deadline=None)
@given(INDICES)
def test_every_attending_position_has_one_slot_in_a_group_of_its_image(rows: list[list[int]]) -> None:
    media_index = torch.tensor(rows)
    layout = media_layout(media_index, 6)
    flat = media_index.flatten()
    assert sorted(layout.attending.tolist()) == (flat >= 0).nonzero().flatten().tolist()
    assert len(set(layout.slots.tolist())) == len(layout.slots)
    assert (layout.positions.flatten()[layout.slots] == layout.attending).all()
    group = layout.slots // layout.positions.shape[1]
    assert (layout.images[group] == flat[layout.attending]).all()


@settings(max_examples=200, deadline=None)
@given(INDICES)
def test_groups_waste_at_most_two_slots_per_position(rows: list[list[int]]) -> None:
    layout = media_layout(torch.tensor(rows), 6)
    images = len(layout.images.unique())
    assert layout.positions.numel() <= 3 * len(layout.attending) + 2 * images


def test_images_in_order_need_no_gathering() -> None:
    assert media_layout(torch.tensor([[0, 0, 1], [-1, 2, 2]]), 3).covers_all_images
    assert not media_layout(torch.tensor([[0, 0, 2]]), 3).covers_all_images


def test_first_images_are_per_row_and_absent_in_a_row_without_images() -> None:
    found = first_images(torch.tensor([[-1, 0, 1], [-1, -1, -1], [-1, 2, 2]]))
    assert found.tolist() == [[0, 0, 0], [-1, -1, -1], [2, 2, 2]]


@pytest.mark.parametrize(
    ("index", "images", "exact", "fits"),
    [
        ([[-1, 0, 1]], 2, True, True),
        ([[-1, 0, 0]], 2, True, False),  # a batch concatenated without shifting
        ([[-1, 0, 0]], 2, False, True),
        ([[-1, 0, 2]], 2, False, False),
        ([[-2, 0, 1]], 2, True, False),
        ([[-1, -1]], 0, True, True),
        ([[0, 0]], 0, True, False),
    ],
)
def test_media_index_must_fit_the_images(
    index: list[list[int]], images: int, exact: bool, fits: bool
) -> None:
    if fits:
        check_media_index(torch.tensor(index), images, exact)
        return
    with pytest.raises(FlamingoError, match=f"there are {images} images"):
        check_media_index(torch.tensor(index), images, exact)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(0, 3))
def test_packing_mask_shows_earlier_positions_of_the_same_document(segments: list[int], padding: int) -> None:
    segment_ids = torch.tensor([sorted(segments) + [9] * padding])
    real = torch.tensor([[1] * len(segments) + [0] * padding])
    mask = packing_mask(segment_ids, real, torch.float32)[0, 0]
    t = segment_ids.shape[1]
    for i in range(t):
        for j in range(t):
            same = segment_ids[0, i] == segment_ids[0, j] and bool(real[0, j])
            assert (mask[i, j] == 0) == (i == j or (j < i and bool(same)))
