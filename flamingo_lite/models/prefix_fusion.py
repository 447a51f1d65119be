"""Prefix fusion: media tokens take the place of the `<image>` marks among the input embeddings (LLaVA).

The processor has written one mark per media token, so no length ever changes. Which token goes where follows
from the media index and from the running number of the mark in its row, never from the order of the images.
Shape letters: b batch, t text positions, s positions seen before and now, m images in the whole batch, n media
tokens per image, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from flamingo_lite.batch import NO_IMAGE
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.cross_fusion import Fused, FusedBlock
from flamingo_lite.models.packing import attention_windows, packed_masks, refuse_packing
from flamingo_lite.models.parts import CACHE
from flamingo_lite.nn.cache import Media


class MarksError(FlamingoError):
    """The `<image>` ids of `row` do not fit its images."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


Masks = Tensor | dict[str, Tensor]
"""One mask (b 1 t s), or one for each type of attention that the layers have, by its name."""


class PrefixConfig(Protocol):
    """`bidirectional`: the tokens of one image see each other both ways; otherwise all is causal."""

    bidirectional: bool


class PrefixFusion:
    """Replaces embeddings; the language model itself stays exactly what it was."""

    replaces_marks = True

    def __init__(
        self, language: PreTrainedModel, media_width: int, config: PrefixConfig, image_token_id: int
    ) -> None:
        embedding: Any = language.get_input_embeddings()
        width = embedding.weight.shape[1]
        if media_width != width:
            raise FlamingoError(
                f"the connector gives tokens of width {media_width}, and prefix fusion puts them among embeddings "
                f"of width {width}; set connector.width={width}"
            )
        self.language = language
        self.bidirectional = config.bidirectional
        self.image_token_id = image_token_id
        self.blocks: dict[int, FusedBlock] = {}
        if self.bidirectional:
            self._refuse_bidirectional()

    def __call__(self, inputs: dict[str, Any], media: Media) -> Fused:
        """The inputs with embeddings in place of ids. Raises FlamingoError naming a row whose marks do not fit."""
        ids, past = inputs["input_ids"], inputs[CACHE]
        seen = 0 if past is None else int(past.get_seq_length())
        is_mark, n = ids == self.image_token_id, media.tokens.shape[1]
        embedded = self.language.get_input_embeddings()(ids)
        inputs = {name: value for name, value in inputs.items() if name != "input_ids"}
        if seen > 0 and ids.shape[1] == 1 and not bool(is_mark.any()):
            # A step of generating: without a mark nothing is out of place, and nothing is put in.
            return {**inputs, "inputs_embeds": embedded}, nullcontext()
        check_marks(is_mark, media.index, n, is_continued=seen > 0)
        embedded = splice(embedded, media.tokens, media_token_index(is_mark, media.index, n))
        if self.bidirectional and bool(is_mark.any()):
            masks = self._causal_masks(inputs["attention_mask"], past, seen, embedded)
            inputs["attention_mask"] = see_whole_images(masks, image_number(is_mark, n), seen)
        return {**inputs, "inputs_embeds": embedded}, nullcontext()

    def _causal_masks(self, mask: Masks | None, past: Any, seen: int, like: Tensor) -> Masks:
        """(b 1 t s), unless packing or a static cache has made it so already: `mask` (b s)."""
        # A static cache attends over its whole length from the start.
        is_static = past is not None and getattr(past, "is_compileable", False)
        self._refuse_bidirectional(needs_growing_cache=seen > 0 or is_static)
        if isinstance(mask, dict) or (mask is not None and mask.dim() == 4):
            return mask
        b, t = like.shape[:2]
        one_document = torch.zeros(b, seen + t, dtype=torch.int64, device=like.device)
        unused = past.layers[0].max_cache_len - seen - t if is_static else 0

        def of_the_new(causal: Tensor) -> Tensor:
            return F.pad(causal[:, :, seen:], (0, unused), value=torch.finfo(causal.dtype).min)

        return _each(packed_masks(self.language, one_document, mask), of_the_new)

    def _refuse_bidirectional(self, needs_growing_cache: bool = False) -> None:
        if needs_growing_cache and any(attention_windows(self.language.config).values()):
            raise FlamingoError(
                "fusion.bidirectional under sliding windows reads images into an empty, growing cache only; give the "
                "prompt in one part and use no static cache"
            )
        try:
            refuse_packing(self.language)
        except FlamingoError as error:
            raise FlamingoError(f"fusion.bidirectional needs a mask as packing does: {error}") from error


def splice(embedded: Tensor, tokens: Tensor, index: Tensor) -> Tensor:
    """(b t d) with media token `index` (b t) of `tokens` (m n d), counted through, wherever that is not -1.

    Out of place: with activation checkpointing the embeddings are leaves. Tokens that stand nowhere get a
    gradient of exactly 0, so a text-only batch leaves no parameter without one.
    """
    if len(tokens) == 0:
        return embedded
    tokens = tokens.flatten(0, 1).to(embedded.dtype)
    return torch.where((index >= 0)[..., None], F.embedding(index.clamp(min=0), tokens), embedded)


def image_number(is_mark: Tensor, n: int) -> Tensor:
    """(b t) which image of its row a mark belongs to, counted from 0 over every occurrence; -1 for text."""
    return ((is_mark.cumsum(1) - 1) // n).masked_fill(~is_mark, NO_IMAGE)


def media_token_index(is_mark: Tensor, media_index: Tensor, n: int) -> Tensor:
    """(b t) which media token of the batch's (m n) a mark stands for; -1 for text."""
    place = (is_mark.cumsum(1) - 1) % n
    return (media_index * n + place).masked_fill(~is_mark, NO_IMAGE)


def check_marks(is_mark: Tensor, media_index: Tensor, n: int, is_continued: bool) -> None:
    """Raise MarksError, naming the row, unless every image has its `n` marks, where `media_index` turns to it.

    is_continued: earlier positions are in the cache, and so may be the marks of the image at the first one.
    """
    is_first = is_mark & ((is_mark.cumsum(1) - 1) % n == 0)
    turns = F.pad(media_index[:, 1:] != media_index[:, :-1], (1, 0), value=not is_continued)
    fits = (is_first | ~turns | (media_index < 0)) & (~is_mark | (media_index >= 0))
    fits = fits.all(1) & (is_mark.sum(1) % n == 0)
    if bool(fits.all()):
        return
    row = int((~fits).nonzero()[0])
    marks, images = int(is_mark[row].sum()), len(media_index[row][media_index[row] >= 0].unique())
    raise MarksError(
        f"row {row} has {marks} <image> ids and reads {images} images; expected {n} ids for each image, at the place "
        f"where media_index turns to it; use the processor that belongs to the model (template.image_tokens={n}), and "
        "cut no image in two where a prompt is given in parts",
        row,
    )


def see_whole_images(masks: Masks, number: Tensor, seen: int) -> Masks:
    """A mask (b 1 t s), additive or bool, opened between positions (b t) of one image `number`: GIT's mask.

    `seen`: how many of the s columns come before the t positions.
    """
    same = (number[:, :, None] == number[:, None, :]) & (number >= 0)[:, :, None]

    def opened(mask: Tensor) -> Tensor:
        whole = F.pad(same, (seen, mask.shape[-1] - seen - number.shape[1]))[:, None]
        return mask | whole if mask.dtype == torch.bool else mask.masked_fill(whole, 0.0)

    return _each(masks, opened)


def _each(masks: Masks, change: Callable[[Tensor], Tensor]) -> Masks:
    if isinstance(masks, dict):
        return {kind: change(mask) for kind, mask in masks.items()}
    return change(masks)
