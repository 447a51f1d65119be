"""MediaCache: everything once, and selections share what is computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamingo_lite.nn.cache import MediaCache, MediaPool


class Counting:
    """A function that remembers how many images went through it."""

    def __init__(self) -> None:
        self.images = 0

    def encode(self, pixels: Tensor) -> Tensor:
        self.images += len(pixels)
        return pixels.flatten(1)[:, None, :4]

    def project(self, media: Tensor) -> tuple[Tensor, Tensor]:
        self.images += len(media)
        return media[:, None] * 2, media[:, None] * 3


def test_images_are_encoded_at_the_first_use_and_not_again() -> None:
    count, cache = Counting(), MediaCache(pixel_values=torch.randn(5, 3, 2, 2))
    assert count.images == 0 and len(cache) == 5
    first = cache.tokens(count.encode)
    assert cache.tokens(count.encode) is first
    assert count.images == 5


def test_selections_project_once_for_all() -> None:
    count, cache = Counting(), MediaCache(media=torch.randn(5, 1, 4))
    for index in (torch.tensor([4, 0, 4]), torch.tensor([2])):
        selection = cache.select(index)
        key, value = selection.keys_values(0, count.project)
        tokens = selection.tokens(count.encode)
        torch.testing.assert_close(key, tokens[:, None] * 2)
        torch.testing.assert_close(value, tokens[:, None] * 3)
        assert len(selection) == len(index)
    assert count.images == 5


def test_layers_do_not_share_projections() -> None:
    cache = MediaCache(media=torch.ones(1, 1, 4))
    one = cache.keys_values(0, lambda media: (media, media))
    two = cache.keys_values(1, lambda media: (media * 2, media * 2))
    assert not torch.equal(one[0], two[0])


def test_a_cache_is_made_of_pixels_or_of_tokens() -> None:
    with pytest.raises(ValueError, match="not both"):
        MediaCache()


def test_a_selection_takes_its_tokens_out_once() -> None:
    count, cache = Counting(), MediaCache(pixel_values=torch.randn(5, 3, 2, 2))
    selection = cache.select(torch.tensor([4, 0]))
    assert selection.tokens(count.encode) is selection.tokens(count.encode)


def tokens_of(keys: list[int]) -> Tensor:
    return torch.tensor(keys, dtype=torch.float32)[:, None, None].expand(-1, 2, 4)


@settings(deadline=None, max_examples=60)
@given(
    capacity=st.integers(1, 6),
    calls=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True), max_size=8),
)
def test_a_pool_gives_every_image_what_it_would_get_alone(capacity: int, calls: list[list[int]]) -> None:
    pool = MediaPool(capacity)
    for keys in calls:
        missing = [key for key in keys if key not in pool]
        pool.put(missing, tokens_of(missing), keep=set(keys))
        rows = pool.rows(keys)
        assert torch.equal(pool.tokens(lambda: torch.empty(0))[rows], tokens_of(keys))
        key, value = pool.keys_values(3, lambda media: (media * 2, media * 3))
        assert torch.equal(key[rows], tokens_of(keys) * 2) and torch.equal(value[rows], tokens_of(keys) * 3)
        assert len(pool) <= max(capacity, *(len(call) for call in calls))


def test_a_pool_projects_each_image_once_as_images_come() -> None:
    count, pool = Counting(), MediaPool(8)
    for keys in ([0, 1, 2], [3], [4, 5]):
        pool.put(keys, tokens_of(keys))
        pool.keys_values(0, count.project)
        pool.keys_values(0, count.project)
    assert count.images == 6


def test_a_full_pool_gives_up_what_was_used_longest_ago() -> None:
    pool = MediaPool(2)
    pool.put([0, 1], tokens_of([0, 1]))
    pool.rows([0])
    pool.put([2], tokens_of([2]))
    assert 0 in pool and 2 in pool and 1 not in pool


def test_a_pool_selects_as_a_cache_does() -> None:
    pool = MediaPool(4)
    pool.put([7, 8, 9], tokens_of([7, 8, 9]))
    selection = pool.select(torch.tensor(pool.rows([9, 7, 9])))
    assert torch.equal(selection.tokens(lambda: torch.empty(0)), tokens_of([9, 7, 9]))
    assert torch.equal(selection.keys_values(0, lambda media: (media, -media))[1], -tokens_of([9, 7, 9]))
