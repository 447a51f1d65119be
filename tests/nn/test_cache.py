"""MediaCache: everything once, and selections share what is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flamingo_lite.nn.cache import MediaCache


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
