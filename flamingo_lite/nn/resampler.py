"""The Perceiver resampler: any number of patch features in, a fixed number of media tokens (latents) out.

Equal to OpenFlamingo's `PerceiverResampler` (`open_flamingo/src/helpers.py`), which follows Flamingo, 3.1.1;
frame and media-time embeddings are left out, as they are unused there.
Shape letters: m images, p patches, n latents, h heads, e head width, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError


@dataclass
class ResamplerConfig:
    """Sizes of a resampler. `width`: of the latents; None means that of the patch features, as in
    OpenFlamingo.
    """

    depth: int = 6
    latents: int = 64
    heads: int = 8
    dim_head: int = 64
    ff_mult: int = 4
    width: int | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "latents", "heads", "dim_head", "ff_mult"):
            if getattr(self, name) < 1:
                raise FlamingoError(f"connector.{name} is {getattr(self, name)}; it must be at least 1")
        if self.width is not None and self.width < 1:
            raise FlamingoError(
                f"connector.width is {self.width}; it must be at least 1, or null for the patch width"
            )


class FeedForward(nn.Module):
    """LayerNorm, then a GELU layer of `mult` times the width; linears without biases."""

    def __init__(self, width: int, mult: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width * mult, bias=False)
        self.down = nn.Linear(width * mult, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


class PerceiverAttention(nn.Module):
    """Latents (m n d) attend to the patches (m p d) and to themselves."""

    def __init__(self, width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(width, heads * dim_head * 2, bias=False)
        self.to_out = nn.Linear(heads * dim_head, width, bias=False)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm_latents(latents)
        query = rearrange(self.to_q(latents), "m n (h e) -> m h n e", h=self.heads)
        seen = torch.cat((self.norm_media(patches), latents), dim=1)
        key, value = rearrange(self.to_kv(seen), "m s (two h e) -> two m h s e", two=2, h=self.heads)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(rearrange(out, "m h n e -> m n (h e)"))


class ResamplerLayer(nn.Module):
    def __init__(self, width: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.attention = PerceiverAttention(width, config.heads, config.dim_head)
        self.feed_forward = FeedForward(width, config.ff_mult)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        latents = latents + self.attention(patches, latents)
        return latents + self.feed_forward(latents)


class PerceiverResampler(nn.Module):
    """Patch features (m p d_patch) -> media tokens (m n d)."""

    def __init__(self, patch_width: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = config.latents
        self.width = config.width or patch_width
        self.latents = nn.Parameter(torch.randn(config.latents, self.width))
        self.input_projection: nn.Module = (
            nn.Identity() if self.width == patch_width else nn.Linear(patch_width, self.width)
        )
        self.layers = nn.ModuleList(ResamplerLayer(self.width, config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(self.width)

    def forward(self, patches: Tensor) -> Tensor:
        patches = self.input_projection(patches)
        latents = self.latents.expand(len(patches), -1, -1)
        for layer in self.layers:
            latents = layer(patches, latents)
        return self.norm(latents)
