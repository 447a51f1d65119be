"""Packing: documents do not overlap, budgets hold, few positions are left empty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.packing import pack

ROW, IMAGES = 32, 4
DOCUMENTS = st.lists(st.tuples(st.integers(0, ROW), st.integers(0, IMAGES)), max_size=60)


def used_rows(places: list[tuple[int, int]], tokens: list[int]) -> dict[int, list[int]]:
    used: dict[int, list[int]] = {}
    for (row, start), length in zip(places, tokens, strict=True):
        used.setdefault(row, []).extend(range(start, start + length))
    return used


@settings(deadline=None)
@given(DOCUMENTS)
def test_documents_lie_side_by_side_within_both_budgets(documents: list[tuple[int, int]]) -> None:
    tokens, images = [t for t, _ in documents], [m for _, m in documents]
    places = pack(tokens, images, ROW, IMAGES)
    used = used_rows(places, tokens)
    assert sorted(used) == list(range(len(used)))
    assert all(sorted(row) == list(range(len(row))) and len(row) <= ROW for row in used.values())
    pictures = np.bincount([row for row, _ in places], weights=images) if places else np.zeros(0)
    assert (pictures <= IMAGES).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_two_half_empty_rows_are_never_left(tokens: list[int]) -> None:
    used = used_rows(pack(tokens), tokens)
    assert sum(2 * len(row) <= max(tokens) for row in used.values()) <= 1


@settings(deadline=None)
@given(st.lists(st.integers(1, ROW), min_size=1, max_size=40))
def test_no_more_rows_are_used_than_the_bound_of_best_fit_decreasing(tokens: list[int]) -> None:
    # 11/9 of the best possible, + 6/9 (Dosa, 2007); the best possible is at least the sum over the rows' size.
    rows = 1 + max(row for row, _ in pack(tokens, row_tokens=ROW))
    halves = sum(2 * length > ROW for length in tokens)
    least = max(-(-sum(tokens) // ROW), halves)
    assert rows <= 11 / 9 * least + 6 / 9 or rows <= least + 1 or rows <= 1.5 * least


def mmc4_like(count: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of documents like MMC4's: a long tail of text, two to three images of at most 6, cut at `limit`."""
    generator = np.random.default_rng(0)
    tokens = np.clip(generator.lognormal(5.6, 0.8, count), 10, limit).astype(int)
    return tokens, np.clip(generator.geometric(0.35, count), 1, 6)


@pytest.mark.parametrize("row_tokens, row_images", [(256, None), (512, 8), (1024, 16), (2048, None)])
def test_rows_of_mmc4_like_lengths_are_95_percent_full(row_tokens: int, row_images: int | None) -> None:
    tokens, images = mmc4_like(1024, row_tokens)
    rows = 1 + max(row for row, _ in pack(tokens, images, row_tokens, row_images))
    assert tokens.sum() / (rows * row_tokens) >= 0.95


def test_documents_of_no_tokens_take_no_room() -> None:
    assert pack([4, 0, 4, 0], row_tokens=4) == [(0, 0), (0, 4), (1, 0), (0, 4)]


def test_a_document_longer_than_a_row_has_one_of_its_own() -> None:
    assert pack([3, 9, 1, 0], row_tokens=4) == [(1, 0), (0, 0), (1, 3), (1, 4)]


def test_a_document_with_too_many_images_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="more images than a row"):
        pack([4], [3], 4, 2)
