"""transformers' encoders: the features are those of the reference classes, from a config and from a directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.idefics.vision import IdeficsVisionTransformer

from flamingo_lite.errors import FlamingoError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.tower import VisionConfig, VisionTower
from flamingo_lite.models.vision import VisionEncoder, load_vision, tower_to_dict, vision_tower
from flamingo_lite.models.vision_transformers import plain_config

SIZES = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
DINO = {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "mlp_ratio": 2}
IDEFICS = {**{k: v for k, v in SIZES.items() if k != "hidden_size"}, "embed_dim": 24}

REFERENCES: dict[str, tuple[str, str, dict[str, Any], str, int, int]] = {
    # name: config class, model class, sizes, name of the last norm, class tokens, registers
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", SIZES, "post_layernorm", 1, 0),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", SIZES, "post_layernorm", 0, 0),
    "dinov2": ("Dinov2Config", "Dinov2Model", DINO, "layernorm", 1, 0),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {**DINO, "num_register_tokens": 3}, "layernorm", 1, 3,
    ),
    "blip_2": ("Blip2VisionConfig", "Blip2VisionModel", SIZES, "post_layernorm", 1, 0),
    "instructblip": ("InstructBlipVisionConfig", "InstructBlipVisionModel", SIZES, "post_layernorm", 1, 0),
    "blip": ("BlipVisionConfig", "BlipVisionModel", SIZES, "post_layernorm", 1, 0),
    "idefics": ("IdeficsVisionConfig", "IdeficsVisionTransformer", IDEFICS, "post_layernorm", 1, 0),
    "vit": ("ViTConfig", "ViTModel", SIZES, "layernorm", 1, 0),
}  # fmt: skip


def reference(name: str, seed: int = 0) -> tuple[Any, nn.Module]:
    """A model of the reference class with weights large enough that every part matters."""
    config_name, model_name, sizes, *_ = REFERENCES[name]
    config = getattr(transformers, config_name)(**sizes)
    model = (IdeficsVisionTransformer if name == "idefics" else getattr(transformers, model_name))(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return config, model.eval()


def hidden_states(model: nn.Module, pixels: Tensor) -> list[Tensor]:
    """What each block of the reference gives, watched while its own forward runs."""
    (blocks,) = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0]))
        for block in blocks
    ]
    with torch.no_grad():
        model(pixel_values=pixels)
    for hook in hooks:
        hook.remove()
    return seen


def expected(name: str, model: nn.Module, pixels: Tensor, tower: VisionTower) -> Tensor:
    *_, norm, classes, registers = REFERENCES[name]
    tokens = hidden_states(model, pixels)[tower.layer]
    if tower.final_norm:
        tokens = getattr(model, norm)(tokens)
    patches = tokens[:, classes + registers :]
    return torch.cat((tokens[:, :classes], patches), 1) if tower.class_token else patches


def encoder_of(name: str, model: nn.Module, tower: VisionTower) -> VisionEncoder:
    """Built from the tower alone, then given the reference's weights by the reference's keys."""
    encoder = VisionEncoder(tower).eval()
    state = model.state_dict()
    encoder.tower.load_state_dict({key: state[key] for key in encoder.tower.state_dict()})
    return encoder


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=6, deadline=None)
@given(layer=st.integers(-3, -1), class_token=st.booleans(), final_norm=st.booleans(), seed=st.integers(0, 99))
def test_features_are_those_of_the_reference_class(
    name: str, layer: int, class_token: bool, final_norm: bool, seed: int
) -> None:
    config, model = reference(name, seed)
    has_class_token = REFERENCES[name][4] == 1
    tower = VisionTower(
        transformers=plain_config(config),
        layer=layer,
        class_token=class_token and has_class_token,
        final_norm=final_norm,
    )
    encoder, pixels = encoder_of(name, model, tower), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        wanted, found = expected(name, model, pixels, tower), encoder(pixels)
    assert found.shape == wanted.shape == (2, encoder.patches, encoder.width)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "dinov2_with_registers", "blip_2", "vit"])
def test_an_unnormed_layer_is_the_one_that_transformers_counts_from_the_end(name: str) -> None:
    config, model = reference(name)
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
        for layer in (-2, -3):
            encoder = encoder_of(name, model, VisionTower(transformers=plain_config(config), layer=layer))
            torch.testing.assert_close(encoder(pixels), states[layer][:, -4:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("final_norm", [False, True])
def test_every_weight_has_an_effect(name: str, final_norm: bool) -> None:
    config, _ = reference(name)
    encoder = VisionEncoder(VisionTower(transformers=plain_config(config), layer=-2, final_norm=final_norm))
    encoder(torch.randn(1, 3, 16, 16)).square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", REFERENCES)
def test_an_encoder_is_built_on_the_meta_device_with_its_shapes(name: str) -> None:
    config, _ = reference(name)
    tower = VisionTower(transformers=plain_config(config))
    with torch.device("meta"):
        shell = VisionEncoder(tower)
    real = VisionEncoder(VisionTower(**tower_to_dict(tower)))
    assert (shell.patches, shell.width) == (real.patches, real.width) == (4, 24)
    assert {k: v.shape for k, v in shell.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
