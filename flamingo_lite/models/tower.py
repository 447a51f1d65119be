"""Which vision encoder, and what of it is read: the choice a user makes, and what rebuilds it without its source.

Shape letters: m images, c channels, h height, w width, p patches, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flamingo_lite.errors import FlamingoError


@dataclass
class VisionConfig:
    """Which encoder, and which of its features.

    `name`: "tiny"; a directory (with open_clip_config.json: open_clip; else with config.json: transformers); an
    open_clip model name; or a hub name of a transformers model, at `revision`. A checkpoint with a vision half
    (CLIPModel, SiglipModel) gives that half.
    `pretrained`: for an open_clip name a tag or a weight file, for an open_clip directory None or a weight file, for
    transformers None; False leaves the weights random.
    `layer`: the block whose output is read, counted from the end as in transformers' hidden_states, -1 for the last.
    `class_token`: the class token is kept, as first of the features. `final_norm`: the encoder's own last norm is
    applied to what is read, whatever the layer. The literature's choices: OpenFlamingo -1, False, False; IDEFICS -1,
    True, False; LLaVA -2, False, False; BLIP-2 -1, True, True.
    `config`: the architecture written out, so that random weights and plans need no file: the fields of transformers'
    config with its `model_type`, or open_clip's `embed_dim`, `vision_cfg` and `quick_gelu`.
    """

    name: str = "tiny"
    pretrained: str | bool | None = None
    revision: str | None = None
    layer: int = -1
    class_token: bool = False
    final_norm: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.layer, int) or self.layer >= 0:
            raise FlamingoError(
                f"vision.layer is {self.layer!r}; expected a number below 0, counted from the end: -1 for the "
                "last block"
            )


@dataclass
class VisionTower:
    """What is needed to build an encoder again without its source; plain data, kept in the model's config.json.

    `transformers` is the encoder's own config, model_type included; None means an open_clip tower, of
    `embed_dim`, `vision_cfg` and `quick_gelu`. `preprocess` holds fields of `ImageTransform`.
    """

    embed_dim: int = 0
    vision_cfg: dict[str, Any] = field(default_factory=dict)
    quick_gelu: bool = False
    preprocess: dict[str, Any] = field(default_factory=dict)
    layer: int = -1
    class_token: bool = False
    final_norm: bool = False
    transformers: dict[str, Any] | None = None


@dataclass(frozen=True)
class Reading:
    """A library's module, less all that has no effect on what is read, and how it is read.

    `read(module, pixels)` is (m c h w) -> (m p d), with the class token first where it is kept.
    """

    module: nn.Module
    read: Callable[[Any, Tensor], Tensor]
    image_size: tuple[int, int]
    patches: int
    width: int


def pair(size: Any) -> tuple[int, int]:
    """(height, width) from a number or from one or two of them."""
    if isinstance(size, int):
        return (size, size)
    height, width = (*size, *size)[:2]
    return (int(height), int(width))


def feature_shape(
    module: nn.Module, read: Callable[[Any, Tensor], Tensor], size: tuple[int, int]
) -> tuple[int, int]:
    """Patches and width of what `read` gives for one image, found without computing anything (on the meta device)."""
    was_training = module.training
    call = _Call(module.eval(), read)
    tensors = {**dict(call.named_parameters()), **dict(call.named_buffers())}
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    kind = next((t.dtype for t in meta.values() if t.is_floating_point()), torch.float32)
    with torch.no_grad():
        features = functional_call(call, meta, torch.empty(1, 3, *size, device="meta", dtype=kind))
    module.train(was_training)
    return features.shape[1], features.shape[2]


class _Call(nn.Module):
    def __init__(self, module: nn.Module, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.read = read

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.read(self.module, pixel_values)


def refuse_class_token(encoder: str) -> FlamingoError:
    return FlamingoError(f"vision.class_token is true, but {encoder} has no class token; set it to false")


def refuse_final_norm(encoder: str, layer: int) -> FlamingoError:
    return FlamingoError(
        f"vision.final_norm is true, but {encoder} has no last norm that fits layer {layer}; set it to false"
    )
