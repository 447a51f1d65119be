"""What `decoding.py` compares, each a row at a fixed context that makes one token after the other.

Every step is undone in the cache before the next one, so that each of them attends to the same number of positions.
Shape letters: b rows, t text positions, m images, n latents, d width, v vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peers import build_ours
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StaticCache

from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import CACHE
from flamingo_lite.nn.cache import MediaCache

TEXT = {
    "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
    "num_attention_heads": 8, "max_position_embeddings": 2048,
}  # fmt: skip
SMALL_TEXT = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
LARGE_VISION = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
SMALL_VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
LATENTS = 64

CACHES = {
    "static": lambda config, context: StaticCache(config=config, max_cache_len=context),
    "growing": lambda config, context: DynamicCache(config=config),
}
"""Of what shape keys and values are: allocated once, or grown by a copy at every token, as `generate` does by itself."""

Forward = Callable[[Tensor, Any, int], Tensor]
"""Ids (1 t), the cache, how many positions it holds -> logits of the last position (1 1 v)."""


@dataclass
class Decoding:
    """One row. `prompt` (1 t) is all but the last position of the context."""

    forward: Forward
    cache: Any
    prompt: Tensor
    last: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.forward(self.prompt, self.cache, 0).argmax(-1)

    def logits(self, ids: Tensor) -> Tensor:
        """(1 1 v) after `ids` (1 1) at the end of the context."""
        found = self.forward(ids, self.cache, self.prompt.shape[1])
        self.cache.crop(-1)
        return found

    def write(self, tokens: int) -> None:
        for _ in range(tokens):
            self.last = self.logits(self.last).argmax(-1)


def model_config(every: int, small: bool) -> dict[str, Any]:
    vision = SMALL_VISION if small else LARGE_VISION
    text = SMALL_TEXT if small else TEXT
    return {
        "vision": {
            "name": "benchmark",
            "pretrained": False,
            "config": {"embed_dim": 512, "quick_gelu": True, "vision_cfg": vision},
        },
        "language": {
            "pretrained": False,
            "config": {"model_type": "llama", "tie_word_embeddings": False, **text},
        },
        "connector": {
            "name": "perceiver",
            "depth": 6,
            "latents": LATENTS,
            "heads": 8,
            "dim_head": 64,
        },
        "fusion": {"every": every, "heads": 8, "dim_head": 64},
    }


def our_model(every: int, small: bool, device: str) -> VisionLanguageModel:
    return build_ours(model_config(every, small)).to(device)


def prompt_of(context: int, images: int, words: int, image_token_id: int, device: str) -> Tensor:
    """(1 t) ids of all but the last position, images evenly among them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, words, (1, context - 1), generator=generator)
    ids[0, [number * (context - 1) // images for number in range(images)]] = image_token_id
    return ids.to(device)


def pixels_of(images: int, size: int, device: str) -> Tensor:
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(2)).to(device)


def ours(model: VisionLanguageModel, media: Tensor, prompt: Tensor) -> Forward:
    """`media` (m n d): encoded once, before; keys and values of a layer are made at the first forward."""
    cache = MediaCache(media=media)
    index = (prompt == model.config.image_token_id).long().cumsum(1) - 1

    def forward(ids: Tensor, past: Any, seen: int) -> Tensor:
        read = index if seen == 0 else index[:, -1:]
        given = {CACHE: past, "media": cache, "media_index": read, "logits_to_keep": 1}
        return model(ids, **given).logits

    return forward


def bare(language: Any) -> Forward:
    def forward(ids: Tensor, past: Any, seen: int) -> Tensor:
        return language(ids, **{CACHE: past}, logits_to_keep=1).logits

    return forward


def open_flamingo_side(model: Any, pixels: Tensor) -> Forward:
    """`lang_encoder` with the images conditioned on once, as their `generate` does. Their projections of the images are
    made in every layer at every token: there is no place in their code where they could be kept."""
    language = model.lang_encoder
    language._use_cached_vision_x = True
    model._encode_vision_x(vision_x=pixels[None, :, None])

    def forward(ids: Tensor, past: Any, seen: int) -> Tensor:
        mask = torch.ones(1, seen + ids.shape[1], dtype=torch.int64, device=ids.device)
        return language(input_ids=ids, attention_mask=mask, **{CACHE: past}, logits_to_keep=1).logits

    return forward


def idefics_side(model: Any, media: Tensor, prompt: Tensor) -> Forward:
    """Handed the resampler's output, which its own `generate` makes anew at every token."""
    marks = prompt == model.config.vocab_size + 1
    index = marks.long().cumsum(1) - 1
    reads = (index[:, :, None] == torch.arange(len(media), device=media.device)).long()

    def forward(ids: Tensor, past: Any, seen: int) -> Tensor:
        mask = reads if seen == 0 else reads[:, -1:]
        given = {CACHE: past, "perceiver_embeddings": media, "image_attention_mask": mask}
        return model(input_ids=ids, **given, use_cache=True, logits_to_keep=1).logits

    return forward


class StepClock(LogitsProcessor):
    """Looks at the clock whenever `generate` has logits; changes nothing."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(time.perf_counter())
        return scores


def generated(model: Any, prompt: Tensor, tokens: int, **given: Any) -> list[float]:
    """Seconds of each token but the first in the model's own `generate`, greedy."""
    clock = StepClock()
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens + 1, min_new_tokens=tokens + 1,
        do_sample=False, logits_processor=LogitsProcessorList([clock]), **given,
    )  # fmt: skip
    return [later - earlier for earlier, later in zip(clock.seen, clock.seen[1:], strict=False)]
