"""Many prompts, few distinct images: prompts sorted by length into batches, every image encoded exactly once.

Shape letters: b batch, t text positions, m images, n media tokens per image, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from flamingo_lite.batch import NO_IMAGE
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.tokenizer import Encoded

IMAGES_AT_ONCE = 128
"""How many images are decoded and encoded together: bounds memory, changes no result."""

MediaKey = tuple[str, tuple[int, ...]]
"""What the media tokens of an image depend on; see `Encoded.media_keys`."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of nearly one length, padded left. `rows`: their places in the list that was given."""

    rows: list[int]
    input_ids: Tensor  # (b t)
    attention_mask: Tensor  # (b t) int64
    media_index: Tensor  # (b t)
    media: MediaCache


def encode_prompts(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: Sequence[Document], room: int
) -> list[Encoded]:
    """Token ids of all documents; raises FlamingoError naming the first that leaves no `room` for new
    tokens.
    """
    if isinstance(documents, Document):
        raise FlamingoError("expected a list of documents, got one Document; write [document]")
    encoded = processor.encode_all(documents)
    limit = context_length(model.config)
    for i, prompt in enumerate(encoded):
        if limit is not None and len(prompt) + room > limit:
            raise FlamingoError(
                f"document {i}: its prompt has {len(prompt)} tokens, {len(prompt) + room} with the new "
                "ones; the "
                f" language model's context is {limit}: use fewer shots or less text"
            )
    return encoded


def prompt_batches(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    encoded: Sequence[Encoded],
    batch_size: int,
) -> Iterator[PromptBatch]:
    """All prompts, shortest first, at most `batch_size` a batch; their images through one cache."""
    if batch_size < 1:
        raise FlamingoError(f"batch_size is {batch_size}; it must be at least 1")
    distinct: dict[MediaKey, Image] = {}
    for prompt in encoded:
        distinct |= dict(zip(prompt.media_keys, prompt.images, strict=True))
    number = {key: i for i, key in enumerate(distinct)}
    cache = _encode_images(model, processor, distinct)
    # A stable sort: which prompts share a batch depends on nothing but their lengths and order.
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield _collate(model, processor, rows, [encoded[i] for i in rows], cache, number)


def _encode_images(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, distinct: Mapping[MediaKey, Image]
) -> MediaCache:
    keys, tokens = list(distinct), []
    for start in range(0, len(keys), IMAGES_AT_ONCE):
        chosen = keys[start : start + IMAGES_AT_ONCE]
        pixels = torch.stack([processor.image_transform(distinct[key]) for key in chosen])
        text = processor.connector_text([ids for _, ids in chosen]).values()
        tokens.append(model.encode_images(pixels.to(model.device), *(t.to(model.device) for t in text)))
    if not tokens:
        return model.no_media()
    return MediaCache(media=torch.cat(tokens))


def _collate(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    rows: list[int],
    prompts: list[Encoded],
    cache: MediaCache,
    number: dict[MediaKey, int],
) -> PromptBatch:
    shape = (len(prompts), max(map(len, prompts)))
    input_ids = torch.full(shape, processor.tokenizer.pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    media_index = torch.full(shape, NO_IMAGE)
    images: list[int] = []
    for row, prompt in enumerate(prompts):
        where = slice(shape[1] - len(prompt), None)
        input_ids[row, where] = torch.tensor(prompt.input_ids)
        attention_mask[row, where] = 1
        local = torch.tensor(prompt.media_index)
        media_index[row, where] = torch.where(local >= 0, local + len(images), NO_IMAGE)
        images += [number[key] for key in prompt.media_keys]
    device = model.device
    media = cache.select(torch.tensor(images, dtype=torch.int64, device=device))
    return PromptBatch(rows, input_ids.to(device), attention_mask.to(device), media_index.to(device), media)


@contextmanager
def evaluating(model: VisionLanguageModel) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the mode it had after."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
