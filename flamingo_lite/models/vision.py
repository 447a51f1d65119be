"""The vision encoder: open_clip's own image tower, of which only the patch tokens are read.

Shape letters: m images, c channels, h height, w width, p patches, d width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.parts import backbone_directory, keep_weights
from flamingo_lite.names import check_choice


@dataclass
class VisionConfig:
    """Which encoder. `name`: "tiny", a directory with open_clip_config.json, or an open_clip model name.

    `pretrained`: a tag or a weight file for an open_clip name; None takes the directory's own weights; False
    leaves them random. `layer`: the block whose output is read, from the end.
    """

    name: str = "tiny"
    pretrained: str | bool | None = None
    layer: int = -1


@dataclass
class VisionTower:
    """What is needed to build a tower again without its source: open_clip's `model_cfg`, less the text
    tower.
    """

    embed_dim: int
    vision_cfg: dict[str, Any]
    quick_gelu: bool
    preprocess: dict[str, Any]
    layer: int = -1


class VisionEncoder(nn.Module):
    """Pixels (m c h w) -> patch features (m p d): no class token, and before `ln_post`.

    open_clip >= 2.23 applies `ln_post` to the tokens that it returns, <= 2.20 did not, and the published
    OpenFlamingo checkpoints expect them without; `forward_intermediates` is the one call that gives them so
    in all later releases.
    """

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        # The one place where open_clip builds a tower without its text half; the public classes build both.
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        options: dict[str, Any] = {**tower.vision_cfg, "timm_model_pretrained": False}
        config = CLIPVisionCfg(**options)
        # Any: open_clip's towers share these methods, but no base class that declares them.
        self.tower = cast(Any, _build_vision_tower(tower.embed_dim, config, tower.quick_gelu))
        # Nothing after the block that is read: what has no effect must not wait for a gradient.
        self.tower.prune_intermediate_layers([tower.layer], prune_norm=True, prune_head=True)
        size = self.tower.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.patches, self.width = self._measure()
        # transformers' post_init would draw these weights anew: they are open_clip's to initialise.
        keep_weights(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(m c h w) -> (m p d). Raises FlamingoError when the images have another size than the encoder
        takes.
        """
        if tuple(pixel_values.shape[-2:]) != self.image_size:
            raise FlamingoError(
                f"images are {tuple(pixel_values.shape[-2:])}, the vision encoder takes {self.image_size}; "
                "use the processor that belongs to the model"
            )
        # Earlier blocks were pruned away, so that the last one left is the one to read.
        found = self.tower.forward_intermediates(
            pixel_values, indices=1, normalize_intermediates=False, intermediates_only=True, output_fmt="NLC"
        )
        return found["image_intermediates"][-1]

    @torch.no_grad()
    def _measure(self) -> tuple[int, int]:
        weight = next(self.tower.parameters())
        was_training = self.training
        self.eval()
        patches = self(torch.zeros(1, 3, *self.image_size, device=weight.device, dtype=weight.dtype))
        self.train(was_training)
        return patches.shape[1], patches.shape[2]


def vision_tower(config: VisionConfig) -> VisionTower:
    """How the encoder is built and its images prepared, without loading its weights where that can be
    avoided.
    """
    directory = backbone_directory(config.name, "clip")
    return load_vision(config)[0] if directory is None else _read_directory(directory, config.layer)


def load_vision(config: VisionConfig) -> tuple[VisionTower, VisionEncoder]:
    """The encoder with its weights, and how to build it again. Raises FlamingoError in one line when it
    cannot.
    """
    directory = backbone_directory(config.name, "clip")
    if directory is None:
        return _from_open_clip(config)
    tower = _read_directory(directory, config.layer)
    encoder = VisionEncoder(tower)
    if config.pretrained is False:
        return tower, encoder
    weights = (
        Path(config.pretrained)
        if isinstance(config.pretrained, str)
        else directory / "open_clip_model.safetensors"
    )
    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise FlamingoError(
            f"cannot read the vision weights {weights}: {error}; expected a safetensors file"
        ) from error
    _load(
        encoder,
        {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")},
        str(weights),
    )
    return tower, encoder


def _read_directory(directory: Path, layer: int) -> VisionTower:
    path = directory / "open_clip_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model = config["model_cfg"]
        vision = model["vision_cfg"]
        preprocess = config.get("preprocess_cfg", {})
        return VisionTower(
            model["embed_dim"], vision, bool(model.get("quick_gelu", False)), preprocess, layer
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlamingoError(
            f"cannot read {path}: {type(error).__name__}: {error}; expected open_clip's model_cfg and "
            "preprocess_cfg"
        ) from error


def _from_open_clip(config: VisionConfig) -> tuple[VisionTower, VisionEncoder]:
    import open_clip
    from open_clip.transformer import QuickGELU

    check_choice("vision encoder", config.name, ["tiny", *open_clip.list_models()])
    if config.pretrained is None or config.pretrained is True:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
        raise FlamingoError(
            f"vision.pretrained is not given for {config.name}; choose a tag ({tags}), a file, or false for "
            "random weights"
        )
    known: Any = open_clip.get_model_config(config.name)  # not None: the name was checked
    if config.pretrained is False:
        preprocess = {"size": known["vision_cfg"].get("image_size", 224)}
        quick_gelu = bool(known.get("quick_gelu", False))
        tower = VisionTower(known["embed_dim"], known["vision_cfg"], quick_gelu, preprocess, config.layer)
        return tower, VisionEncoder(tower)
    try:
        model = open_clip.create_model(config.name, pretrained=config.pretrained)
    except (OSError, RuntimeError, ValueError) as error:
        raise FlamingoError(
            f"cannot load vision encoder {config.name} ({config.pretrained}): {error}"
        ) from error
    visual = cast(nn.Module, model.visual)
    has_quick_gelu = any(isinstance(module, QuickGELU) for module in visual.modules())
    preprocess = dict(open_clip.get_model_preprocess_cfg(model))
    tower = VisionTower(known["embed_dim"], known["vision_cfg"], has_quick_gelu, preprocess, config.layer)
    encoder = VisionEncoder(tower)
    _load(encoder, visual.state_dict(), f"{config.name} ({config.pretrained})")
    return tower, encoder


def _load(encoder: VisionEncoder, state: Mapping[str, Tensor], source: str) -> None:
    wanted = encoder.tower.state_dict()
    missing = [key for key in wanted if key not in state]
    misshapen = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or misshapen:
        raise FlamingoError(
            f"{source} does not fit its config: {len(missing)} tensors missing, {len(misshapen)} of another "
            "shape, "
            f"first {(missing + misshapen)[0]!r}"
        )
    encoder.tower.load_state_dict({key: state[key] for key in wanted})


def tower_to_dict(tower: VisionTower) -> dict[str, Any]:
    """Plain data for the model's config.json."""
    return json.loads(json.dumps(asdict(tower)))
