"""Cross-attention fusion: gated blocks inserted before the layers of a causal LM that stays what it was.

A decoder layer keeps its class, its object and its keys. It gets the block as a submodule, and a bound
forward that runs the block and then the class's own forward. What the block reads comes through one slot that
the model owns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.language import decoder_layers
from flamingo_lite.models.parts import keep_weights
from flamingo_lite.nn.attention import Layout
from flamingo_lite.nn.cache import Media, MediaCache
from flamingo_lite.nn.gated import GatedConfig, GatedCrossAttention
from flamingo_lite.nn.masks import media_layout, previous_layout, step_layout

Fused = tuple[dict[str, Any], AbstractContextManager[None]]
"""The inputs of the language model, and the context to run it in."""


@dataclass(frozen=True)
class FusionContext:
    """What the blocks of one forward read. `media` is a tensor (m n d) when gradients are wanted, else the
    cache.
    """

    media: Tensor | MediaCache
    layout: Layout


class FusionSlot:
    """Holds the context for the time of one forward. Empty, the language model is exactly the one it was."""

    def __init__(self) -> None:
        self.context: FusionContext | None = None

    @contextmanager
    def holding(self, context: FusionContext) -> Iterator[None]:
        self.context = context
        try:
            yield
        finally:
            self.context = None


class CrossAttentionFusion:
    """Gated blocks read the media; with all gates at 0 the language model is the one it was, bit for bit."""

    replaces_marks = False

    def __init__(
        self, language: PreTrainedModel, media_width: int, config: GatedConfig, image_token_id: int
    ) -> None:
        self.sees = config.sees
        self.slot = FusionSlot()
        self.blocks = insert_blocks(language, media_width, config, self.slot)

    def __call__(self, inputs: dict[str, Any], media: Media) -> Fused:
        """The inputs as they are, and a context in which the blocks find the media."""
        context = FusionContext(fusion_media(media.cache, media.tokens), self._layout(media))
        return inputs, self.slot.holding(context)

    def _layout(self, media: Media) -> Layout:
        if self.sees == "immediate":
            if media.index.shape[1] == 1:
                return step_layout(media.index)
            return media_layout(media.index, len(media.cache))
        if media.first is None and media.is_packed:
            raise FlamingoError(
                "packed documents under fusion.sees=all_previous need media_first in the batch"
            )
        return previous_layout(media.index, media.first)


class FusedBlock(GradientCheckpointingLayer, GatedCrossAttention):
    """A gated block that transformers' activation checkpointing covers, apart from the layer that it
    precedes.
    """


def insert_blocks(
    language: PreTrainedModel, media_width: int, config: GatedConfig, slot: FusionSlot
) -> dict[int, FusedBlock]:
    """Put a block before every layer that `config` names (`every`, `place`); returns them by layer number.

    Raises FlamingoError where not one layer is named, or heads cannot be told.
    """
    text_config = language.config.get_text_config()
    config = with_heads_of(text_config, config)
    width = text_config.hidden_size
    blocks = {}
    for i, layer in enumerate(decoder_layers(language)):
        if config.stands_before(i):
            blocks[i] = FusedBlock(width, media_width, config, layer=i)
            # The language model's own _init_weights would draw these anew, gates included.
            keep_weights(blocks[i])
            layer.cross_attention = blocks[i]
            layer.forward = functools.partial(fused_forward, layer, slot)
    if not blocks:
        raise FlamingoError(
            f"fusion.every is {config.every}, but the language model has {text_config.num_hidden_layers} layers: no "
            "block would stand anywhere; give at most that number"
        )
    return blocks


def with_heads_of(text_config: PretrainedConfig, config: GatedConfig) -> GatedConfig:
    """`config` with the language model's own number of heads where it leaves `heads` open."""
    if config.heads is not None:
        return config
    heads = getattr(text_config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise FlamingoError(
            f"fusion.heads is null, and the config of {text_config.model_type} has num_attention_heads {heads!r}, "
            "expected a whole number; give fusion.heads"
        )
    return replace(config, heads=heads)


def fused_forward(
    layer: nn.Module, slot: FusionSlot, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """The block, then the class's own forward, looked up late (FSDP2 swaps the class).

    The slot is read here, outside the checkpointed block: recomputation never depends on it.
    """
    context = slot.context
    if context is not None:
        block: Any = layer.cross_attention  # torch types what a module holds as Tensor | Module
        hidden_states = block(hidden_states, context.media, context.layout)
    return type(layer).forward(layer, hidden_states, *args, **kwargs)


def leave_whole_layers_to_their_forward(language: PreTrainedModel) -> None:
    """Call after checkpointing is switched on: where transformers checkpoints `__call__` instead of the
    class's `forward` (5.10 to about 5.20), a fused layer would read the slot during recomputation; there only
    blocks are recomputed.
    """
    if "__call__" in GradientCheckpointingLayer.__dict__:
        for layer in decoder_layers(language):
            if hasattr(layer, "cross_attention"):
                cast(GradientCheckpointingLayer, layer).gradient_checkpointing = False


def fusion_media(cache: MediaCache, tokens: Tensor) -> Tensor | MediaCache:
    """With gradients the tokens themselves (a checkpointed function must get its tensors as arguments), else
    the cache.
    """
    return tokens if torch.is_grad_enabled() else cache
