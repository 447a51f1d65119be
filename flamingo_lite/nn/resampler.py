"""The Perceiver resampler: any number of patch features in, a fixed number of media tokens (latents) out.

Equal to OpenFlamingo's `PerceiverResampler` (`open_flamingo/src/helpers.py`), which follows Flamingo, 3.1.1;
frame and media-time embeddings are left out, as they are unused there. With `qk_norm` and the activation
"relu" equal to IDEFICS's `IdeficsPerceiverResampler` (transformers).
Shape letters: m images, p patches, n latents, s = p + n, h heads, e head width, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flamingo_lite.nn.activations import check_activation
from flamingo_lite.nn.feed_forward import FeedForward
from flamingo_lite.nn.recompute import recomputed
from flamingo_lite.nn.sizes import check_optional_sizes, check_sizes


@dataclass
class ResamplerConfig:
    """Sizes and flavour of a resampler. `width`: of the latents; None means that of the patch features, as in
    OpenFlamingo.

    `qk_norm`: LayerNorm on the queries and keys of each head. IDEFICS has `qk_norm` (from its config) and
    `activation` "relu", OpenFlamingo no norm and "gelu".
    """

    depth: int = 6
    latents: int = 64
    heads: int = 8
    dim_head: int = 64
    ff_mult: int = 4
    width: int | None = None
    qk_norm: bool = False
    activation: str = "gelu"

    def __post_init__(self) -> None:
        check_sizes("connector", self, ("depth", "latents", "heads", "dim_head", "ff_mult"))
        check_optional_sizes("connector", self, ("width",))
        check_activation("connector.activation", self.activation)


class PerceiverAttention(nn.Module):
    """Latents (m n d) attend to the patches (m p d) and to themselves."""

    def __init__(self, width: int, config: ResamplerConfig) -> None:
        super().__init__()
        inner = config.heads * config.dim_head
        self.heads = config.heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, inner * 2, bias=False)
        self.norm_query = nn.LayerNorm(config.dim_head) if config.qk_norm else nn.Identity()
        self.norm_key = nn.LayerNorm(config.dim_head) if config.qk_norm else nn.Identity()
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        query = recomputed(lambda latents: self.to_q(self.norm_latents(latents)), latents)
        query = self.norm_query(rearrange(query, "m n (h e) -> m h n e", h=self.heads))
        keys_values = recomputed(self._keys_values, patches, latents)
        key, value = rearrange(keys_values, "m s (two h e) -> two m h s e", two=2, h=self.heads)
        out = F.scaled_dot_product_attention(query, self.norm_key(key), value)
        return self.to_out(rearrange(out, "m h n e -> m n (h e)"))

    def _keys_values(self, patches: Tensor, latents: Tensor) -> Tensor:
        return self.to_kv(torch.cat((self.norm_media(patches), self.norm_latents(latents)), dim=1))


class ResamplerLayer(nn.Module):
    def __init__(self, width: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.attention = PerceiverAttention(width, config)
        self.feed_forward = FeedForward(nn.LayerNorm(width), width, width * config.ff_mult, config.activation)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        latents = latents + self.attention(patches, latents)
        return latents + self.feed_forward(latents)


class PerceiverResampler(nn.Module):
    """Patch features (m p d_patch) -> media tokens (m n d)."""

    reads_text = False

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
