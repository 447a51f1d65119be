"""transformers' vision encoders, read by structure: whatever stands behind the block that is read is taken out,
so that the class's own forward returns what that block gives.

Shape letters: m images, c channels, h height, w width, p patches, s tokens, d width.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.models.language import LOADING_ERRORS
from flamingo_lite.models.parts import on_meta_device, written_config
from flamingo_lite.models.structure import cut, grid_of, idle_parameters, structure_of, tokens_of
from flamingo_lite.models.tower import (
    Reading,
    VisionConfig,
    VisionTower,
    pair,
    refuse_class_token,
    refuse_final_norm,
)

CONFIG = "config.json"

TOWERS = {
    "blip_2_vision_model": ("transformers.models.blip_2.modeling_blip_2", "Blip2VisionModel"),
    "blip_vision_model": ("transformers.models.blip.modeling_blip", "BlipVisionModel"),
    "instructblip_vision_model": (
        "transformers.models.instructblip.modeling_instructblip",
        "InstructBlipVisionModel",
    ),
    "idefics_vision": ("flamingo_lite.models.vision_idefics", "IdeficsVisionModel"),
}
"""Encoders that AutoModel does not know, by model type: the vision halves of BLIP, BLIP-2, InstructBLIP and IDEFICS."""


HALF = re.compile(r"^(model\.)?(vision_tower\.|vision_model\.)+")
"""Where the keys of a whole vision-language checkpoint have its vision encoder."""


def read_tower(tower: VisionTower, module: nn.Module | None = None) -> Reading:
    """The encoder without the blocks, norms and heads behind the block that is read, and how to read it.

    Raises FlamingoError for encoders that are not one stack of blocks over one token per patch, for a layer that is
    not there, and for a class token or last norm that the encoder lacks.
    """
    config = _config_of(tower)
    name = type_of(config).__name__
    size = pair(tower.preprocess.get("size") or config.image_size)
    # Classes that resize their position embeddings only when told to would read the wrong ones, or fail late.
    if size != pair(config.image_size) and "interpolate_pos_encoding" in _parameters(type_of(config)):
        raise FlamingoError(
            f"images are prepared at {size}, but {name} takes image_size {config.image_size}; make "
            "preprocessor_config.json and config.json agree"
        )
    with torch.device("meta"):
        shell = type_of(config)(config).eval()
    structure = structure_of(shell, config, size)
    if tower.final_norm and structure.norm is None:
        raise refuse_final_norm(name, tower.layer)
    cut(shell, structure, tower)
    tokens, width = tokens_of(shell, size, name)
    grid, registers = grid_of(config, size), getattr(config, "num_register_tokens", 0)
    special = tokens - grid
    if special < registers:
        raise FlamingoError(
            f"{name} gives {tokens} tokens for {grid} patches of images of {size}; only encoders with one token per "
            "patch are supported"
        )
    if tower.class_token and special == registers:
        raise refuse_class_token(name)
    idle = idle_parameters(shell, size, structure)
    built = module if module is not None else type_of(config)(config)
    cut(built, structure, tower)
    for parameter in idle:
        owner, _, last = parameter.rpartition(".")
        setattr(built.get_submodule(owner), last, None)
    read = functools.partial(
        read_features,
        special=special,
        class_token=tower.class_token,
        norm=structure.norm if tower.final_norm else None,
    )
    return Reading(built, read, size, grid + tower.class_token, width)


def read_features(
    module: Any, pixel_values: Tensor, special: int, class_token: bool, norm: str | None
) -> Tensor:
    """(m c h w) -> (m p d). The class token is the first of the special ones; registers follow it."""
    tokens = module(pixel_values=pixel_values).last_hidden_state
    if norm is not None:
        last = module.get_submodule(norm)
        # Its place in the encoder passes everything through: some classes norm only the pooled token there.
        tokens = type(last).forward(last, tokens)
    patches = tokens[:, special:]
    return torch.cat((tokens[:, :1], patches), 1) if class_token else patches


def describe(config: VisionConfig, source: str) -> VisionTower:
    """The tower of a checkpoint: its vision half's config, and how its images are prepared."""
    if isinstance(config.pretrained, str):
        raise FlamingoError(
            f"vision.pretrained is {config.pretrained!r}, but {source} is a transformers checkpoint; leave it out for "
            "its own weights, or set it to false for random ones"
        )
    known = _vision_config(config, source)
    return VisionTower(
        preprocess=_preprocess(config, source, known),
        layer=config.layer,
        class_token=config.class_token,
        final_norm=config.final_norm,
        transformers=plain_config(known),
    )


def written_tower(config: VisionConfig) -> VisionTower:
    """The tower whose transformers config is written out in `config.config`."""
    known: Any = written_config(config.config, "model.vision.config")
    type_of(known)
    return VisionTower(
        preprocess={"size": list(pair(known.image_size))},
        layer=config.layer,
        class_token=config.class_token,
        final_norm=config.final_norm,
        transformers=plain_config(known),
    )


def plain_config(config: PretrainedConfig) -> dict[str, Any]:
    """What of an encoder's config rebuilds it: no type of its weights, no version, no path."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if not key.startswith("_")
        and key not in ("dtype", "torch_dtype", "transformers_version", "architectures")
    }


def load(config: VisionConfig, source: str, tower: VisionTower) -> tuple[PreTrainedModel, list[str]]:
    """The whole encoder with its weights in float32, and the names of the weights that were not there."""
    known = _config_of(tower)
    kind = type_of(known)
    verbosity = logging.get_verbosity()
    # Its report of many lines says less than the errors below.
    logging.set_verbosity(logging.CRITICAL)
    try:
        # A pair only with output_loading_info.
        model, info = cast(
            Any,
            kind.from_pretrained(
                source,
                config=known,
                revision=config.revision or "main",
                trust_remote_code=False,
                dtype=torch.float32,
                key_mapping={HALF.pattern: _prefix(kind, known)},
                output_loading_info=True,
                # Reported and refused below, by key and shape.
                ignore_mismatched_sizes=True,
            ),
        )
    except pickle.UnpicklingError as error:
        raise FlamingoError(
            f"the weights of the vision encoder {config.name!r} are a pickle of more than tensors, which is never "
            "run; expected model.safetensors"
        ) from error
    except LOADING_ERRORS as error:
        raise FlamingoError(_cannot_load(config, error)) from error
    finally:
        logging.set_verbosity(verbosity)
    _refuse_other_weights(info, model, config)
    return model, sorted(info["missing_keys"])


def _prefix(kind: type[PreTrainedModel], config: PretrainedConfig) -> str:
    # Some releases keep the encoder one level down in its own class.
    with torch.device("meta"):
        names = [name for name, _ in kind(config).named_children()]
    return "vision_model." if names == ["vision_model"] else ""


def _refuse_other_weights(info: Mapping[str, Any], model: nn.Module, config: VisionConfig) -> None:
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, found, expected = mismatched[0]
        raise FlamingoError(
            f"the vision encoder {config.name!r} does not fit its config.json: {len(mismatched)} weights of another "
            f"shape, first {key} {tuple(found)}, expected {tuple(expected)}"
        )
    # A text half or a classifier may stand beside the encoder; what would be a part of it may not.
    parts = {name for name, _ in model.named_children()}
    left = sorted(k for k in info["unexpected_keys"] if HALF.sub("", k).split(".")[0] in parts)
    if left:
        raise FlamingoError(
            f"the vision encoder {config.name!r} does not fit its config.json: {len(left)} weights too many, {left[0]} "
            f"first; expected those of {type(model).__name__} with {cast(Any, model).config.num_hidden_layers} blocks"
        )


def refuse_missing(missing: Iterable[str], module: nn.Module, config: VisionConfig) -> None:
    """Raises FlamingoError for weights that the checkpoint lacks and that have an effect."""
    lacking = [key for key in missing if key in module.state_dict()]
    if lacking:
        raise FlamingoError(
            f"the vision encoder {config.name!r} lacks {len(lacking)} weights of its {type(module).__name__}, "
            f"{lacking[0]} first; expected a checkpoint of that class, or one with a vision half"
        )


def type_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of an encoder. Raises FlamingoError for a model that does not read images, or not images alone."""
    kind = config.model_type
    if kind in TOWERS:
        module, name = TOWERS[kind]
        return getattr(importlib.import_module(module), name)
    found = MODEL_MAPPING.get(type(config), None)
    found = found[0] if isinstance(found, list | tuple) else found
    if found is None or found.main_input_name != "pixel_values":
        raise FlamingoError(
            f"a model of type {kind!r} is no vision encoder; expected one that reads pixel_values, or a checkpoint "
            "with a vision_config"
        )
    others = [
        name
        for name, p in _parameters(found).items()
        if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD and name not in ("self", "pixel_values")
    ]
    if others:
        raise FlamingoError(
            f"{found.__name__} needs {', '.join(others)} beside pixel_values (images of any resolution); choose a "
            "checkpoint of fixed resolution"
        )
    return found


def _parameters(kind: type[PreTrainedModel]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.forward).parameters


def _config_of(tower: VisionTower) -> Any:
    values = dict(tower.transformers or {})
    kind = values.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **values)
    except LOADING_ERRORS as error:
        raise FlamingoError(
            f"vision_tower.transformers cannot be read: {first_line(error)}; expected the config of a transformers "
            "vision encoder with its model_type"
        ) from error


def _vision_config(config: VisionConfig, source: str) -> PretrainedConfig:
    try:
        known = AutoConfig.from_pretrained(
            source, revision=config.revision, trust_remote_code=False, local_files_only=on_meta_device()
        )
    except LOADING_ERRORS as error:
        raise FlamingoError(_cannot_load(config, error)) from error
    half = getattr(known, "vision_config", None)
    vision = half if isinstance(half, PretrainedConfig) else known
    try:
        type_of(vision)
    except FlamingoError as error:
        raise FlamingoError(f"{config.name}: {error}") from error
    return vision


def _preprocess(config: VisionConfig, source: str, known: PretrainedConfig) -> dict[str, Any]:
    if config.pretrained is False and not _has_preprocessor(source):
        return {"size": list(pair(cast(Any, known).image_size))}
    try:
        processor = AutoImageProcessor.from_pretrained(
            source, revision=config.revision, trust_remote_code=False
        )
    except LOADING_ERRORS as error:
        raise FlamingoError(
            f"cannot tell how images are prepared for the vision encoder {config.name!r}: {first_line(error)}; expected "
            "its preprocessor_config.json beside config.json"
        ) from error
    try:
        transform = ImageTransform.from_transformers(processor.to_dict())
    except FlamingoError as error:
        raise FlamingoError(f"preprocessor_config.json of {config.name}: {error}") from error
    return asdict(transform)


def _has_preprocessor(source: str) -> bool:
    names = ("preprocessor_config.json", "processor_config.json")
    return not Path(source).is_dir() or any((Path(source) / name).is_file() for name in names)


def _cannot_load(config: VisionConfig, error: Exception) -> str:
    revision = f" at revision {config.revision}" if config.revision else ""
    return (
        f"cannot load the vision encoder {config.name!r}{revision}: {first_line(error)}; expected 'tiny', an open_clip "
        "name, a directory, or a hub name that is in the local cache or can be downloaded"
    )
