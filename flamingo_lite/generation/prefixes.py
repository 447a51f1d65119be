"""Prompts that begin alike run their beginning once; each then goes on from a copy of its keys and values.

Few-shot prompts do: with more or fewer of the same demonstrations, with fixed ones, under another query's image.
Shape letters: b batch, t text positions, s of them in the cache, h heads, e head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.text.tokenizer import Encoded

LEAST_SHARED = 16
"""Tokens: to run a shorter beginning apart costs more than it saves."""


def can_share(model: VisionLanguageModel) -> bool:
    """Does the language model keep plain keys and values of every token, that a copy can be cut from?

    Sliding windows forget, and recurrent states cannot be cut.
    """
    layers = DynamicCache(config=model.language.config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def symbols(prompts: Sequence[Encoded], image_token_id: int) -> list[list[int]]:
    """Each prompt as numbers that are equal where the language model reads the same: ids, and a number for each image
    at its marks."""
    number: dict[Any, int] = {}
    found = []
    for prompt in prompts:
        keys = prompt.media_keys
        # Below every id.
        images = [-1 - number.setdefault(key, len(number)) for key in keys]
        found.append(
            [
                images[image] if token == image_token_id else token
                for token, image in zip(prompt.input_ids, prompt.media_index, strict=True)
            ]
        )
    return found


def shared_beginnings(prompts: Sequence[Encoded], image_token_id: int) -> tuple[list[int], list[int]]:
    """For each prompt, how many of its first tokens another one shares (0 for none worth it), and which prompt's
    beginning it goes on from: the trunk that begins with these tokens.

    A prompt's last token is never shared, since its logits are wanted, and no image is cut in two.
    """
    written = symbols(prompts, image_token_id)
    order = sorted(range(len(written)), key=written.__getitem__)
    # In this order what two prompts share is the least of what neighbours between them share.
    common = [_common(written[i], written[j]) for i, j in zip(order, order[1:], strict=False)]
    shared = [0] * len(written)
    for place, i in enumerate(order):
        longest = max(common[max(0, place - 1) : place + 1], default=0)
        point = _cut(written[i], min(longest, len(written[i]) - 1))
        shared[i] = point if point >= LEAST_SHARED else 0
    trunk = list(range(len(written)))
    for place, i in enumerate(order):
        first, last = place, place
        while first > 0 and common[first - 1] >= shared[i]:
            first -= 1
        while last < len(common) and common[last] >= shared[i]:
            last += 1
        # Whoever begins as this one does, for the longest: that beginning holds this one's.
        trunk[i] = max(order[first : last + 1], key=shared.__getitem__) if shared[i] else i
    return shared, trunk


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _cut(written: Sequence[int], point: int) -> int:
    """The last place at or before `point` that lies within no image."""
    while 0 < point < len(written) and written[point] < 0 and written[point] == written[point - 1]:
        point -= 1
    return point


def keeps_images_whole(prompt: Encoded, point: int, image_token_id: int) -> bool:
    """Do the marks of no image stand on both sides of `point`?"""
    ids, index = prompt.input_ids, prompt.media_index
    if not 0 < point < len(ids) or ids[point] != image_token_id or ids[point - 1] != image_token_id:
        return True
    return index[point] != index[point - 1]


def continued_from(cache: Any, rows: Sequence[int], ends: Sequence[int], lengths: Sequence[int]) -> Any:
    """A cache (b s) whose row i holds the first `lengths[i]` tokens of row `rows[i]` of `cache`, padded on the left.

    `ends`: how many tokens that row holds; it, too, is padded on the left.
    """
    device = cache.layers[0].keys.device
    width, columns = max(lengths), cache.layers[0].keys.shape[2]
    starts = columns - torch.tensor(ends, device=device)
    pads = width - torch.tensor(lengths, device=device)
    place = starts[:, None] + torch.arange(width, device=device) - pads[:, None]
    place = place.clamp(min=0)  # padding, which nothing sees
    row = torch.tensor(rows, device=device)[:, None].expand_as(place)
    fresh = DynamicCache()
    for number, layer in enumerate(cache.layers):
        fresh.update(_taken(layer.keys, row, place), _taken(layer.values, row, place), number)
    return fresh


def _taken(states: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """(b h s e) of (b' h s' e)"""
    return states[row, :, place].transpose(1, 2).contiguous()
