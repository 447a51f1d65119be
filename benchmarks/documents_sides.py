"""What `documents.py` compares: the same documents as batches of OpenFlamingo's and as ours, and the steps on them.

Shape letters: b rows, t positions, m images of a document or a batch, c channels, h height, w width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoding_sides import model_config
from drawn_documents import MAX_IMAGES, Drawn, Special
from peers import build_ours, open_flamingo, write_tokenizer
from torch import Tensor
from training_steps import Trainer, our_trainer, their_trainer

from flamingo_lite.batch import IGNORED, Batch
from flamingo_lite.data.packing import pack
from flamingo_lite.document import Image
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import DEFAULT_POLICY, apply_policy
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.tokenizer import Encoded
from flamingo_lite.training.flops import FlopsByPart
from flamingo_lite.training.live_bytes import LiveBytes

PRECISION = "32-true"


@dataclass(frozen=True)
class Sides:
    """Both models with the same weights, as they train."""

    ours: Trainer
    theirs: Trainer
    processor: VisionLanguageProcessor
    special: Special
    edge: int  # of an image, in pixels
    device: str

    @property
    def model(self) -> VisionLanguageModel:
        model = self.ours.model
        assert isinstance(model, VisionLanguageModel)
        return model

    @torch.no_grad()
    def with_features(self, batch: Batch) -> dict[str, Any]:
        """The batch as training meets it where features are known (`data.features.directory`): without pixels."""
        known = {**dict(**batch), "pixel_values": None}
        return {**known, "vision_features": self.model.patch_features(batch.pixel_values)}


def build_sides(small: bool, device: str) -> Sides:
    config = model_config(1, small)
    model = build_ours(config)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder), config["language"]["config"]["vocab_size"])
    processor = VisionLanguageProcessor(tokenizer)
    theirs, marks = open_flamingo(model)
    apply_policy(model, DEFAULT_POLICY)
    model.to(device).train()
    theirs.to(device).train()
    image = model.config.image_token_id
    special = Special(model.config.first_new_token, image, next(n for n in marks if n != image), 1)
    return Sides(
        our_trainer(model, PRECISION, device),
        their_trainer(theirs, marks, PRECISION, device),
        processor, special, model.vision.image_size[0], device,
    )  # fmt: skip


def their_batch(documents: Sequence[Drawn], length: int, device: str) -> dict[str, Tensor]:
    """Every document a row of `length` positions and of six images, as `preprocess_interleaved` pads them."""
    shape = (len(documents), length)
    ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.int64)
    pixels = torch.zeros(len(documents), MAX_IMAGES, 1, *documents[0].pixels.shape[1:])
    for row, document in enumerate(documents):
        t, m = len(document.ids), len(document.pixels)
        ids[row, :t], labels[row, :t], mask[row, :t] = document.ids, document.labels, 1
        pixels[row, :m, 0] = document.pixels
    found = {"vision_x": pixels, "lang_x": ids, "attention_mask": mask, "labels": labels}
    return {name: value.to(device) for name, value in found.items()}


def our_batch(
    sides: Sides, documents: Sequence[Drawn], places: Sequence[tuple[int, int]] | None = None
) -> Batch:
    """What the processor makes of them: rows that documents share, or with no `places` a row for each."""
    encoded = []
    for document in documents:
        marks = (document.ids == sides.special.image).cumsum(0) - 1
        images = (Image(b""),) * len(document.pixels)  # their pixels are there already
        encoded.append(Encoded(document.ids.tolist(), document.labels.tolist(), marks.tolist(), images))
    pixels = torch.cat([document.pixels for document in documents])
    return sides.processor.collate(encoded, places=places, pixels=pixels).to(sides.device)


def packed_batches(
    sides: Sides, documents: Sequence[Drawn], row_tokens: int, batches: int
) -> list[tuple[Batch, list[Drawn]]]:
    """All documents packed together, their rows dealt to as many batches; and the documents of each."""
    places = pack([len(document.ids) for document in documents], None, row_tokens)
    order = np.random.default_rng(0).permutation(1 + max(row for row, _ in places))
    found = []
    for rows in np.array_split(order, batches):
        place_of = {int(row): place for place, row in enumerate(rows)}
        chosen = [
            (d, (place_of[row], start))
            for d, (row, start) in zip(documents, places, strict=True)
            if row in place_of
        ]
        inside = [document for document, _ in chosen]
        found.append((our_batch(sides, inside, [place for _, place in chosen]), inside))
    return found


def bytes_and_operations(trainer: Trainer, inputs: dict[str, Any]) -> tuple[int, int]:
    """Of a step: the most bytes that live at once beside weights, their gradients and the optimizer's state; and the
    operations of its matrix products and attention, a multiply-add counted as two."""
    state = [value for entry in trainer.optimizer.state.values() for value in entry.values()]
    weights = [*trainer.model.parameters(), *trainer.model.buffers()]
    live = LiveBytes([*weights, *(value for value in state if isinstance(value, Tensor))])

    def mark(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.is_gradient(parameter.grad)

    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(mark) for parameter in trained]
    counter = FlopsByPart({})
    with counter, live:
        live.add(value for value in inputs.values() if isinstance(value, Tensor))
        trainer.step(inputs)
    for hook in hooks:
        hook.remove()
    return live.most_activations, sum(counter.flops.values())


def exact(forward: Callable[[], Tensor]) -> float:
    with torch.no_grad():
        return forward().item()
