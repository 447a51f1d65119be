"""Linear and MLP connectors, and none at all: every patch becomes one media token, projected on its own or as it is.

Equal to LLaVA's `mm_projector_type` "linear" and "mlp2x_gelu" (`LlavaMultiModalProjector` in transformers); with
`input_norm`, to InternVL's (`InternVLMultiModalProjector`).
Shape letters: m images, p patches, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from flamingo_lite.nn.activations import ACTIVATIONS, check_activation
from flamingo_lite.nn.sizes import check_optional_sizes, check_sizes


@dataclass
class LinearConfig:
    """`width`: of the media tokens; None means that of the language model. `bias`: the projection has one."""

    width: int | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        check_optional_sizes("connector", self, ("width",))


@dataclass
class MLPConfig(LinearConfig):
    """`depth` linear layers with activations between them; the default is LLaVA-1.5's mlp2x_gelu.

    `hidden_width`: between the layers; None means `width`. `input_norm`: a LayerNorm in front of the first layer, as in
    InternVL's projector; for encoders whose features are far from unit scale.
    """

    depth: int = 2
    activation: str = "gelu"
    hidden_width: int | None = None
    input_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("connector", self, ("depth",))
        check_optional_sizes("connector", self, ("hidden_width",))
        check_activation("connector.activation", self.activation)


@dataclass
class IdentityConfig:
    """Nothing to choose."""


class Identity(nn.Module):
    """Patch features (m p d) as media tokens, for cross-attention that projects them itself (IDEFICS without its
    resampler)."""

    reads_text = False

    def __init__(self, patch_width: int, patches: int, language_width: int, config: IdentityConfig) -> None:
        super().__init__()
        self.tokens = patches
        self.width = patch_width

    def forward(self, patches: Tensor) -> Tensor:
        return patches


class LinearProjector(nn.Module):
    """Patch features (m p d_patch) -> media tokens (m p d)."""

    reads_text = False

    def __init__(self, patch_width: int, patches: int, language_width: int, config: LinearConfig) -> None:
        super().__init__()
        self.tokens = patches
        self.width = config.width or language_width
        self.projection = nn.Linear(patch_width, self.width, bias=config.bias)

    def forward(self, patches: Tensor) -> Tensor:
        return self.projection(patches)


class MLPProjector(nn.Module):
    """Patch features (m p d_patch) -> media tokens (m p d)."""

    reads_text = False

    def __init__(self, patch_width: int, patches: int, language_width: int, config: MLPConfig) -> None:
        super().__init__()
        self.tokens = patches
        self.width = config.width or language_width
        hidden = [config.hidden_width or self.width] * (config.depth - 1)
        widths = pairwise([patch_width, *hidden, self.width])
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=config.bias) for before, after in widths)
        self.activation = ACTIVATIONS[config.activation]
        self.input_norm = nn.LayerNorm(patch_width) if config.input_norm else nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        first, *others = self.layers
        x = first(self.input_norm(patches))
        for layer in others:
            x = layer(self.activation(x))
        return x
