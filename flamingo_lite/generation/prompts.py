"""Prompts by the batch: of nearly one length, their images from one store, what several begin with run once.

Shape letters: b batch, t text positions, s of them in the cache, m images, n media tokens per image, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flamingo_lite.batch import NO_IMAGE
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.generation.images import MediaStore
from flamingo_lite.generation.prefixes import (
    can_share,
    continued_from,
    keeps_images_whole,
    shared_beginnings,
)
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import CACHE
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.tokenizer import Encoded

AHEAD = 256
"""Among how many later prompts images are looked for when some have to be encoded anyway."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of nearly one length, padded left. `rows`: their places in the list that was given.

    `past`: the language model's cache of their first `seen` columns, where they share beginnings; else None and 0.
    """

    rows: list[int]
    input_ids: Tensor  # (b t)
    attention_mask: Tensor  # (b t) int64
    media_index: Tensor  # (b t)
    media: MediaCache
    past: Any = None
    seen: int = 0


def encode_prompts(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: Sequence[Document], room: int
) -> list[Encoded]:
    """Token ids of all documents; raises FlamingoError naming the first that leaves no `room` for new
    tokens.
    """
    if isinstance(documents, Document):
        raise FlamingoError("expected a list of documents, got one Document; write [document]")
    encoded = processor.encode_all(documents)
    for i, prompt in enumerate(encoded):
        if problem := too_long(model, prompt, room):
            raise FlamingoError(f"document {i}: {problem}")
    return encoded


def too_long(model: VisionLanguageModel, prompt: Encoded, room: int) -> str | None:
    """Why the prompt leaves no `room` for new tokens; None where it does."""
    limit = context_length(model.config)
    if limit is None or len(prompt) + room <= limit:
        return None
    return (
        f"its prompt has {len(prompt)} tokens, {len(prompt) + room} with the new ones; the language model's context is "
        f"{limit}: use fewer shots or less text"
    )


def prompt_batches(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    encoded: Sequence[Encoded],
    batch_size: int,
    store: MediaStore | None = None,
    share: bool = True,
) -> Iterator[PromptBatch]:
    """All prompts, at most `batch_size` a batch; their images through `store`, or one of this call's own.

    share: prompts that begin alike go on from one run of that beginning, where the language model's cache can be
    cut. Which prompts share a batch depends on nothing but their tokens and order.
    """
    if batch_size < 1:
        raise FlamingoError(f"batch_size is {batch_size}; it must be at least 1")
    batches = _Batches(model, processor, encoded, batch_size, store or MediaStore(model, processor))
    if not share or len(encoded) < 2 or not can_share(model):
        yield from batches.alone(range(len(encoded)))
        return
    shared, trunk = shared_beginnings(encoded, model.config.image_token_id)
    yield from batches.alone([i for i, length in enumerate(shared) if not length])
    yield from batches.together(shared, trunk)


@dataclass(frozen=True)
class _Batches:
    """Makes batches of prompts, given by their numbers."""

    model: VisionLanguageModel
    processor: VisionLanguageProcessor
    encoded: Sequence[Encoded]
    batch_size: int
    store: MediaStore

    def alone(self, numbers: Sequence[int]) -> Iterator[PromptBatch]:
        """Shortest first."""
        order = sorted(numbers, key=lambda i: len(self.encoded[i]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            later = order[start + self.batch_size : start + self.batch_size + AHEAD]
            self.store.fetch(self._of(rows), self._of(later))
            yield self._collate(rows, self._of(rows))

    def together(self, shared: Sequence[int], trunk: Sequence[int]) -> Iterator[PromptBatch]:
        """Those that go on from a trunk: trunks are run by the batch, then what goes on from them."""
        members: dict[int, list[int]] = {}
        for i, length in enumerate(shared):
            if length:
                members.setdefault(trunk[i], []).append(i)
        trunks = sorted(members, key=lambda t: shared[t])
        start = 0
        while start < len(trunks):
            end, count = start, 0
            while end < len(trunks) and end - start < self.batch_size and count < self.batch_size:
                count += len(members[trunks[end]])
                end += 1
            chosen = trunks[start:end]
            beginnings = [_beginning(self.encoded[t], shared[t]) for t in chosen]
            later = self._of([i for t in trunks[start : start + AHEAD] for i in members[t]][:AHEAD])
            self.store.fetch(beginnings, later)
            cache = _run(self.model, self._collate(chosen, beginnings))
            place = {i: (n, shared[t], shared[i]) for n, t in enumerate(chosen) for i in members[t]}
            yield from self._going_on(cache, place, later)
            start = end

    def _going_on(
        self, cache: Any, place: dict[int, tuple[int, int, int]], later: Sequence[Encoded]
    ) -> Iterator[PromptBatch]:
        """`place`: for each prompt the row of its trunk in `cache`, that row's length, and what the prompt shares.

        All rows of a batch run as many tokens as the one with the most left, some of them again: padding in the middle
        of a row would change distances that some language models count.
        """
        left = sorted(place, key=lambda i: (place[i][2] - len(self.encoded[i]), i))
        while left:
            most = len(self.encoded[left[0]]) - place[left[0]][2]
            rows = [i for i in left if self._can_begin_at(i, len(self.encoded[i]) - most)][: self.batch_size]
            left = [i for i in left if i not in set(rows)]
            self.store.fetch(self._of(rows), later)
            batch = self._collate(rows, self._of(rows))
            lengths = [max(0, len(self.encoded[i]) - most) for i in rows]
            past = continued_from(cache, [place[i][0] for i in rows], [place[i][1] for i in rows], lengths)
            missing = max(lengths) + most - batch.input_ids.shape[1]
            assert missing == 0, "a row is longer than its beginning and the rest"
            yield replace(batch, past=past, seen=max(lengths))

    def _can_begin_at(self, number: int, point: int) -> bool:
        if not self.model.fusion.replaces_marks:
            return True
        return keeps_images_whole(self.encoded[number], point, self.model.config.image_token_id)

    def _of(self, numbers: Sequence[int]) -> list[Encoded]:
        return [self.encoded[i] for i in numbers]

    def _collate(self, rows: list[int], prompts: Sequence[Encoded]) -> PromptBatch:
        shape = (len(prompts), max(map(len, prompts)))
        input_ids = torch.full(shape, self.processor.tokenizer.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        media_index = torch.full(shape, NO_IMAGE)
        numbers: list[int] = []
        # Images that one position may read together have to lie side by side; alone, they are read where they lie.
        side_by_side = self.model.fusion.sees == "all_previous"
        for row, prompt in enumerate(prompts):
            where = slice(shape[1] - len(prompt), None)
            input_ids[row, where] = torch.tensor(prompt.input_ids)
            attention_mask[row, where] = 1
            found = self.store.numbers(prompt)
            local = torch.tensor(prompt.media_index)
            places = range(len(numbers), len(numbers) + len(found)) if side_by_side else found
            numbers += found
            # Index -1 reads the last entry, which is -1.
            media_index[row, where] = torch.tensor([*places, NO_IMAGE])[local]
        device = self.model.device
        media = self.store.media()
        if side_by_side and numbers:
            media = media.select(torch.tensor(numbers, device=device))
        return PromptBatch(
            rows, input_ids.to(device), attention_mask.to(device), media_index.to(device), media
        )


def _beginning(prompt: Encoded, length: int) -> Encoded:
    index = prompt.media_index[:length]
    images = prompt.images[: max(index) + 1]
    return replace(
        prompt,
        input_ids=prompt.input_ids[:length],
        labels=prompt.labels[:length],
        media_index=index,
        images=images,
    )


def _run(model: VisionLanguageModel, batch: PromptBatch) -> Any:
    """The language model's cache of a batch."""
    out = model(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        media_index=batch.media_index,
        media=batch.media,
        use_cache=True,
        logits_to_keep=1,
    )
    return out[CACHE]


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
