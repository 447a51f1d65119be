"""The connectors by name: patch features (m p d) to media tokens (m n d)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flamingo_lite.names import check_choice
from flamingo_lite.nn.resampler import PerceiverResampler, ResamplerConfig


@dataclass
class ConnectorConfig(ResamplerConfig):
    """Which connector, and its sizes."""

    name: str = "perceiver"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("connector", self.name, CONNECTORS)


CONNECTORS: dict[str, Callable[[int, ResamplerConfig], PerceiverResampler]] = {
    "perceiver": PerceiverResampler
}


def build_connector(patch_width: int, config: ConnectorConfig) -> PerceiverResampler:
    """The connector, weights drawn as OpenFlamingo draws them (torch's defaults; latents from a normal)."""
    return CONNECTORS[config.name](patch_width, config)
