"""The connectors by name: patch features (m p d_patch) to media tokens (m n d).

Each has its own config, with its own defaults and checks, beside its code; the one here is their union, for
configurations and the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice
from flamingo_lite.nn.projector import (
    Identity,
    IdentityConfig,
    LinearConfig,
    LinearProjector,
    MLPConfig,
    MLPProjector,
)
from flamingo_lite.nn.qformer import QFormer, QFormerConfig
from flamingo_lite.nn.resampler import PerceiverResampler, ResamplerConfig

Connector = Identity | LinearProjector | MLPProjector | PerceiverResampler | QFormer
"""A module with `tokens` (n, the media tokens of an image), `width` (d, theirs) and `reads_text`: its forward also
takes ids and mask (m s) of a text for each image."""

OwnConfig = IdentityConfig | LinearConfig | MLPConfig | ResamplerConfig | QFormerConfig


class ConnectorKind(NamedTuple):
    """`build(patch_width, patches, language_width, config)` with the connector's own config."""

    config: type[OwnConfig]
    build: Callable[[int, int, int, Any], Connector]


def _perceiver(
    patch_width: int, patches: int, language_width: int, config: ResamplerConfig
) -> PerceiverResampler:
    return PerceiverResampler(patch_width, config)


def _qformer(patch_width: int, patches: int, language_width: int, config: QFormerConfig) -> QFormer:
    return QFormer(patch_width, language_width, config)


CONNECTORS: dict[str, ConnectorKind] = {
    "identity": ConnectorKind(IdentityConfig, Identity),
    "linear": ConnectorKind(LinearConfig, LinearProjector),
    "mlp": ConnectorKind(MLPConfig, MLPProjector),
    "perceiver": ConnectorKind(ResamplerConfig, _perceiver),
    "qformer": ConnectorKind(QFormerConfig, _qformer),
}


@dataclass
class ConnectorConfig:
    """Which connector, and every field that any of them has; None means the chosen connector's own default.

    What the fields mean stands at the configs of the connectors. A field that is set although the chosen
    connector has no such field is a FlamingoError.
    """

    name: str = "perceiver"
    depth: int | None = None
    latents: int | None = None
    heads: int | None = None
    dim_head: int | None = None
    ff_mult: int | None = None
    width: int | None = None
    qk_norm: bool | None = None
    activation: str | None = None
    hidden_width: int | None = None
    input_norm: bool | None = None
    bias: bool | None = None
    ff_width: int | None = None
    every: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    norm_eps: float | None = None
    text: bool | None = None
    vocabulary: int | None = None
    positions: int | None = None

    def __post_init__(self) -> None:
        check_choice("connector", self.name, CONNECTORS)
        known = [field.name for field in fields(CONNECTORS[self.name].config)]
        if strange := [
            f"connector.{name}={value}" for name, value in self._set().items() if name not in known
        ]:
            raise FlamingoError(
                f"{', '.join(strange)}: the connector {self.name} has no such field, only {', '.join(known) or 'its name'}; "
                "leave it out or set it to null"
            )
        self.own()

    def own(self) -> OwnConfig:
        """The chosen connector's own config: what is set here, and its defaults."""
        return CONNECTORS[self.name].config(**self._set())

    def complete(self) -> dict[str, Any]:
        """The name and all fields of the chosen connector, defaults written out: what a saved model keeps, so
        that it does not change when a default does.
        """
        return {"name": self.name, **asdict(self.own())}

    def _set(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "name" and value is not None}


def build_connector(
    patch_width: int, patches: int, language_width: int, config: ConnectorConfig
) -> Connector:
    """The connector for `patches` (p) features of `patch_width` an image, weights drawn as its authors do.

    Linear, mlp and qformer give media tokens of `language_width` unless `config.width` says otherwise; the
    perceiver gives them of the patches' width, as OpenFlamingo's does, and so does identity.
    """
    return CONNECTORS[config.name].build(patch_width, patches, language_width, config.own())
