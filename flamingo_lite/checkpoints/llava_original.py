"""LLaVA as its own repository keeps it, in: a language model whose config.json names a vision tower, with the
projector among its weights or beside them in mm_projector.bin.

Images are prepared as for the vision tower, padded to squares before that where its config.json says so
(image_aspect_ratio=pad). The releases converted for transformers crop them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from flamingo_lite.checkpoints import parts
from flamingo_lite.checkpoints.foreign import Format, came_from, read_json
from flamingo_lite.checkpoints.keys import Rename, Rule, put_weights
from flamingo_lite.checkpoints.llava import respelled
from flamingo_lite.checkpoints.tensors import read_directory
from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.connector import ConnectorConfig
from flamingo_lite.models.fusion import FusionConfig
from flamingo_lite.models.language import LOADING_ERRORS
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.vision import VisionConfig, VisionTower, load_vision, tower_to_dict, vision_tower
from flamingo_lite.models.weights import read_file
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template

NAME = "llava_original"
PROJECTOR = "mm_projector.bin"
VISION_TOWER = "mm_vision_tower"
PREPARED = "image_aspect_ratio"

LANGUAGES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
}
"""The type of the language model, by the model_type of config.json."""

FEATURES = {"patch": False, "cls_patch": True}
"""mm_vision_select_feature: is the class token kept?"""

UNREAD = ("*.rotary_emb.inv_freq",)
"""Keys of old files that hold what the code computes."""


def load_model(directory: Path) -> VisionLanguageModel:
    theirs = _read_config(directory)
    config = configuration(theirs, directory)
    _, encoder = load_vision(_vision_config(theirs, directory))
    model = parts.empty_model(config, config.text_config.dtype, directory, vision=encoder)
    state = read_directory(directory)
    if not any(key.startswith("model.mm_projector.") for key in state):
        state |= _read_projector(directory)
    projector = _taken(state, "model.mm_projector.")
    put_weights(model.connector, projector, projector_rules(theirs), str(directory))
    tuned = _taken(state, "model.vision_tower.vision_tower.", "vision_tower.")
    if tuned:
        unread = [f"vision_tower.{key}" for key in parts.unread_weights(VisionTower(**config.vision_tower))]
        rules = [Rename("vision_tower.*", f"{parts.vision_prefix(model).removeprefix('vision.')}*")]
        put_weights(
            model.vision,
            respelled(tuned),
            rules,
            str(directory),
            unread=(*unread, "*.embeddings.position_ids"),
        )
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    put_weights(
        model.language,
        state,
        [Rename("*", "*")],
        str(directory),
        unread=(*UNREAD, *tied),
        optional=("*.new_rows",),
    )
    parts.quiet_new_rows(model)
    return model


def load_processor(directory: Path) -> VisionLanguageProcessor:
    theirs = _read_config(directory)
    config = configuration(theirs, directory)
    tokenizer = parts.read_tokenizer(directory)
    tower = VisionTower(**config.vision_tower)
    template = Template(
        begin=parts.writes_begin(tokenizer),
        image_tokens=parts.patches(tower),
        end_of_chunk=cast(str | None, tokenizer.eos_token),
    )
    transform = ImageTransform(**tower.preprocess)
    if theirs.get(PREPARED) == "pad":
        transform = replace(transform, resize_mode="pad", shortest_edge=None)
    return VisionLanguageProcessor(tokenizer, transform, template)


def configuration(theirs: Mapping[str, Any], directory: Path) -> VisionLanguageConfig:
    """Our config of theirs. Raises FlamingoError, by field, for what is not LLaVA-1.5 or older."""
    if theirs.get("mm_use_im_start_end"):
        raise FlamingoError(
            f"mm_use_im_start_end in {directory / 'config.json'} is true; expected a checkpoint without tokens around "
            "its images"
        )
    text = _language_config(theirs, directory)
    tokenizer = parts.read_tokenizer(directory)
    image_token_id = tokenizer.get_vocab().get(IMAGE_TOKEN, len(tokenizer))
    if image_token_id > text.vocab_size:
        raise FlamingoError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens, but vocab_size in config.json is "
            f"{text.vocab_size}; expected the tokenizer of this model"
        )
    return VisionLanguageConfig(
        text_config=text,
        vision_tower=tower_to_dict(vision_tower(_vision_config(theirs, directory))),
        connector=ConnectorConfig(**_connector(theirs, directory)).complete(),
        fusion=FusionConfig(name="prefix").complete(),
        sources=came_from(directory, NAME),
        image_token_id=image_token_id,
        first_new_token=text.vocab_size,
        # A token behind the matrix is a row of its own, which is never read: patches take its place.
        new_tokens=int(image_token_id == text.vocab_size),
    )


def projector_rules(theirs: Mapping[str, Any]) -> list[Rule]:
    """Their projector is a bare linear layer, or a sequence in which every other module is one."""
    if _projector_type(theirs) == "linear":
        return [Rename("model.mm_projector.*", "projection.*")]
    depth = _depth(_projector_type(theirs))
    return [Rename(f"model.mm_projector.{2 * i}.*", f"layers.{i}.*") for i in range(depth)]


def _read_config(directory: Path) -> dict[str, Any]:
    return read_json(directory / "config.json", "the config of a LLaVA checkpoint")


def _language_config(theirs: Mapping[str, Any], directory: Path) -> PretrainedConfig:
    kind = theirs.get("model_type")
    if kind not in LANGUAGES:
        raise FlamingoError(
            f"model_type in {directory / 'config.json'} is {kind!r}; expected one of {', '.join(LANGUAGES)}"
        )
    values = {
        name: value
        for name, value in theirs.items()
        if name not in ("model_type", "architectures", "transformers_version")
        and not name.startswith(("mm_", "_"))
    }
    try:
        return AutoConfig.for_model(LANGUAGES[kind], **values)
    except LOADING_ERRORS as error:
        raise FlamingoError(
            f"cannot read {directory / 'config.json'}: {first_line(error)}; expected the fields of a {LANGUAGES[kind]}"
        ) from error


def _vision_config(theirs: Mapping[str, Any], directory: Path) -> VisionConfig:
    feature = theirs.get("mm_vision_select_feature", "patch")
    if feature not in FEATURES:
        raise FlamingoError(
            f"mm_vision_select_feature in {directory / 'config.json'} is {feature!r}; expected "
            f"{' or '.join(FEATURES)}"
        )
    prepared = theirs.get(PREPARED)
    if prepared not in (None, "square", "pad"):
        raise FlamingoError(
            f"{PREPARED} in {directory / 'config.json'} is {prepared!r}; images cut into tiles (LLaVA-1.6) cannot "
            "be read here, only square and pad"
        )
    layer = theirs.get("mm_vision_select_layer", -2)
    return VisionConfig(name=theirs[VISION_TOWER], layer=layer, class_token=FEATURES[feature])


def _connector(theirs: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    kind = _projector_type(theirs)
    if kind == "linear":
        return {"name": "linear"}
    if _depth(kind) < 1:
        raise FlamingoError(
            f"mm_projector_type in {directory / 'config.json'} is {kind!r}; expected linear, or mlp2x_gelu with any "
            "number of layers"
        )
    return {"name": "mlp", "depth": _depth(kind)}


def _projector_type(theirs: Mapping[str, Any]) -> str:
    return str(theirs.get("mm_projector_type", "linear"))


def _depth(kind: str) -> int:
    """How many linear layers an mlp has, 0 where it is none."""
    found = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    return int(found[1]) if found else 0


def _read_projector(directory: Path) -> dict[str, Tensor]:
    path = directory / PROJECTOR
    if not path.is_file():
        raise FlamingoError(
            f"{directory} holds no {PROJECTOR}, and its weights no model.mm_projector; expected either of them"
        )
    return read_file(path)


def _taken(state: dict[str, Tensor], prefix: str, instead: str | None = None) -> dict[str, Tensor]:
    """Moves the tensors under a prefix out of the state; `instead` replaces the prefix."""
    keys = [key for key in state if key.startswith(prefix)]
    return {
        (prefix if instead is None else instead) + key.removeprefix(prefix): state.pop(key) for key in keys
    }


LLAVA_ORIGINAL = Format(load_model, load_processor, field=VISION_TOWER)
