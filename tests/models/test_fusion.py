"""Which fusion a config means: what it reads, what it refuses, what is saved of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.fusion import FusionConfig
from flamingo_lite.models.model import VisionLanguageModel

ImageOf = Callable[[int], Image]


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        ({"name": "prefx"}, "did you mean 'prefix'"),
        (
            {"name": "prefix", "every": 2},
            r"fusion\.every is 2, but prefix fusion .* fusion\.name=cross_attention",
        ),
        ({"name": "prefix", "sees": "all_previous"}, r"fusion\.sees is 'all_previous'"),
        (
            {"bidirectional": True},
            r"fusion\.bidirectional is True, but cross_attention .* fusion\.name=prefix",
        ),
    ],
)
def test_a_field_that_the_fusion_does_not_read_is_refused(fusion: dict[str, Any], message: str) -> None:
    with pytest.raises(FlamingoError, match=message):
        FusionConfig(**fusion)


def test_a_config_without_a_name_is_cross_attention(model: VisionLanguageModel, tmp_path: Any) -> None:
    old = VisionLanguageConfig.from_dict(model.config.to_dict())
    del old.fusion["name"]
    assert FusionConfig(**old.fusion).name == "cross_attention"
    assert list(VisionLanguageModel(old).blocks) == [0, 1]


def test_a_saved_config_holds_what_its_fusion_reads_and_nothing_else(
    model: VisionLanguageModel, prefix_model: VisionLanguageModel
) -> None:
    assert prefix_model.config.fusion == {"name": "prefix", "bidirectional": False}
    assert "every" in model.config.fusion and "bidirectional" not in model.config.fusion


def test_the_processor_is_built_for_the_fusion(
    model_config: dict[str, Any], prefix_config: dict[str, Any]
) -> None:
    assert build_processor(model_config).template.image_tokens == 1
    assert build_processor(prefix_config).template.image_tokens == 3
    by_patches = {**prefix_config, "connector": {"name": "mlp"}}
    assert build_processor(by_patches).template.image_tokens == build(by_patches).connector.tokens == 4
