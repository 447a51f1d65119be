"""Attention of text positions to the latents of images, each position to the images that it may read and no
other.

Shape letters: b batch, t text positions, m images in the whole batch, n latents per image, h heads, k key and
value heads, e head width, g groups, c positions in a group, i images of one row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from flamingo_lite.nn.masks import MediaLayout, PreviousLayout, StepLayout

Layout = MediaLayout | StepLayout | PreviousLayout
"""Which images the text positions of a batch read."""


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """(b t h e) queries over the latents (m k n e) of all images -> (b t h e).

    A position without an image gets exactly zero. Scores are scaled by e^-0.5. Each of the k key and value heads
    serves h / k queries next to each other (grouped-query attention; k == h is the usual case).
    """
    if isinstance(layout, MediaLayout):
        return attend_to_one_image(query, key, value, layout)
    if isinstance(layout, StepLayout):
        return attend_in_a_step(query, key, value, layout)
    return attend_to_previous_images(query, key, value, layout)


def attend_to_one_image(query: Tensor, key: Tensor, value: Tensor, layout: MediaLayout) -> Tensor:
    """*Immediate*: positions that read one image form a group, and a group attends to that image's n latents
    only.

    No mask and no score for an unseen image is ever formed.
    """
    b, t, h, _ = query.shape
    flat = rearrange(query, "b t h e -> (b t) (h e)")
    if len(layout.attending) == 0:
        return _connected_zeros(query, key, value)
    groups = rearrange(flat[layout.positions], "g c (h e) -> g h c e", h=h)
    if not layout.covers_all_images:
        key, value = key.index_select(0, layout.images), value.index_select(0, layout.images)
    out = rearrange(_scaled_dot_product(groups, key, value), "g h c e -> (g c) (h e)")
    result = torch.zeros_like(flat).index_copy(0, layout.attending, out.index_select(0, layout.slots))
    return rearrange(result, "(b t) (h e) -> b t h e", b=b, h=h)


def attend_in_a_step(query: Tensor, key: Tensor, value: Tensor, layout: StepLayout) -> Tensor:
    """*Immediate*, one position a row: each row fetches the latents of its image, however many images there are."""
    if len(key) == 0:
        return _connected_zeros(query, key, value)
    key, value = key.index_select(0, layout.images), value.index_select(0, layout.images)
    out = _scaled_dot_product(query.transpose(1, 2), key, value).transpose(1, 2)
    return out.masked_fill(~layout.has_image[:, None, None, None], 0.0)


def attend_to_previous_images(query: Tensor, key: Tensor, value: Tensor, layout: PreviousLayout) -> Tensor:
    """*All previous*: dense attention over the candidate images of the position's row, masked to those it reads."""
    if layout.is_empty:
        return _connected_zeros(query, key, value)
    has_image = layout.has_image[..., None]
    # A row of the mask that is empty would be NaN in some kernels: let it see everything, and drop the
    # result.
    visible = (layout.visible | ~has_image).repeat_interleave(key.shape[2], dim=-1)
    # Nobody reads a candidate past the end, whichever image it fetches.
    fetched = layout.images.clamp(max=len(key) - 1)
    key, value = (rearrange(x[fetched], "b i k n e -> b k (i n) e") for x in (key, value))
    query = rearrange(query, "b t h e -> b h t e")
    out = _scaled_dot_product(query, key, value, visible[:, None])
    return rearrange(out, "b h t e -> b t h e").masked_fill(~has_image[..., None], 0.0)


def _scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    shares_heads = key.shape[1] != query.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, enable_gqa=shares_heads)


def _connected_zeros(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Zeros that still reach every input, so that a text-only training batch leaves no parameter without
    gradient.
    """
    zeros = torch.zeros_like(query)
    if not torch.is_grad_enabled():
        return zeros
    return zeros + 0.0 * (query.sum() + key.sum() + value.sum())
