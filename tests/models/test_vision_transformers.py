"""transformers' encoders: the features are those of the reference classes, from a config and from a directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
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
        block.register_forward_hook(
            lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0])
        )
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
@given(
    layer=st.integers(-3, -1), class_token=st.booleans(), final_norm=st.booleans(), seed=st.integers(0, 99)
)
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
    assert {k: v.shape for k, v in shell.state_dict().items()} == {
        k: v.shape for k, v in real.state_dict().items()
    }


# ---- directories


def preprocessor(size: int = 16) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": size + 4}, crop_size={"height": size, "width": size})


@pytest.fixture(scope="module")
def vision_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoders") / "clip vision"
    reference("clip")[1].save_pretrained(directory)
    preprocessor().save_pretrained(directory)
    return directory


TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
}  # fmt: skip
LLAMA = {"model_type": "llama", **TEXT}
QFORMER = {**TEXT, "encoder_hidden_size": 24}
COMPOSITES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # reference class, its config's class, its parts' sizes; the key is the vision half's name in REFERENCES
    "clip": ("CLIPModel", "CLIPConfig", {"text_config": TEXT, "vision_config": SIZES}),
    "siglip": ("SiglipModel", "SiglipConfig", {"text_config": TEXT, "vision_config": SIZES}),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {"text_config": LLAMA, "vision_config": {"model_type": "clip_vision_model", **SIZES}},
    ),
    "blip_2": (
        "Blip2ForConditionalGeneration",
        "Blip2Config",
        {"text_config": LLAMA, "vision_config": SIZES, "qformer_config": QFORMER, "num_query_tokens": 2},
    ),
    "idefics": (
        "IdeficsForVisionText2Text",
        "IdeficsConfig",
        {**TEXT, "vision_config": IDEFICS, "perceiver_config": {"use_resampler": False}},
    ),
}


@pytest.fixture(scope="module")
def composites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, nn.Module]]:
    """Whole checkpoints of vision and language, and the vision half of each."""
    made = {}
    for name, (kind, config, sizes) in COMPOSITES.items():
        torch.manual_seed(3)
        model = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
        ends = ("vision_model", "vision_tower")
        half = next(part for path, part in model.named_modules() if path.rpartition(".")[2] in ends)
        with torch.no_grad():
            for parameter in half.parameters():
                parameter.normal_(std=0.3)
        directory = tmp_path_factory.mktemp("composites") / name
        model.save_pretrained(directory)
        preprocessor().save_pretrained(directory)
        made[name] = (directory, half)
    return made


def test_a_directory_gives_its_weights_and_how_its_images_are_prepared(vision_only: Path) -> None:
    tower, encoder = load_vision(VisionConfig(str(vision_only), layer=-2, class_token=True))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        wanted = expected("clip", reference("clip")[1], pixels, tower)
        assert torch.equal(encoder.eval()(pixels), wanted)
    assert ImageTransform.from_open_clip(tower.preprocess) == ImageTransform(size=(16, 16), shortest_edge=20)
    assert vision_tower(VisionConfig(str(vision_only), layer=-2, class_token=True)) == tower


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_checkpoint_gives_its_vision_half(
    name: str, composites: dict[str, tuple[Path, nn.Module]]
) -> None:
    directory, half = composites[name]
    tower, encoder = load_vision(VisionConfig(str(directory), layer=-3, final_norm=True))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        wanted = expected("clip" if name == "llava" else name, half, pixels, tower)
        assert (encoder.eval()(pixels) - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_weights_may_be_left_random(vision_only: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((vision_only / "config.json").read_text())
    tower, encoder = load_vision(VisionConfig(str(tmp_path), pretrained=False))
    assert tower.preprocess == {"size": [16, 16]} and encoder.image_size == (16, 16)


@pytest.mark.parametrize("name", ["clip", "siglip", "llava"])
def test_a_model_with_a_transformers_encoder_comes_back_from_its_directory(
    name: str,
    composites: dict[str, tuple[Path, nn.Module]],
    model_config: dict[str, Any],
    tmp_path: Path,
    set_gates: Callable[..., VisionLanguageModel],
) -> None:
    source = str(composites[name][0])
    vision = {"name": source, "layer": -2, "class_token": name != "siglip", "final_norm": True}
    config = {**model_config, "vision": vision}
    model, processor = set_gates(build(config), 0.7).eval(), build_processor(config)
    model.save_pretrained(tmp_path)
    # Memory that was never written must not pass for the right position ids: rebuild several times over.
    for _ in range(3):
        again = VisionLanguageModel.from_pretrained(tmp_path).eval()
        pixels = torch.randn(1, 3, 16, 16)
        ids, index = torch.tensor([[4, 259, 7]]), torch.tensor([[-1, 0, 0]])
        with torch.no_grad():
            torch.testing.assert_close(again.vision(pixels), model.vision(pixels), rtol=1e-6, atol=1e-6)
            logits = [m(ids, media_index=index, pixel_values=pixels).logits for m in (model, again)]
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert processor.image_transform.size == model.vision.image_size


def test_an_encoder_that_trains_gets_the_same_gradients_with_checkpointing(
    vision_only: Path, model_config: dict[str, Any], set_gates: Callable[..., VisionLanguageModel]
) -> None:
    config = {**model_config, "vision": {"name": str(vision_only)}, "policy": {"vision.*": "full"}}
    ids, index, pixels = torch.tensor([[4, 259, 7]]), torch.tensor([[-1, 0, 0]]), torch.randn(1, 3, 16, 16)
    model = set_gates(build(config), 0.7).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids, media_index=index, pixel_values=pixels).loss.backward()
        gradients.append(
            {name: p.grad.clone() for name, p in model.vision.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys() == dict(model.vision.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_frozen_encoder_stays_in_evaluation_mode(vision_only: Path, model_config: dict[str, Any]) -> None:
    model = build({**model_config, "vision": {"name": str(vision_only)}}).train()
    assert model.training and not any(part.training for part in model.vision.modules())


def test_an_encoder_that_transformers_keeps_inside_another_model_comes_back_too(
    model_config: dict[str, Any], tmp_path: Path
) -> None:
    model = build(model_config)
    config, whole = reference("idefics")
    tower = VisionTower(transformers=plain_config(config), class_token=True)
    model.config.vision_tower = tower_to_dict(tower)
    again = VisionLanguageModel(model.config)
    state = whole.state_dict()
    again.vision.tower.load_state_dict({key: state[key] for key in again.vision.tower.state_dict()})
    again.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        found = VisionLanguageModel.from_pretrained(tmp_path).eval().vision(pixels)
        torch.testing.assert_close(found, expected("idefics", whole, pixels, tower), rtol=1e-6, atol=1e-6)


# ---- what is refused


def changed(source: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a directory in which fields of a json file are others, or gone (None)."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = {**json.loads((target / file).read_text()), **changes}
    (target / file).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": -4}, "vision.layer is -4, but CLIPVisionModel has 3 blocks; expected -1 .* to -3"),
        ({"pretrained": "openai"}, "vision.pretrained is 'openai'"),
    ],
)
def test_choices_that_the_encoder_does_not_have_are_named(
    vision_only: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FlamingoError, match=message):
        load_vision(VisionConfig(str(vision_only), **changes))


def test_a_layer_is_counted_from_the_end() -> None:
    with pytest.raises(FlamingoError, match="vision.layer is 2; expected a number below 0"):
        VisionConfig(layer=2)


def test_a_class_token_that_is_not_there_is_refused(composites: dict[str, tuple[Path, nn.Module]]) -> None:
    with pytest.raises(FlamingoError, match="SiglipVisionModel has no class token"):
        load_vision(VisionConfig(str(composites["siglip"][0]), class_token=True))


def test_an_encoder_of_any_resolution_is_refused_by_name() -> None:
    config = transformers.Siglip2VisionConfig(
        **{k: v for k, v in SIZES.items() if k != "image_size"}, num_patches=4
    )
    with pytest.raises(FlamingoError, match="Siglip2VisionModel needs pixel_attention_mask, spatial_shapes"):
        VisionEncoder(VisionTower(transformers=plain_config(config), preprocess={"size": 16}))


def test_an_encoder_without_one_token_per_patch_is_refused_by_name() -> None:
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4
    )
    with pytest.raises(FlamingoError, match="SwinModel"):
        VisionEncoder(VisionTower(transformers=plain_config(config)))


def test_a_text_model_is_no_vision_encoder(language_directory: Path) -> None:
    with pytest.raises(FlamingoError, match="a model of type 'llama' is no vision encoder") as error:
        load_vision(VisionConfig(str(language_directory)))
    assert str(language_directory) in str(error.value)


def test_a_directory_of_neither_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match="neither open_clip_config.json nor config.json"):
        load_vision(VisionConfig(str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "clop"}, "cannot load the vision encoder"),
        ("config.json", {"model_type": None}, "cannot load the vision encoder"),
        ("config.json", {"hidden_size": 32}, r"weights of another shape, first .* \(24,.*expected \(32,"),
        ("config.json", {"num_hidden_layers": 2}, "16 weights too many, .*encoder.layers.2.*with 2 blocks"),
        ("config.json", {"num_hidden_layers": 4}, "lacks 16 weights of its CLIPVisionModel"),
        (
            "config.json",
            {"image_size": 24},
            r"first embeddings.position_embedding.weight \(5, 24\), expected \(10, 24\)",
        ),
        ("preprocessor_config.json", {"do_center_crop": False}, "preprocessor_config.json of .*: size is"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize is false"),
        ("preprocessor_config.json", {"do_pad": True}, "do_pad is true"),
        ("preprocessor_config.json", {"image_std": [0, 1, 1]}, "standard deviations above 0"),
    ],
)
def test_a_directory_that_contradicts_itself_is_refused_in_one_line(
    vision_only: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    directory = changed(vision_only, tmp_path / "changed", file, **changes)
    # transformers' own report would stand above the one line.
    log = logging.getLogger("transformers")
    log.addHandler(caplog.handler)
    try:
        with pytest.raises(FlamingoError, match=message) as error:
            load_vision(VisionConfig(str(directory)))
    finally:
        log.removeHandler(caplog.handler)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)
    assert caplog.text == ""


def test_images_prepared_at_another_size_than_the_encoder_takes_are_refused() -> None:
    config, _ = reference("clip")
    with pytest.raises(
        FlamingoError, match="images are prepared at .24, 24., but CLIPVisionModel takes image_size 16"
    ):
        VisionEncoder(VisionTower(transformers=plain_config(config), preprocess={"size": [24, 24]}))


def test_an_encoder_that_resizes_its_positions_takes_the_size_that_images_are_prepared_at() -> None:
    config, model = reference("dinov2")
    encoder = encoder_of(
        "dinov2", model, VisionTower(transformers=plain_config(config), preprocess={"size": [24, 32]})
    )
    assert (encoder.patches, encoder.image_size) == (12, (24, 32))
    pixels = torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(pixels), hidden_states(model, pixels)[-1][:, 1:], rtol=1e-6, atol=1e-6
        )


def test_missing_files_are_named(vision_only: Path, tmp_path: Path) -> None:
    directory = changed(vision_only, tmp_path / "changed", "config.json")
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(FlamingoError, match="expected its preprocessor_config.json"):
        load_vision(VisionConfig(str(directory)))
    preprocessor().save_pretrained(directory)
    (directory / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FlamingoError, match="cannot load the vision encoder"):
        load_vision(VisionConfig(str(directory)))
    (directory / "model.safetensors").unlink()
    with pytest.raises(FlamingoError, match="model.safetensors"):
        load_vision(VisionConfig(str(directory)))


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_a_pickle_is_read_only_as_far_as_it_holds_tensors(
    layout: str, vision_only: Path, vision_directory: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    source, old, new = {
        "transformers": (vision_only, "model.safetensors", "pytorch_model.bin"),
        "open_clip": (vision_directory, "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    }[layout]
    file = "config.json" if layout == "transformers" else "open_clip_config.json"
    directory = changed(source, tmp_path / "changed", file)
    state = load_file(directory / old)
    (directory / old).unlink()
    torch.save(state, directory / new)
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        wanted, found = (load_vision(VisionConfig(str(d)))[1].eval()(pixels) for d in (source, directory))
        assert torch.equal(found, wanted)
    torch.save({**state, "evil": Evil(tmp_path / "ran")}, directory / new)
    with pytest.raises(FlamingoError, match="vision (encoder|weights)") as error:
        load_vision(VisionConfig(str(directory)))
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)


def test_code_in_a_directory_is_never_run(vision_only: Path, tmp_path: Path) -> None:
    code = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    directory = changed(vision_only, tmp_path / "changed", "config.json", auto_map=code)
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    load_vision(VisionConfig(str(directory)))
    assert not (tmp_path / "ran").exists()
