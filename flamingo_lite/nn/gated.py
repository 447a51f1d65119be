"""Tanh-gated cross-attention: how text reads images inside a frozen language model, silent at the start.

By default equal to OpenFlamingo's `GatedCrossAttentionBlock` (`open_flamingo/src/helpers.py`; Flamingo, 3.1.2);
other fields of `GatedConfig` make it transformers' `IdeficsGatedCrossAttentionLayer`.
Shape letters: b batch, t text positions, m images in the whole batch, n latents, h heads, e head width, d width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.nn.attention import Layout, attend
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.nn.feed_forward import FEED_FORWARDS
from flamingo_lite.nn.recompute import recomputed
from flamingo_lite.nn.sizes import check_optional_sizes, check_sizes
from flamingo_lite.nn.whole import whole

PLACES: dict[str, Callable[[int, int], bool]] = {
    "end": lambda layer, every: (layer + 1) % every == 0,
    "start": lambda layer, every: layer % every == 0,
}
"""Does a block stand before decoder layer `layer`: the last one of each interval, or its first?"""

NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
QK_NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm] | type[nn.Identity]] = {
    "none": nn.Identity,
    **NORMS,
}

CHOICES: dict[str, Iterable[str]] = {
    "sees": ("immediate", "all_previous"),
    "place": PLACES,
    "gate": ("scalar", "vector"),
    "norm": NORMS,
    "qk_norm": QK_NORMS,
    "feed_forward": FEED_FORWARDS,
}


@dataclass
class GatedConfig:
    """Where the blocks stand, what they see, and of what they are made; the defaults are OpenFlamingo's.

    `every`, `place`: before decoder layer i where (i + 1) % every == 0 ("end"), or i % every == 0 ("start").
    `sees`: "immediate" (the last image at or before the position) or "all_previous" (all of its document so far).
    `heads`: null takes the language model's; `dim_head`: null divides its width among them; `key_value_heads`:
    null is as many as `heads`. `feed_forward_width`: null is `ff_mult` times the width.
    `gate`: one per branch, or a vector of one per channel, drawn from a normal with `gate_mean` and `gate_std`.
    `norm`: of the text before either branch; `qk_norm`: of queries and keys over the head width.
    """

    every: int = 1
    heads: int | None = 8
    dim_head: int | None = 64
    ff_mult: int = 4
    sees: str = "immediate"
    place: str = "end"
    key_value_heads: int | None = None
    gate: str = "scalar"
    gate_mean: float = 0.0
    gate_std: float = 0.0
    norm: str = "layer"
    norm_eps: float = 1e-5
    qk_norm: str = "none"
    feed_forward: str = "gelu"
    feed_forward_width: int | None = None

    def __post_init__(self) -> None:
        check_sizes("fusion", self, ("every", "ff_mult"))
        check_optional_sizes("fusion", self, ("heads", "dim_head", "key_value_heads", "feed_forward_width"))
        for name in ("gate_mean", "gate_std", "norm_eps"):
            _check_number(name, getattr(self, name))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in tuple(choices):
                known = " or ".join(repr(choice) for choice in choices)
                raise FlamingoError(f"fusion.{name} is {getattr(self, name)!r}; it must be {known}")
        if self.gate_std < 0:
            raise FlamingoError(f"fusion.gate_std is {self.gate_std}; it must be 0 or more")
        if self.norm_eps <= 0:
            raise FlamingoError(f"fusion.norm_eps is {self.norm_eps}; it must be above 0")
        if self.heads is not None and self.heads % (self.key_value_heads or 1) != 0:
            raise FlamingoError(
                f"fusion.key_value_heads is {self.key_value_heads}; it must divide fusion.heads, {self.heads}"
            )

    def stands_before(self, layer: int) -> bool:
        """Is there a block before decoder layer `layer`, counted from 0?"""
        return PLACES[self.place](layer, self.every)

    def head_sizes(self, width: int) -> tuple[int, int, int]:
        """Heads, key and value heads, and width of a head, in a language model of width `width`."""
        if self.heads is None:
            raise FlamingoError(
                "fusion.heads is null outside a language model, whose number it would take; give a number"
            )
        if self.dim_head is None and width % self.heads != 0:
            raise FlamingoError(
                f"fusion.dim_head is null, but {self.heads} heads do not divide the width {width}; "
                "give fusion.dim_head"
            )
        return self.heads, self.key_value_heads or self.heads, self.dim_head or width // self.heads


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise FlamingoError(f"fusion.{name} is {value!r}; it must be a finite number")


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + tanh(gate) * update. `gate` (1 or d) starts at 0, so the frozen model is unchanged at step 0 (Flamingo,
    3.1.2).
    """
    return x + gate.tanh() * update


def opened(gate: Tensor) -> Tensor:
    """How far a gate is open, a scalar on its device: tanh of a scalar one, the root mean square of a vector's tanh."""
    tanh = whole(gate.detach()).float().tanh()
    return tanh.squeeze() if tanh.numel() == 1 else tanh.square().mean().sqrt()


def gate_value(gate: Tensor) -> float:
    """`opened` as a number."""
    return opened(gate).item()


class CrossAttention(nn.Module):
    """Text (b t d) attends to the media tokens of images; only the text is normed, media tokens already are.

    Nothing has a bias after the attention: a position without an image gets exactly zero.
    """

    def __init__(self, width: int, media_width: int, config: GatedConfig) -> None:
        super().__init__()
        self.heads, self.key_value_heads, dim_head = config.head_sizes(width)
        self.norm = NORMS[config.norm](width, eps=config.norm_eps)
        self.to_q = nn.Linear(width, self.heads * dim_head, bias=False)
        self.to_kv = nn.Linear(media_width, self.key_value_heads * dim_head * 2, bias=False)
        self.norm_query = QK_NORMS[config.qk_norm](dim_head, eps=config.norm_eps)
        self.norm_key = QK_NORMS[config.qk_norm](dim_head, eps=config.norm_eps)
        self.to_out = nn.Linear(self.heads * dim_head, width, bias=False)

    def project(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """Media tokens (m n d_media) -> normed keys and values, each (m h n e)."""
        key, value = rearrange(
            self.to_kv(media), "m n (two h e) -> two m h n e", two=2, h=self.key_value_heads
        )
        return _normed(key, self.norm_key).contiguous(), value.contiguous()

    def query(self, x: Tensor) -> Tensor:
        """Text (b t d) -> normed queries (b t h e)."""
        query = recomputed(lambda x: self.to_q(self.norm(x)), x)
        return _normed(rearrange(query, "b t (h e) -> b t h e", h=self.heads), self.norm_query)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
        query = self.query(x)
        return self.to_out(rearrange(attend(query, key, value, layout), "b t h e -> b t (h e)"))


def _normed(x: Tensor, norm: nn.LayerNorm | nn.RMSNorm | nn.Identity) -> Tensor:
    if isinstance(norm, nn.Identity):
        return x
    # Under autocast x is narrower than the weights, and attention wants queries, keys and values of one type.
    return norm(x.to(norm.weight.dtype)).to(x.dtype)


class GatedCrossAttention(nn.Module):
    """The block: gated cross-attention, then a gated feed-forward that acts on every position, image or
    none.
    """

    def __init__(self, width: int, media_width: int, config: GatedConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.attention = CrossAttention(width, media_width, config)
        self.attention_gate = _first_gate(width, config)
        norm = NORMS[config.norm](width, eps=config.norm_eps)
        inner = config.feed_forward_width or config.ff_mult * width
        self.feed_forward = FEED_FORWARDS[config.feed_forward](norm, width, inner)
        self.feed_forward_gate = _first_gate(width, config)

    def forward(self, x: Tensor, media: Tensor | MediaCache, layout: Layout) -> Tensor:
        """(b t d) -> (b t d). `media`: tokens (m n d_media) when training, a MediaCache when projections are
        reused.
        """
        if isinstance(media, MediaCache):
            key, value = media.keys_values(self.layer, self.attention.project)
        else:
            key, value = self.attention.project(media)
        x = gated(x, self.attention(x, key, value, layout), self.attention_gate)
        return gated(x, self.feed_forward(x), self.feed_forward_gate)


def _first_gate(width: int, config: GatedConfig) -> nn.Parameter:
    gate = torch.full((width if config.gate == "vector" else 1,), config.gate_mean)
    # Nothing is drawn where nothing varies: the weights after it come out as they always did.
    return nn.Parameter(gate + config.gate_std * torch.randn_like(gate) if config.gate_std else gate)
