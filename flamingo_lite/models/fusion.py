"""The fusions by name: how media tokens reach the language model.

`cross_attention`: gated blocks between its layers read them (Flamingo). `prefix`: they take the place of the
`<image>` marks among its input embeddings (LLaVA; GIT with `bidirectional`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from transformers import PreTrainedModel

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.cross_fusion import CrossAttentionFusion, Fused, FusedBlock
from flamingo_lite.models.prefix_fusion import PrefixFusion
from flamingo_lite.names import check_choice
from flamingo_lite.nn.cache import Media
from flamingo_lite.nn.gated import GatedConfig


class Fusion(Protocol):
    """From the language model's inputs and the batch's media: what to run it with, and in which context."""

    blocks: dict[int, FusedBlock]

    def __call__(self, inputs: dict[str, Any], media: Media) -> Fused: ...


FUSIONS: dict[str, type[CrossAttentionFusion] | type[PrefixFusion]] = {
    "cross_attention": CrossAttentionFusion,
    "prefix": PrefixFusion,
}

FIELDS: dict[str, frozenset[str]] = {
    "cross_attention": frozenset(field.name for field in fields(GatedConfig)),
    "prefix": frozenset({"bidirectional"}),
}
"""The fields of `FusionConfig` that each fusion reads, beside `name`."""


@dataclass
class FusionConfig(GatedConfig):
    """Which fusion, and its fields; one that the chosen fusion does not read must keep its default.

    `bidirectional` (prefix): the tokens of one image see each other both ways, as in GIT; text stays causal.
    """

    name: str = "cross_attention"
    bidirectional: bool = False

    def __post_init__(self) -> None:
        check_choice("fusion", self.name, FUSIONS)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and field.name not in FIELDS[self.name] and value != field.default:
                raise FlamingoError(
                    f"fusion.{field.name} is {value!r}, but {self.name} fusion does not read it; leave it out, "
                    f"or choose fusion.name={_reader_of(field.name)}"
                )
        super().__post_init__()

    def complete(self) -> dict[str, Any]:
        """The name and all fields that the chosen fusion reads, defaults written out: what a saved model keeps."""
        read = {"name", *FIELDS[self.name]}
        return {name: value for name, value in asdict(self).items() if name in read}

    @property
    def replaces_marks(self) -> bool:
        """Does an `<image>` id stand for each media token of an image? If not, one stands for all of them."""
        return FUSIONS[self.name].replaces_marks


def build_fusion(
    language: PreTrainedModel, media_width: int, config: FusionConfig, image_token_id: int
) -> Fusion:
    """Prepares `language` and returns the fusion. Raises FlamingoError where the two do not fit together."""
    return FUSIONS[config.name](language, media_width, config, image_token_id)


def _reader_of(field: str) -> str:
    return next(name for name, read in FIELDS.items() if field in read)
