"""open_clip's image towers: its own ViT, its ResNet, and timm trunks, read through `forward_intermediates`.

Shape letters: m images, c channels, h height, w width, p patches, d width.
"""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.models.tower import (
    Reading,
    VisionConfig,
    VisionTower,
    feature_shape,
    pair,
    refuse_class_token,
    refuse_final_norm,
)
from flamingo_lite.models.weights import read_file
from flamingo_lite.names import check_choice

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The names that open_clip gives its weight files, the first one found is read."""


@dataclass(frozen=True)
class State:
    """The tensors of an image tower, by its own keys, and where they come from."""

    tensors: Mapping[str, Tensor]
    source: str

    def load_into(self, module: nn.Module, tower: VisionTower) -> None:
        """Raises FlamingoError for tensors that are missing, misshapen, or that the whole `tower` has no place for;
        those of layers that were cut away are left.
        """
        wanted = module.state_dict()
        with torch.device("meta"):
            whole = _build(tower).state_dict().keys()
        superfluous = sorted(self.tensors.keys() - whole)
        missing = [key for key in wanted if key not in self.tensors]
        misshapen = [
            f"{key} ({tuple(self.tensors[key].shape)}, expected {tuple(wanted[key].shape)})"
            for key in wanted
            if key in self.tensors and self.tensors[key].shape != wanted[key].shape
        ]
        if missing or misshapen or superfluous:
            raise FlamingoError(
                f"{self.source} does not fit its config: {len(missing)} tensors missing, {len(misshapen)} of another "
                f"shape, {len(superfluous)} too many, first {(missing + misshapen + superfluous)[0]}; expected the weights "
                f"that belong to {CONFIG}"
            )
        module.load_state_dict({key: self.tensors[key] for key in wanted})


def read_tower(tower: VisionTower, module: nn.Module | None = None) -> Reading:
    """The tower, cut behind the block that is read, and how to read it.

    The published OpenFlamingo checkpoints expect the tokens before `ln_post`; open_clip >= 2.23 applies it to the
    tokens that its forward returns, <= 2.20 did not. `forward_intermediates` gives them as asked in all releases.
    Raises FlamingoError for towers without intermediate features, class token or last norm where those are asked for.
    """
    name = tower.vision_cfg.get("timm_model_name") or "this open_clip tower"
    built: Any = module if module is not None else _build(tower)
    trunk = getattr(built, "trunk", built)
    if tower.class_token and all(
        getattr(trunk, key, None) is None for key in ("class_embedding", "cls_token")
    ):
        raise refuse_class_token(name)
    _cut(built, trunk, tower)
    indices = 1 if hasattr(trunk, "prune_intermediate_layers") else [tower.layer]
    read = functools.partial(read_features, indices=indices, norm=False, class_token=tower.class_token)
    size = pair(built.image_size)
    try:
        patches, width = feature_shape(built, read, size)
    except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise FlamingoError(
            f"{name} gives no intermediate features for images of {size} pixels: {first_line(error)}; expected a tower "
            "with forward_intermediates and an image_size that fits it"
        ) from error
    norm = getattr(trunk, "ln_post", getattr(trunk, "norm", None))
    if tower.final_norm and getattr(norm, "weight", torch.empty(0)).shape != (width,):
        raise refuse_final_norm(name, tower.layer)
    return Reading(built, functools.partial(read, norm=tower.final_norm), size, patches, width)


def read_features(
    module: Any, pixel_values: Tensor, indices: int | list[int], norm: bool, class_token: bool
) -> Tensor:
    """(m c h w) -> (m p d)."""
    # Without prefix tokens asked for, trunks that have none need not know the argument.
    found = module.forward_intermediates(
        pixel_values,
        indices=indices,
        normalize_intermediates=norm,
        intermediates_only=True,
        output_fmt="NCHW",
        output_extra_tokens=class_token,
    )
    patches = rearrange(found["image_intermediates"][-1], "m d h w -> m (h w) d")
    # Register tokens follow the class token.
    return torch.cat((found["image_intermediates_prefix"][-1][:, :1], patches), 1) if class_token else patches


def describe_directory(directory: Path, config: VisionConfig) -> VisionTower:
    """The tower of a directory with open_clip_config.json."""
    path = directory / CONFIG
    if config.revision is not None:
        raise FlamingoError(
            f"vision.revision is {config.revision!r}, but {directory} is a directory; leave it out"
        )
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        model = known["model_cfg"]
        return _describe(model, model["vision_cfg"], known.get("preprocess_cfg", {}), config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlamingoError(
            f"cannot read {path}: {type(error).__name__}: {error}; expected open_clip's model_cfg and preprocess_cfg"
        ) from error


def written_tower(config: VisionConfig) -> VisionTower:
    """The tower whose `embed_dim`, `vision_cfg` and `quick_gelu` are written out in `config.config`."""
    known = config.config
    for name in known:
        check_choice("field of model.vision.config", str(name), ("embed_dim", "vision_cfg", "quick_gelu"))
    if not isinstance(known.get("embed_dim"), int) or not isinstance(known.get("vision_cfg"), dict):
        raise FlamingoError(
            f"model.vision.config has {', '.join(known)}; expected embed_dim and vision_cfg, as open_clip has them, or the "
            "fields of a transformers config with its model_type"
        )
    return _describe(known, known["vision_cfg"], {"size": known["vision_cfg"].get("image_size", 224)}, config)


def load_directory(directory: Path, config: VisionConfig) -> tuple[VisionTower, State | None]:
    """The tower of a directory, and its weights unless they are to be random."""
    tower = describe_directory(directory, config)
    if config.pretrained is False:
        return tower, None
    if isinstance(config.pretrained, str):
        weights = Path(config.pretrained)
    else:
        weights = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
        if weights is None:
            raise FlamingoError(
                f"{directory} holds no vision weights; expected {' or '.join(WEIGHTS)}, a file given as "
                "vision.pretrained, or vision.pretrained=false"
            )
    state = {
        key.removeprefix("module."): value for key, value in read_file(weights, "the vision weights").items()
    }
    prefix = "visual."
    return tower, State(
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)},
        str(weights),
    )


def load_name(config: VisionConfig) -> tuple[VisionTower, State | None]:
    """The tower of an open_clip model name, and its weights (a tag or a file) unless they are to be random."""
    import open_clip
    from open_clip.transformer import QuickGELU

    if config.pretrained is None or config.pretrained is True:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
        raise FlamingoError(
            f"vision.pretrained is not given for {config.name}; choose a tag ({tags}), a file, or false for random "
            "weights"
        )
    known: Any = open_clip.get_model_config(config.name)  # not None: the name was checked
    if config.pretrained is False:
        preprocess = {"size": known["vision_cfg"].get("image_size", 224)}
        return _describe(known, known["vision_cfg"], preprocess, config), None
    try:
        model = open_clip.create_model(config.name, pretrained=config.pretrained)
    except pickle.UnpicklingError as error:  # torch's own message advises to run it
        raise FlamingoError(
            f"the vision weights {config.pretrained} hold a pickle of more than tensors, which is never run; expected a "
            "safetensors file"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise FlamingoError(
            f"cannot load vision encoder {config.name} ({config.pretrained}): {error}"
        ) from error
    visual = cast(nn.Module, model.visual)
    has_quick_gelu = any(isinstance(part, QuickGELU) for part in visual.modules())
    preprocess = dict(open_clip.get_model_preprocess_cfg(model))
    tower = _describe({**known, "quick_gelu": has_quick_gelu}, known["vision_cfg"], preprocess, config)
    return tower, State(visual.state_dict(), f"{config.name} ({config.pretrained})")


def _describe(
    model: Mapping[str, Any], vision: dict[str, Any], preprocess: dict[str, Any], config: VisionConfig
) -> VisionTower:
    return VisionTower(
        embed_dim=model["embed_dim"],
        vision_cfg=vision,
        quick_gelu=bool(model.get("quick_gelu", False)),
        preprocess=preprocess,
        layer=config.layer,
        class_token=config.class_token,
        final_norm=config.final_norm,
    )


def _build(tower: VisionTower) -> nn.Module:
    # The one place where open_clip builds a tower without its text half; the public classes build both.
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    options: dict[str, Any] = {**tower.vision_cfg, "timm_model_pretrained": False}
    try:
        return _build_vision_tower(tower.embed_dim, CLIPVisionCfg(**options), tower.quick_gelu)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise FlamingoError(
            f"open_clip cannot build a tower from vision_cfg {tower.vision_cfg}: {first_line(error)}; expected the "
            "vision_cfg of an open_clip model"
        ) from error


def _cut(built: Any, trunk: Any, tower: VisionTower) -> None:
    """Nothing behind the block that is read: what has no effect must not wait for a gradient."""
    try:
        if hasattr(trunk, "prune_intermediate_layers"):
            trunk.prune_intermediate_layers([tower.layer], prune_norm=not tower.final_norm, prune_head=True)
        else:
            stages = ("stem", "layer1", "layer2", "layer3", "layer4")
            stages[tower.layer]  # pyrefly: ignore  # an index out of range is the check
            for name in stages[len(stages) + tower.layer + 1 :]:
                setattr(trunk, name, nn.Identity())
    except (AssertionError, IndexError) as error:
        raise FlamingoError(
            f"vision.layer is {tower.layer}, more than the blocks of the encoder ({first_line(error)}); expected -1 "
            "(the last) down to the first"
        ) from error
    # Poolers and projections, by the names that open_clip and timm give them.
    for module, name in ((built, "head"), (trunk, "attnpool"), (trunk, "attn_pool")):
        if isinstance(getattr(module, name, None), nn.Module):
            setattr(module, name, nn.Identity())
