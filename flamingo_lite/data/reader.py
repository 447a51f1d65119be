"""A recipe to a batch, in a worker process: documents are read, encoded and decoded; what cannot be used is left out.

A sample that cannot be used leaves its place empty, and nothing else moves. Whatever else fails stops the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from flamingo_lite.batch import IGNORED, NO_IMAGE
from flamingo_lite.data.batches import Recipe, Slot
from flamingo_lite.data.encoding import encode_for_training
from flamingo_lite.data.features import FeatureCache, known_features
from flamingo_lite.data.lengths import COMMAND
from flamingo_lite.data.prepared import NO_SOURCE, PreparedBatch, Reject, Used
from flamingo_lite.data.shards import Shards
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import Encoded


@dataclass(frozen=True)
class Source:
    """Shards that documents are read from, and how they are written and weighed."""

    name: str
    shards: Shards
    template: Template
    loss_weight: float = 1.0


@dataclass
class Reading:
    """A document on its way into a batch: where it belongs, and what it is in numbers."""

    row: int
    slot: Slot
    encoded: Encoded
    used: Used


class Reader(Dataset[PreparedBatch | str]):
    """Makes the batch of a recipe: `reader[recipe]`.

    `row_tokens`, `row_images`: the budgets of packed rows; without `row_tokens` each document has a row of its own.
    `features`: images that it has are not decoded.
    An error that stops the run is returned as its message: a DataLoader would bury it in the traceback of a worker.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        processor: VisionLanguageProcessor,
        max_length: int | None = None,
        row_tokens: int | None = None,
        row_images: int | None = None,
        draft: bool = False,
        features: FeatureCache | None = None,
    ) -> None:
        self.sources = list(sources)
        self.processor = processor
        self.max_length = max_length
        self.row_tokens = row_tokens
        self.row_images = row_images
        self.draft = draft
        self.features = features

    def __getitem__(self, index: Recipe) -> PreparedBatch | str:
        try:
            return self.read(index)
        except FlamingoError as error:
            return str(error)

    def read(self, recipe: Recipe) -> PreparedBatch:
        """The batch of a recipe. Errors: `FlamingoError` for all but samples that cannot be used."""
        slots = [(row, slot) for row, slots in enumerate(recipe.rows) for slot in slots]
        rejects: dict[int, Reject] = {}
        readings: dict[int, Reading] = {}
        for place, (row, slot) in enumerate(slots):
            key = None
            try:
                key, document = self.sources[slot.source].shards[slot.number]
                readings[place] = self._encode(row, slot, key, document)
            except SampleError as error:
                rejects[place] = self._reject(slot, key, error)
        known = self._known(readings)
        pixels, failures = self._decode(readings, known)
        for place, error in failures.items():
            reading = readings.pop(place)
            rejects[place] = self._reject(reading.slot, reading.used.key, error)
        batch = self._collate(list(readings.values()), pixels)
        batch.rejects = tuple(rejects[place] for place in sorted(rejects))
        batch.outcomes = tuple(place in readings for place in range(len(slots)))
        if self.row_tokens is not None:
            ends = (slot.start + (slot.tokens or 0) for _, slot in slots)
            batch.capacity = len(recipe.rows) * max(self.row_tokens, *ends, 0)
        batch.position = recipe.position
        if self.features is not None:
            ids = [image.id for reading in readings.values() for image in reading.encoded.images]
            batch.known = known_features(ids, known)
        return batch

    def _encode(self, row: int, slot: Slot, key: str, document: Document) -> Reading:
        source = self.sources[slot.source]
        shard = source.shards.manifest.shards[source.shards.place(slot.number)[0]].name
        name = document.name or key
        encoded = encode_for_training(self.processor, document, source.template, self.max_length, name)
        if self.row_images is not None and len(encoded.images) > self.row_images:
            raise SampleError(
                f"{name}: {len(encoded.images)} images, more than the {self.row_images} of a row; "
                "raise stage.images_per_row",
                "images",
            )
        if slot.tokens is not None and len(encoded) != slot.tokens:
            raise FlamingoError(
                f"{name}: has {len(encoded)} tokens, but {slot.tokens} were measured: the shard or the tokenizer has "
                f"changed since; run `{COMMAND} --fresh`"
            )
        return Reading(row, slot, encoded, Used(source.name, shard, key))

    def _known(self, readings: Mapping[int, Reading]) -> dict[str, torch.Tensor]:
        """The features that the cache has, by image id."""
        if self.features is None:
            return {}
        ids = {image.id for reading in readings.values() for image in reading.encoded.images}
        found = {image_id: self.features.get(image_id) for image_id in sorted(ids)}
        return {image_id: features for image_id, features in found.items() if features is not None}

    def _decode(
        self, readings: Mapping[int, Reading], known: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[int, SampleError]]:
        """The images, as `ImageTransform.levels`, of all documents that are whole, in order; and what is wrong with the
        others. Those whose features are known are left blank."""
        transform = self.processor.image_transform
        images = sum(len(reading.encoded.images) for reading in readings.values())
        pixels = torch.empty(images, 3, *transform.size, dtype=torch.uint8)
        failures: dict[int, SampleError] = {}
        done = 0
        for place, reading in readings.items():
            try:
                for i, image in enumerate(reading.encoded.images):
                    if known and image.id in known:
                        pixels[done + i] = 0
                    else:
                        pixels[done + i] = transform.levels(image, self.draft)
            except SampleError as error:
                failures[place] = error
                continue
            done += len(reading.encoded.images)
        return pixels[:done], failures

    def _collate(self, readings: Sequence[Reading], pixels: torch.Tensor) -> PreparedBatch:
        is_packed = self.row_tokens is not None
        if not readings:
            return self._nothing(is_packed)
        # Rows of which nothing is left go: a row that is all padding costs as much as any other.
        rows = {row: number for number, row in enumerate(dict.fromkeys(r.row for r in readings))}
        places = [(rows[reading.row], reading.slot.start) for reading in readings] if is_packed else None
        batch = self.processor.collate([r.encoded for r in readings], places=places, pixels=pixels)
        owners = batch.segment_ids
        if owners is None:
            owners = torch.where(batch.attention_mask, torch.arange(len(batch))[:, None], NO_SOURCE)
        # Index -1, of padding, reads the last entry.
        ids = torch.tensor([*(reading.slot.source for reading in readings), NO_SOURCE])[owners]
        weights = None
        if any(source.loss_weight != 1 for source in self.sources):
            weights = torch.tensor([*(source.loss_weight for source in self.sources), 0.0])[ids]
        tokens = sum(len(reading.encoded) for reading in readings)
        used = tuple(reading.used for reading in readings)
        of_trained = ids[:, 1:][batch.labels[:, 1:] != IGNORED]
        trained = torch.bincount(of_trained, minlength=len(self.sources)).tolist()
        return PreparedBatch(
            batch,
            self.processor.image_transform,
            ids,
            weights,
            used,
            tokens=tokens,
            trained=tuple(trained),
            cut=sum(reading.encoded.cut > 0 for reading in readings),
        )

    def _nothing(self, is_packed: bool) -> PreparedBatch:
        """One row without labels: every rank must take part in every step."""
        empty = Encoded([self.processor.tokenizer.pad_token_id], [IGNORED], [NO_IMAGE], ())
        batch = self.processor.collate([empty], places=[(0, 0)] if is_packed else None)
        ids = torch.full_like(batch.input_ids, NO_SOURCE)
        is_weighed = any(source.loss_weight != 1 for source in self.sources)
        weights = torch.zeros(ids.shape) if is_weighed else None
        nothing = (0,) * len(self.sources)
        return PreparedBatch(batch, self.processor.image_transform, ids, weights, trained=nothing)

    def _reject(self, slot: Slot, key: str | None, error: SampleError) -> Reject:
        source = self.sources[slot.source]
        number, within = source.shards.place(slot.number)
        shard = source.shards.manifest.shards[number].name
        return Reject(source.name, shard, key or f"#{within}", error.reason, str(error))
