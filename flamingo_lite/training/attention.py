"""How much the text reads the images: what each cross-attention block adds, and where its attention goes.

The blocks run as they always do; hooks look at one batch now and then. Their attention kernels give no weights, so
these are computed once more for a few positions. Under prefix fusion the weights are inside the language model's own
attention, out of reach without another (slower) kernel; what is told there is how loud media tokens are beside words.
Shape letters: b batch, t text positions, k looked-at positions, i images that a position may read, n latents,
h heads, e head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.attention import Layout
from flamingo_lite.nn.gated import CrossAttention, GatedCrossAttention
from flamingo_lite.nn.masks import MediaLayout, PreviousLayout, StepLayout

POSITIONS = 256
"""How many positions of a batch are looked at: enough for a mean, few enough to cost nothing."""

MEDIA, WORDS = "length of a media token", "length of a word"


class AttentionWatch:
    """Inside `watching`, looks at the forward passes of `model`; `columns` tells of the last one of them."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model
        self._found: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks stand only inside: at all other times the model is as it was."""
        hooks = [
            block.attention.register_forward_hook(partial(self._look, layer, block))
            for layer, block in self.model.blocks.items()
        ]
        if self.model.fusion.replaces_marks:
            words = self.model.language.get_input_embeddings()
            hooks.append(words.register_forward_hook(self._look_at_words))
            hooks.append(self.model.connector.register_forward_hook(self._look_at_media))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def columns(self) -> dict[str, Tensor]:
        """{"attention/<layer>/update": ..., "attention/<layer>/entropy": ...}, on the device; none for a batch without
        images.
        """
        found, self._found = self._found, {}
        media, words = found.pop(MEDIA, None), found.pop(WORDS, None)
        return found if media is None or words is None else found | {"media_scale": media / words}

    @torch.no_grad()
    def _look(
        self, layer: int, block: GatedCrossAttention, attention: nn.Module, inputs: Any, update: Any
    ) -> None:
        assert isinstance(attention, CrossAttention)
        x, key, _, layout = inputs
        places = looked_at(layout)
        if places is None:
            return
        flat, added = x.detach().flatten(0, 1)[places], update.detach().flatten(0, 1)[places]
        added = added.float() * block.attention_gate.detach().float().tanh()
        self._found[f"attention/{layer}/update"] = (
            added.norm(dim=-1) / flat.float().norm(dim=-1).clamp(min=1e-12)
        ).mean()
        weights, last = attention_weights(attention, flat, key.detach(), layout, places)
        self._found[f"attention/{layer}/entropy"] = relative_entropy(weights)
        if last is not None:
            self._found[f"attention/{layer}/latest"] = (
                (weights * last.repeat_interleave(key.shape[2], dim=-1)[:, None]).sum(-1).mean()
            )

    @torch.no_grad()
    def _look_at_media(self, connector: nn.Module, inputs: Any, media: Tensor) -> None:
        self._found[MEDIA] = media.detach().float().norm(dim=-1).mean()

    @torch.no_grad()
    def _look_at_words(self, embeddings: nn.Module, inputs: Any, embedded: Tensor) -> None:
        is_word = (inputs[0] != self.model.config.image_token_id).float()
        lengths = embedded.detach().float().norm(dim=-1) * is_word
        self._found[WORDS] = (lengths.sum() / is_word.sum().clamp(min=1)).clamp(min=1e-12)


def looked_at(layout: Layout) -> Tensor | None:
    """(k) flat positions (b t) that read an image, evenly spread over those that do; None where none does, and in a
    step of generating, which is no part of training."""
    if isinstance(layout, StepLayout):
        return None
    if isinstance(layout, MediaLayout):
        reading, images = layout.attending, 1
    else:
        reading, images = layout.has_image.flatten().nonzero().squeeze(1), layout.visible.shape[-1]
    return reading[spread(len(reading), images)] if len(reading) else None


def spread(total: int, images: int = 1) -> slice:
    """Of `total` places evenly as many as read `POSITIONS` images together, `images` each."""
    most = max(1, POSITIONS // images)
    return slice(None, None, max(1, -(-total // most)))


def attention_weights(
    attention: CrossAttention,
    states: Tensor,
    key: Tensor,
    layout: MediaLayout | PreviousLayout,
    places: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """(k h i*n) the weights that `attend` gives the media tokens, for the states (k d) at `places`; and (k i) whether
    an image is the latest that the position reads, None where it reads one only. `key`: (m h n e).
    """
    query = attention.query(states[:, None])[:, 0]  # (k h e)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    if isinstance(layout, MediaLayout):
        group = layout.slots[spread(len(layout.slots))] // layout.positions.shape[1]
        images, visible = layout.images[group][:, None], None
    else:
        length = layout.has_image.shape[1]
        images = layout.images[places // length].clamp(max=len(key) - 1)  # (k i)
        visible = layout.visible.flatten(0, 1)[places]
    scores = torch.einsum("khe,kihne->khin", query.float(), key[images].float())
    scores = scores * query.shape[-1] ** -0.5
    if visible is None:
        return scores.flatten(-2).softmax(-1), None
    scores = scores.masked_fill(~visible[:, None, :, None], float("-inf"))
    later = torch.arange(visible.shape[1], device=visible.device).expand_as(visible).masked_fill(~visible, -1)
    return scores.flatten(-2).softmax(-1), later == later.amax(1, keepdim=True)


def relative_entropy(weights: Tensor) -> Tensor:
    """The mean over positions and heads of the entropy of `weights` (k h n), over that of equal weights on all of the
    tokens that have any: 1 for equal weights, 0 for a single token.
    """
    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1)
    most = (weights > 0).sum(-1).clamp(min=2).log()
    return (entropy / most).mean()
