"""The images of prompts: each goes through the encoder once, over many calls, and its keys and values are made once.

What the encoder gives may be kept on the disk, where the next evaluation, and training, find it.
Shape letters: m images, c channels, h height, w width, p patches, n media tokens per image, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from flamingo_lite.data.features import FeatureCache
from flamingo_lite.document import Image
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.cache import MediaCache, MediaPool
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.tokenizer import Encoded

IMAGES_AT_ONCE = 128
"""How many images are decoded and encoded together: bounds memory."""

MEDIA_BYTES = 4 * 2**30

MediaKey = tuple[str, tuple[int, ...]]
"""What the media tokens of an image depend on; see `Encoded.media_keys`."""


@dataclass
class MediaStore:
    """The images that one model has encoded, over many calls. `media_bytes`: about what they may take.

    `features`: patch features on the disk, of this model's encoder. `at_once`: how many images are encoded together.
    """

    model: VisionLanguageModel
    processor: VisionLanguageProcessor
    media_bytes: int = MEDIA_BYTES
    features: FeatureCache | None = None
    at_once: int = IMAGES_AT_ONCE
    pool: MediaPool = field(init=False)

    def __post_init__(self) -> None:
        self.pool = MediaPool(max(1, self.media_bytes // bytes_per_image(self.model)))

    def fetch(self, prompts: Sequence[Encoded], ahead: Sequence[Encoded] = ()) -> None:
        """Sees to it that the pool has the images of `prompts`; with a missing one, some of `ahead` come along.

        Errors: `SampleError` naming an image that cannot be read.
        """
        wanted = distinct_images(prompts)
        missing = {key: image for key, image in wanted.items() if key not in self.pool}
        if not missing:
            return
        room = min(self.at_once, self.pool.capacity - len(wanted)) - len(missing)
        if room > 0:
            later = distinct_images(ahead)
            more = ((k, v) for k, v in later.items() if k not in self.pool and k not in missing)
            missing |= dict(islice(more, room))
        keys = list(missing)
        for start in range(0, len(keys), self.at_once):
            chosen = keys[start : start + self.at_once]
            self.pool.put(chosen, self._encode({key: missing[key] for key in chosen}), keep=wanted.keys())

    def numbers(self, prompt: Encoded) -> list[int]:
        """Where each image of the prompt lies in the pool."""
        return self.pool.rows(prompt.media_keys)

    def media(self) -> MediaCache:
        """What the model reads: the pool, or no images where there are none yet."""
        return self.pool if len(self.pool) else self.model.no_media()

    def _encode(self, images: Mapping[MediaKey, Image]) -> Tensor:
        """(m n d)"""
        text = self.processor.connector_text([ids for _, ids in images]).values()
        device = self.model.device
        return self.model.connector(self._patches(list(images.values())), *(t.to(device) for t in text))

    def _patches(self, images: Sequence[Image]) -> Tensor:
        """(m p d): those that the disk knows, and the others from the encoder."""
        known = {image.id: self.features.get(image.id) for image in images} if self.features else {}
        missing = {image.id: image for image in images if known.get(image.id) is None}
        fresh: dict[str, Tensor] = {}
        if missing:
            pixels = torch.stack([self.processor.image_transform(image) for image in missing.values()])
            fresh = dict(zip(missing, self.model.patch_features(pixels.to(self.model.device)), strict=True))
        if self.features is not None:
            for image_id, features in fresh.items():
                self.features.put(image_id, features)
        found = [fresh[image.id] if image.id in fresh else known[image.id] for image in images]
        return torch.stack([features.to(self.model.device) for features in found if features is not None])


def distinct_images(prompts: Sequence[Encoded]) -> dict[MediaKey, Image]:
    """Each image once, in the order in which they come."""
    return {
        key: image for prompt in prompts for key, image in zip(prompt.media_keys, prompt.images, strict=True)
    }


def bytes_per_image(model: VisionLanguageModel) -> int:
    """Of an image's media tokens, and its keys and values in every fused layer."""
    widths = [block.attention.to_kv.out_features for block in model.blocks.values()]
    return model.connector.tokens * (model.connector.width + sum(widths)) * model.dtype.itemsize
