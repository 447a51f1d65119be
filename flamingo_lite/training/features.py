"""The patch features of a batch: those that the disk knows, and the others from the vision encoder, kept for next time.

Shape letters: m images, k of them known, c channels, h height, w width, p patches, d width.
"""

from dataclasses import asdict

from torch import Tensor

from flamingo_lite.data.features import FeatureCache, FeatureCacheConfig, KnownFeatures
from flamingo_lite.data.stores import parse_bytes
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.results import sha256_of_json
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import sha256_of_module
from flamingo_lite.processing import VisionLanguageProcessor


def open_features(
    config: FeatureCacheConfig,
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    precision: str,
    draft: bool,
) -> FeatureCache | None:
    """The cache under a key of all that features depend on: the encoder's weights and what is read of it, how images
    are decoded and transformed, the types that are computed in (`features_key`). None without a directory.

    Errors: `FlamingoError` when the vision encoder trains.
    """
    if config.directory is None:
        return None
    training = [name for name, p in model.vision.named_parameters() if p.requires_grad]
    if training:
        raise FlamingoError(
            f"data.features keeps what a frozen vision encoder computes, and {len(training)} of its parameters train "
            f"(vision.{training[0]}); freeze them, or set data.features.directory=null"
        )
    limit = parse_bytes(config.bytes, "data.features.bytes")
    return FeatureCache(config.directory, features_key(model, processor, precision, draft), limit)


def features_key(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, precision: str, draft: bool
) -> str:
    """The name of all that features depend on, of an encoder that was trained as well."""
    depends_on = {
        "encoder": sha256_of_module(model.vision),
        "tower": model.config.vision_tower,
        "transform": asdict(processor.image_transform),
        "precision": precision,
        "draft": draft,
    }
    return sha256_of_json(depends_on)[:32]


def complete(
    model: VisionLanguageModel, cache: FeatureCache, known: KnownFeatures, pixel_values: Tensor
) -> Tensor:
    """The features (m p d) of all images of a batch; `pixel_values` (m c h w) hold those that are not known."""
    missing = [number for number, is_known in enumerate(known.is_known) if not is_known]
    if not known.ids:
        return pixel_values.new_empty(0, model.vision.patches, model.vision.width)
    if not missing:
        assert known.features is not None
        return known.features
    fresh = model.patch_features(pixel_values[missing])
    for number, features in zip(missing, fresh, strict=True):
        cache.put(known.ids[number], features)
    if known.features is None:
        return fresh
    features = fresh.new_empty(len(known.ids), *fresh.shape[1:])
    features[missing] = fresh
    features[[number for number, is_known in enumerate(known.is_known) if is_known]] = known.features
    return features
