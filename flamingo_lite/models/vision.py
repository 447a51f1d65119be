"""The vision encoder: any image tower of open_clip or transformers, of which the patch features are read.

Shape letters: m images, c channels, h height, w width, p patches, d width.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models import vision_open_clip, vision_transformers
from flamingo_lite.models.parts import backbone_directory, keep_weights
from flamingo_lite.models.tower import VisionConfig, VisionTower
from flamingo_lite.names import check_choice

__all__ = ["VisionConfig", "VisionEncoder", "VisionTower", "load_vision", "tower_to_dict", "vision_tower"]


class VisionEncoder(nn.Module):
    """Pixels (m c h w) -> patch features (m p d), of the layer, with or without class token and last norm, that
    the tower names. Weights after what is read are gone: all that are left have an effect.

    `module`: the library's own, loaded; without it, it is built from the tower, weights random.
    """

    def __init__(self, tower: VisionTower, module: nn.Module | None = None) -> None:
        super().__init__()
        library = vision_open_clip if tower.transformers is None else vision_transformers
        reading = library.read_tower(tower, module)
        # Any: what the libraries' towers share is declared by no base class.
        self.tower = cast(Any, reading.module)
        self.read = reading.read
        self.image_size = reading.image_size
        self.patches, self.width = reading.patches, reading.width
        if not isinstance(self.tower, PreTrainedModel):
            # transformers' post_init would draw these weights anew: they are the library's to initialise.
            keep_weights(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(m c h w) -> (m p d). Raises FlamingoError when the images have another size than the encoder takes."""
        if tuple(pixel_values.shape[-2:]) != self.image_size:
            raise FlamingoError(
                f"images are {tuple(pixel_values.shape[-2:])}, the vision encoder takes {self.image_size}; "
                "use the processor that belongs to the model"
            )
        # A convolution's strides can last to here. Over such features torch multiplies in another order when weights
        # are trained than when they are not, and a model read from disk would differ from itself in the last bits.
        return self.read(self.tower, pixel_values).contiguous()


def vision_tower(config: VisionConfig) -> VisionTower:
    """How the encoder is built and its images prepared, without loading its weights where that can be avoided."""
    if is_written(config):
        return written_tower(config)
    source = _transformers_source(config)
    if source is not None:
        return vision_transformers.describe(config, source)
    directory = backbone_directory(config.name, "clip")
    if directory is not None:
        return vision_open_clip.describe_directory(directory, config)
    return load_vision(config)[0]


def load_vision(config: VisionConfig) -> tuple[VisionTower, VisionEncoder]:
    """The encoder with its weights, and how to build it again. Raises FlamingoError in one line when it cannot."""
    if is_written(config):
        tower = written_tower(config)
        return tower, VisionEncoder(tower)
    source = _transformers_source(config)
    if source is not None:
        tower = vision_transformers.describe(config, source)
        if config.pretrained is False:
            return tower, VisionEncoder(tower)
        module, missing = vision_transformers.load(config, source, tower)
        encoder = VisionEncoder(tower, module)
        # Only now it is known which weights matter: a missing pooling head does not.
        vision_transformers.refuse_missing(missing, encoder.tower, config)
        return tower, encoder
    directory = backbone_directory(config.name, "clip")
    tower, state = (
        vision_open_clip.load_name(config)
        if directory is None
        else vision_open_clip.load_directory(directory, config)
    )
    encoder = VisionEncoder(tower)
    if state is not None:
        state.load_into(encoder.tower, tower)
    return tower, encoder


def is_written(config: VisionConfig) -> bool:
    """Does the architecture that is written out make a source unnecessary?"""
    return bool(config.config) and config.pretrained is False


def written_tower(config: VisionConfig) -> VisionTower:
    """The tower of `config.config`. Raises FlamingoError for fields that neither library knows."""
    library = vision_transformers if "model_type" in config.config else vision_open_clip
    return library.written_tower(config)


def tower_to_dict(tower: VisionTower) -> dict[str, Any]:
    """Plain data for the model's config.json."""
    return json.loads(json.dumps(asdict(tower)))


def _transformers_source(config: VisionConfig) -> str | None:
    """The directory or hub name of a transformers checkpoint, or None where the name means one of open_clip's.

    Raises FlamingoError for a directory that is neither, and for a name that nothing has.
    """
    import open_clip

    directory = backbone_directory(config.name, "clip")
    if directory is not None:
        return None if _is_open_clip(directory) else str(directory)
    names = open_clip.list_models()
    if config.name not in names and "/" in config.name:
        return config.name
    check_choice("vision encoder", config.name, ["tiny", *names])
    if config.revision is not None:
        raise FlamingoError(
            f"vision.revision is {config.revision!r}, but {config.name} is an open_clip name, whose weights are "
            "chosen by vision.pretrained; leave the revision out"
        )
    return None


def _is_open_clip(directory: Path) -> bool:
    if (directory / vision_open_clip.CONFIG).is_file():
        return True
    if (directory / vision_transformers.CONFIG).is_file():
        return False
    raise FlamingoError(
        f"{directory} holds neither {vision_open_clip.CONFIG} nor {vision_transformers.CONFIG}; expected the "
        "directory of an open_clip or transformers vision encoder"
    )
