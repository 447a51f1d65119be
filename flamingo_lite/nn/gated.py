"""Tanh-gated cross-attention: how text reads images inside a frozen language model, silent at the start.

Equal to OpenFlamingo's `GatedCrossAttentionBlock` (`open_flamingo/src/helpers.py`); Flamingo, 3.1.2.
Shape letters: b batch, t text positions, m images in the whole batch, n latents, h heads, e head width, d
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.nn.attention import attend
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.nn.masks import MediaLayout, PreviousLayout
from flamingo_lite.nn.resampler import FeedForward


@dataclass
class GatedConfig:
    """Where the blocks stand and how large they are. A block comes before decoder layer i if (i + 1) % every
    == 0.

    `sees`: "immediate" (the last image at or before the position) or "all_previous" (all of its document so
    far).
    """

    every: int = 1
    heads: int = 8
    dim_head: int = 64
    ff_mult: int = 4
    sees: str = "immediate"

    def __post_init__(self) -> None:
        for name in ("every", "heads", "dim_head", "ff_mult"):
            if getattr(self, name) < 1:
                raise FlamingoError(f"fusion.{name} is {getattr(self, name)}; it must be at least 1")
        if self.sees not in ("immediate", "all_previous"):
            raise FlamingoError(f"fusion.sees is {self.sees!r}; it must be 'immediate' or 'all_previous'")


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + tanh(gate) * update. `gate` starts at 0, so the frozen model is unchanged at step 0 (Flamingo,
    3.1.2).
    """
    return x + gate.tanh() * update


class CrossAttention(nn.Module):
    """Text (b t d) attends to the media tokens of images; only the text is normed, media tokens already
    are.
    """

    def __init__(self, width: int, media_width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(media_width, heads * dim_head * 2, bias=False)
        self.to_out = nn.Linear(heads * dim_head, width, bias=False)

    def project(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """Media tokens (m n d_media) -> keys and values, each (m h n e)."""
        key, value = rearrange(self.to_kv(media), "m n (two h e) -> two m h n e", two=2, h=self.heads)
        return key.contiguous(), value.contiguous()

    def forward(self, x: Tensor, key: Tensor, value: Tensor, layout: MediaLayout | PreviousLayout) -> Tensor:
        query = rearrange(self.to_q(self.norm(x)), "b t (h e) -> b t h e", h=self.heads)
        return self.to_out(rearrange(attend(query, key, value, layout), "b t h e -> b t (h e)"))


class GatedCrossAttention(nn.Module):
    """The block: gated cross-attention, then a gated feed-forward that acts on every position, image or
    none.
    """

    def __init__(self, width: int, media_width: int, config: GatedConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.attention = CrossAttention(width, media_width, config.heads, config.dim_head)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward = FeedForward(width, config.ff_mult)
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, media: Tensor | MediaCache, layout: MediaLayout | PreviousLayout) -> Tensor:
        """(b t d) -> (b t d). `media`: tokens (m n d_media) when training, a MediaCache when projections are
        reused.
        """
        if isinstance(media, MediaCache):
            key, value = media.keys_values(self.layer, self.attention.project)
        else:
            key, value = self.attention.project(media)
        x = gated(x, self.attention(x, key, value, layout), self.attention_gate)
        return gated(x, self.feed_forward(x), self.feed_forward_gate)
