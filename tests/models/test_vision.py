"""Which features the encoder gives, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.vision import VisionConfig, load_vision


def whole_clip(directory: Path) -> torch.nn.Module:
    from safetensors.torch import load_file

    config = json.loads((directory / "open_clip_config.json").read_text())["model_cfg"]
    clip = open_clip.CLIP(**config).eval()
    clip.load_state_dict(load_file(directory / "open_clip_model.safetensors"))
    return clip.visual


def test_patch_tokens_are_those_of_the_last_block_before_the_final_norm(vision_directory: Path) -> None:
    encoder = load_vision(VisionConfig(str(vision_directory)))[1].eval()
    visual, pixels = whole_clip(vision_directory), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        tokens = visual.transformer(visual._embeds(pixels))
        assert torch.equal(encoder(pixels), tokens[:, 1:])
        assert (encoder(pixels) - visual.ln_post(tokens)[:, 1:]).abs().max() > 0.1
    assert (encoder.patches, encoder.width) == (4, 24)


def test_an_earlier_block_can_be_read_and_later_ones_are_dropped(vision_directory: Path) -> None:
    encoder = load_vision(VisionConfig(str(vision_directory), layer=-2))[1].eval()
    visual, pixels = whole_clip(vision_directory), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = visual.transformer.resblocks[0](visual._embeds(pixels))[:, 1:]
        torch.testing.assert_close(encoder(pixels), expected)
    assert len(encoder.tower.transformer.resblocks) == 1


def test_every_weight_of_the_encoder_has_an_effect(vision_directory: Path) -> None:
    encoder = load_vision(VisionConfig(str(vision_directory)))[1]
    encoder(torch.randn(1, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_known_architecture_can_start_at_random() -> None:
    tower, encoder = load_vision(VisionConfig("ViT-B-32", pretrained=False))
    assert (encoder.patches, encoder.width, encoder.image_size) == (49, 768, (224, 224))
    assert tower.preprocess == {"size": 224}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VisionConfig("ViT-B-33"), "did you mean 'ViT-B-32'"),
        (VisionConfig("ViT-B-32"), "choose a tag .*laion2b"),
        (VisionConfig("./nowhere"), "no directory nowhere"),
    ],
)
def test_unknown_encoders_are_named(config: VisionConfig, message: str) -> None:
    with pytest.raises(FlamingoError, match=message):
        load_vision(config)


def test_damaged_directories_are_named(tmp_path: Path, vision_directory: Path) -> None:
    with pytest.raises(FlamingoError, match="cannot read .*open_clip_config.json"):
        load_vision(VisionConfig(str(tmp_path)))
    (tmp_path / "open_clip_config.json").write_text((vision_directory / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FlamingoError, match="cannot read the vision weights"):
        load_vision(VisionConfig(str(tmp_path)))
