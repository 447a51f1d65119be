"""Which features the encoder gives, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.vision import VisionConfig, VisionEncoder, VisionTower, load_vision, tower_to_dict
from tests.conftest import VISION


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


def test_features_are_contiguous_whatever_the_tower_leaves(vision_directory: Path) -> None:
    encoder = load_vision(VisionConfig(str(vision_directory)))[1].eval()
    pixels = torch.randn(2, 3, 16, 16)
    assert not encoder.read(encoder.tower, pixels).is_contiguous()
    assert encoder(pixels).is_contiguous()


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
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(FlamingoError, match="cannot read .*open_clip_config.json"):
        load_vision(VisionConfig(str(tmp_path)))
    (tmp_path / "open_clip_config.json").write_text((vision_directory / "open_clip_config.json").read_text())
    with pytest.raises(
        FlamingoError, match="holds no vision weights; expected open_clip_model.safetensors or"
    ):
        load_vision(VisionConfig(str(tmp_path)))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FlamingoError, match="cannot read the vision weights"):
        load_vision(VisionConfig(str(tmp_path)))


def test_weights_that_the_config_has_no_place_for_are_refused(tmp_path: Path, vision_directory: Path) -> None:
    shutil.copytree(vision_directory, tmp_path / "clip")
    path = tmp_path / "clip" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(
        FlamingoError, match=r"0 of another shape, \d+ too many, first transformer.resblocks.1."
    ):
        load_vision(VisionConfig(str(tmp_path / "clip")))


def test_weights_that_do_not_fit_are_named_by_key_and_shape(tmp_path: Path, vision_directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "open_clip_config.json").write_text((vision_directory / "open_clip_config.json").read_text())
    state = load_file(vision_directory / "open_clip_model.safetensors")
    state["visual.class_embedding"] = state["visual.class_embedding"][:9].clone()
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(FlamingoError, match=r"class_embedding \(\(9,\), expected \(24,\)\)"):
        load_vision(VisionConfig(str(tmp_path)))
    del state["visual.ln_pre.weight"]
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(
        FlamingoError, match=r"1 tensors missing, 1 of another shape, 0 too many, first ln_pre.weight"
    ):
        load_vision(VisionConfig(str(tmp_path)))


@settings(max_examples=12, deadline=None)
@given(layer=st.integers(-2, -1), class_token=st.booleans(), final_norm=st.booleans())
def test_features_are_those_of_open_clips_own_blocks(
    vision_directory: Path, layer: int, class_token: bool, final_norm: bool
) -> None:
    config = VisionConfig(str(vision_directory), layer=layer, class_token=class_token, final_norm=final_norm)
    tower, encoder = load_vision(config)
    visual, pixels = whole_clip(vision_directory), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        tokens = visual._embeds(pixels)
        for block in visual.transformer.resblocks[: 3 + layer]:
            tokens = block(tokens)
        tokens = visual.ln_post(tokens) if final_norm else tokens
        assert torch.equal(encoder.eval()(pixels), tokens if class_token else tokens[:, 1:])
        again = VisionEncoder(VisionTower(**tower_to_dict(tower))).eval()
        again.load_state_dict(encoder.state_dict())
        assert torch.equal(again(pixels), encoder(pixels))
    assert encoder.patches == 4 + class_token


def small(**vision_cfg: Any) -> VisionTower:
    return VisionTower(embed_dim=16, vision_cfg={"image_size": 64, **vision_cfg})


RESNET = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 8}
TRUNKS: dict[str, tuple[dict[str, Any], bool, bool, tuple[int, int]]] = {
    # open_clip's vision_cfg; has a class token; has a last norm; patches and width of the last block
    "resnet": (RESNET, False, False, (4, 512)),
    "convnext": ({"timm_model_name": "convnext_atto"}, False, False, (4, 320)),
    "vit": ({"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}, True, True, (196, 192)),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_other_towers_of_open_clip_give_their_intermediates(name: str) -> None:
    options, has_class_token, has_norm, (patches, width) = TRUNKS[name]
    tower = small(**options)
    encoder = VisionEncoder(tower).eval()
    assert (encoder.patches, encoder.width) == (patches, width)
    pixels = torch.randn(1, 3, *encoder.image_size)
    whole = open_clip.model._build_vision_tower(16, open_clip.CLIPVisionCfg(**tower.vision_cfg)).eval()
    whole.load_state_dict({**whole.state_dict(), **encoder.tower.state_dict()})
    with torch.no_grad():
        found = whole.forward_intermediates(pixels, intermediates_only=True)["image_intermediates"][-1]
        torch.testing.assert_close(encoder(pixels), found.flatten(2).mT, rtol=0, atol=0)
    for field, there in (("class_token", has_class_token), ("final_norm", has_norm)):
        asked = replace(tower, **{field: True})
        if there:
            assert VisionEncoder(asked).width == width
        else:
            with pytest.raises(FlamingoError, match=f"vision.{field} is true, but"):
                VisionEncoder(asked)


@pytest.mark.parametrize("options", [RESNET, {"timm_model_name": "convnext_atto"}])
def test_an_earlier_stage_of_a_convolutional_tower_can_be_read(options: dict[str, Any]) -> None:
    encoder = VisionEncoder(replace(small(**options), layer=-2))
    assert encoder.patches == 16
    encoder(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (
            small(timm_model_name="vit_tiny_patch16_224"),
            "vit_tiny_patch16_224 gives no .* of .64, 64. pixels",
        ),
        (small(timm_model_name="vit_of_nobody"), "cannot build a tower .* Unknown model"),
        (small(layers=2, width=24, breadth=3), "cannot build a tower .*breadth"),
        (
            replace(small(layers=2, width=64, patch_size=8), layer=-3),
            "vision.layer is -3, more than the blocks",
        ),
        (replace(small(**RESNET), layer=-6), "vision.layer is -6, more than the blocks"),
    ],
)
def test_towers_that_cannot_be_read_are_refused_by_name(tower: VisionTower, message: str) -> None:
    with pytest.raises(FlamingoError, match=message) as error:
        VisionEncoder(tower)
    assert "\n" not in str(error.value)


def test_a_tower_is_built_on_the_meta_device_with_its_shapes(vision_directory: Path) -> None:
    tower, real = load_vision(VisionConfig(str(vision_directory), layer=-2))
    with torch.device("meta"):
        shell = VisionEncoder(tower)
    assert (shell.patches, shell.width) == (real.patches, real.width)
    assert {k: v.shape for k, v in shell.state_dict().items()} == {
        k: v.shape for k, v in real.state_dict().items()
    }


def test_a_config_that_an_earlier_version_saved_still_builds_its_tower() -> None:
    saved = {
        "embed_dim": 16,
        "vision_cfg": VISION["vision_cfg"],
        "quick_gelu": False,
        "preprocess": {},
        "layer": -1,
    }
    assert VisionEncoder(VisionTower(**saved)).patches == 4


def test_a_revision_of_what_has_none_is_refused(vision_directory: Path) -> None:
    for name in ("ViT-B-32", str(vision_directory)):
        with pytest.raises(FlamingoError, match="vision.revision is 'main'"):
            load_vision(VisionConfig(name, pretrained=False, revision="main"))
