"""Where the parts of a model come from: the packaged tiny pair, a directory, or a name to look up
elsewhere.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, GenerationMixin, PretrainedConfig, PreTrainedModel

from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.names import check_choice

BACKBONES = Path(__file__).parent.parent / "backbones"

INITIALISED = "_is_hf_initialized"
"""transformers' own mark on a module whose weights it must not draw."""

CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
"""transformers' name for the keys and values of earlier tokens, another from 5.24 on.

Models are handed it under exactly one name: of the two, the old one would be ignored, and every token decoded as if
it were the first. Their outputs have it under that name too.
"""


def backbone_directory(name: str, kind: Literal["clip", "language"]) -> Path | None:
    """The directory that `name` means ("tiny" is the packaged backbone), or None if it is a name to look up.

    Raises FlamingoError for what looks like a path but is no directory.
    """
    directory = BACKBONES / kind if name == "tiny" else Path(name).expanduser()
    if directory.is_dir():
        return directory
    if name == "tiny" or name.startswith((".", "/", "~")):
        raise FlamingoError(
            f"no directory {directory} for the {kind} backbone {name!r}; check the path or reinstall"
        )
    return None


def on_meta_device() -> bool:
    """Is everything made on the meta device now (`with torch.device("meta")`), where nothing has a value?"""
    return torch.get_default_device().type == "meta"


def written_config(fields: Mapping[str, Any], where: str) -> PretrainedConfig:
    """The config of a transformers model from its fields, `model_type` among them, as a preset writes them out.

    Raises FlamingoError naming `where` for a model type or a field that transformers does not know: its configs
    would keep a misspelt field without a word.
    """
    values = dict(fields)
    kind = values.pop("model_type", None)
    if kind is None:
        raise FlamingoError(
            f"{where} has no model_type; expected the fields of a transformers config with it"
        )
    check_choice(f"model_type in {where}", str(kind), CONFIG_MAPPING)
    known = CONFIG_MAPPING[kind]
    names = {*inspect.signature(known).parameters, *known.attribute_map} - {"kwargs"}
    for name in values:
        check_choice(f"field of {where}", str(name), names)
    try:
        return AutoConfig.for_model(kind, **values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FlamingoError(
            f"{where} cannot be read: {first_line(error)}; expected the fields of {known.__name__}"
        ) from error


def keep_weights(module: nn.Module) -> None:
    """Mark `module` and all in it, so that transformers' `post_init` does not draw their weights anew."""
    for part in module.modules():
        setattr(part, INITIALISED, True)


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """To one type, and with the parameters the buffers that are saved.

    Others stay: rotary tables, rounded, would turn distant positions by other angles.
    """
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if (
                buffer is not None
                and buffer.is_floating_point()
                and name not in part._non_persistent_buffers_set
            ):
                part._buffers[name] = buffer.to(dtype)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def restore_buffers(module: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Give `module` the buffers that no file holds (rotary tables, say), from one that `build` makes anew.

    transformers loads by way of the meta device, on which nothing is computed, and afterwards computes the buffers
    of its own models alone: those of others hold whatever was in memory.
    """
    names = list(_unsaved_buffers(module))
    if names:
        with torch.device("cpu"), torch.no_grad():
            made = dict(build().named_buffers())
            for name in names:
                module.get_buffer(name).copy_(made[name])


def _unsaved_buffers(module: nn.Module, prefix: str = "") -> Iterator[str]:
    if isinstance(module, PreTrainedModel):
        return
    for name in module._non_persistent_buffers_set:
        if module._buffers[name] is not None:
            yield prefix + name
    for name, child in module.named_children():
        yield from _unsaved_buffers(child, f"{prefix}{name}.")


NOT_QUANTIZED = ["vision", "connector", r".*\.cross_attention", "lm_head", "embed_out"]
"""Patterns of module names; the head computes the columns of new tokens itself."""


def without_the_join(config: Any) -> Any:
    """A copy of transformers' quantization config that leaves out what trains, the vision encoder (open_clip's
    attention reads weights without calling their layers) and the head; one that says what to leave out stays.
    """
    if getattr(config, "llm_int8_skip_modules", ()) is not None:
        return config
    config = copy.deepcopy(config)
    config.llm_int8_skip_modules = list(NOT_QUANTIZED)
    return config


def check_loading_info(info: dict[str, Any], what: str) -> None:
    """Raise FlamingoError beginning with `what` unless every weight was there, of its shape, and none too many."""
    misshapen = [
        f"{key} {tuple(found)} where {tuple(wanted)} is expected"
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    groups = {
        "missing": sorted(info["missing_keys"]),
        "superfluous": sorted(info["unexpected_keys"]),
        "misshapen": misshapen,
    }
    found = [f"{len(keys)} {group} ({', '.join(keys[:3])})" for group, keys in groups.items() if keys]
    if found:
        raise FlamingoError(f"{what}: {'; '.join(found)}")
