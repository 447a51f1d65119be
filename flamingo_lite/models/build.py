"""A model and its processor from a config: which vision encoder, connector, fusion, language model and
policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.connector import ConnectorConfig, build_connector
from flamingo_lite.models.fusion import FusionConfig
from flamingo_lite.models.language import LanguageConfig, load_language, load_tokenizer
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import cast_parameters, on_meta_device
from flamingo_lite.models.vision import (
    VisionConfig,
    VisionEncoder,
    VisionTower,
    load_vision,
    tower_to_dict,
    vision_tower,
)
from flamingo_lite.names import check_choice
from flamingo_lite.processing import ImageTransform, VisionLanguageProcessor
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import MOST_ADDED, add_tokens

Config = TypeVar("Config")


@dataclass
class ModelConfig:
    """One system: a choice for each part. `policy` entries come after the default policy's."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    policy: dict[str, Any] = field(default_factory=dict)


def build(model_config: ModelConfig | Mapping[str, Any] | DictConfig | None = None) -> VisionLanguageModel:
    """The model with its parts' weights, the join drawn at random (torch's generator).

    On the meta device (`with torch.device("meta")`) it has shapes alone: no weights are read, nothing is downloaded.
    Raises FlamingoError in one line for an unknown field or name, or a part that cannot be loaded.
    """
    config = model_config_from(model_config)
    if on_meta_device():
        config = replace(
            config,
            vision=replace(config.vision, pretrained=False),
            language=replace(config.language, pretrained=False),
        )
    tower, vision = load_vision(config.vision)
    language = load_language(config.language)
    first, tokens, image_token_id = _new_tokens(config.language, language)
    outer = VisionLanguageConfig(
        text_config=language.config,
        vision_tower=tower_to_dict(tower),
        connector=config.connector.complete(),
        fusion=config.fusion.complete(),
        policy=dict(config.policy),
        sources=asdict(config),
        image_token_id=image_token_id,
        first_new_token=first,
        new_tokens=tokens,
        dtype=language.dtype,
    )
    model = VisionLanguageModel(outer, vision=vision, language=language)
    cast_parameters(model, language.dtype)
    return model


def build_processor(
    model_config: ModelConfig | Mapping[str, Any] | DictConfig | None = None,
) -> VisionLanguageProcessor:
    """The processor that belongs to `build(model_config)`: the language model's tokenizer, the encoder's
    transform, and as many `<image>` ids per image as the fusion replaces.
    """
    config = model_config_from(model_config)
    tower = vision_tower(config.vision)
    return VisionLanguageProcessor(
        load_tokenizer(config.language),
        image_transform=ImageTransform.from_open_clip(tower.preprocess),
        template=Template(image_tokens=media_tokens(config, tower) if config.fusion.replaces_marks else 1),
    )


def media_tokens(config: ModelConfig, tower: VisionTower) -> int:
    """How many media tokens the connector makes of an image, without weights: on the meta device."""
    with torch.device("meta"):
        encoder = VisionEncoder(tower)
        # The width of the tokens changes nothing about their number.
        return build_connector(encoder.width, encoder.patches, encoder.width, config.connector).tokens


def _new_tokens(config: LanguageConfig, language: PreTrainedModel) -> tuple[int, int, int]:
    if config.config and not config.pretrained and on_meta_device():
        # An architecture that is written out has no tokenizer beside it: as many rows as may ever be needed.
        first = language.config.get_text_config().vocab_size
        return first, MOST_ADDED, first
    return new_tokens(load_tokenizer(config))


def new_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Adds the special tokens; returns the first new id, how many are new, and the id of `<image>`."""
    first = len(tokenizer)
    add_tokens(tokenizer)
    image_token_id = cast(int, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))  # one token, one id
    return first, len(tokenizer) - first, image_token_id


def model_config_from(value: ModelConfig | Mapping[str, Any] | DictConfig | None) -> ModelConfig:
    """Plain data (a dict, hydra's DictConfig) to the typed config; unknown fields are FlamingoErrors."""
    if isinstance(value, ModelConfig):
        return value
    plain = OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig) else value
    return _typed(ModelConfig, plain or {}, "model")


def _typed(kind: type[Config], value: Any, where: str) -> Config:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise FlamingoError(f"{where} is {value!r}; expected a mapping with {', '.join(_field_types(kind))}")
    types = _field_types(kind)
    for name in value:
        check_choice(f"field of {where}", str(name), types)
    return kind(
        **{
            name: _typed(types[name], item, f"{where}.{name}") if is_dataclass(types[name]) else item
            for name, item in value.items()
        }
    )


def _field_types(kind: type[Any]) -> dict[str, Any]:
    parts = {
        "vision": VisionConfig,
        "language": LanguageConfig,
        "connector": ConnectorConfig,
        "fusion": FusionConfig,
    }
    return {f.name: parts.get(f.name) if kind is ModelConfig else None for f in fields(kind)}
