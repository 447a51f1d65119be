"""Directories as LLaVA's own repository writes them, made from a reference of transformers, against that reference."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import references as ref
import torch
import torch.nn.functional as F
from references import change, refused
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)

import flamingo_lite as fl

IMAGE = ref.WORDS
LANGUAGES = {"llava": LlamaConfig, "llava_mistral": MistralConfig}


def reference_of(model_type: str, select: str) -> Any:
    # Their vocabulary has a token for images; the original has none, and its matrices a row less.
    text = LANGUAGES[model_type](
        vocab_size=IMAGE + 1, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_select_strategy={"patch": "default", "cls_patch": "full"}[select],
    )
    return ref.randomised(LlavaForConditionalGeneration(config), 0)


def write(reference: Any, directory: Path, model_type: str, select: str, is_apart: bool) -> None:
    model = reference.model
    tower = directory / "clip"
    model.vision_tower.save_pretrained(tower)
    ref.image_processor(16).save_pretrained(tower)
    ref.tokenizer().save_pretrained(directory)
    text = reference.config.text_config.to_dict()
    fields = {
        "model_type": model_type, "vocab_size": IMAGE, "mm_vision_tower": str(tower), "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": select, "mm_use_im_start_end": False,
        "mm_hidden_size": 12,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps({**text, **fields}))
    state = {f"model.{key}": value for key, value in model.language_model.state_dict().items()}
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:IMAGE].clone()
    state["lm_head.weight"] = reference.lm_head.weight.detach()[:IMAGE].clone()
    projector = {
        f"model.mm_projector.{2 * i}.{kind}": getattr(
            getattr(model.multi_modal_projector, f"linear_{i + 1}"), kind
        ).detach()
        for i in range(2)
        for kind in ("weight", "bias")
    }
    if is_apart:
        torch.save(projector, directory / "mm_projector.bin")
    else:
        vision = model.vision_tower.state_dict()
        # The tower beside it is another one: weights inside are tuned ones.
        ref.randomised(model.vision_tower, 1).save_pretrained(tower)
        model.vision_tower.load_state_dict(vision)
        prefix = "model.vision_tower.vision_tower.vision_model."
        state |= projector | {prefix + key: value for key, value in vision.items()}
    torch.save(state, directory / "pytorch_model.bin")


@pytest.mark.parametrize("is_apart", [True, False], ids=["mm_projector.bin", "one file"])
@pytest.mark.parametrize(("model_type", "select"), [("llava", "patch"), ("llava_mistral", "cls_patch")])
@torch.no_grad()
def test_logits_equal_the_reference(tmp_path: Path, model_type: str, select: str, is_apart: bool) -> None:
    reference = reference_of(model_type, select)
    write(reference, tmp_path, model_type, select, is_apart)
    model, processor = fl.load(tmp_path)
    batch = processor(ref.interleaved(Random(0)))
    is_text = batch.attention_mask
    found = model(**batch).logits[is_text][:, :IMAGE]
    expected = reference(**ref.with_position_ids(batch)).logits[is_text][:, :IMAGE]
    torch.testing.assert_close(found, expected, atol=ref.TOLERANCE, rtol=ref.TOLERANCE)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory to change or to spoil."""
    write(reference_of("llava", "patch"), tmp_path, "llava", "patch", is_apart=True)
    return tmp_path


@torch.no_grad()
def test_a_linear_projector_is_the_linear_connector(directory: Path) -> None:
    change(directory, mm_projector_type="linear")
    weight, bias = torch.randn(16, 12), torch.randn(16)
    torch.save(
        {"model.mm_projector.weight": weight, "model.mm_projector.bias": bias}, directory / "mm_projector.bin"
    )
    model = fl.load_model(directory)
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.encode_images(pixels), F.linear(model.vision(pixels), weight, bias))


@pytest.mark.parametrize(("prepared", "mode"), [("pad", "pad"), ("square", "shortest")])
def test_images_are_padded_where_the_config_says_so(directory: Path, prepared: str, mode: str) -> None:
    change(directory, image_aspect_ratio=prepared)
    _, processor = fl.load(directory)
    assert processor.image_transform.resize_mode == mode


def test_loading_twice_gives_the_same_row_for_the_image_token(directory: Path) -> None:
    first, second = (fl.load_model(directory).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_projector_type", "identity"),
        ("mm_vision_select_feature", "cls"),
        ("mm_use_im_start_end", True),
        ("model_type", "llava_mpt"),
        ("image_aspect_ratio", "anyres"),
    ],
)
def test_what_is_not_supported_is_refused_by_field(directory: Path, field: str, value: object) -> None:
    change(directory, **{field: value})
    assert field in refused(directory)


def test_a_directory_without_a_projector_is_refused(directory: Path) -> None:
    (directory / "mm_projector.bin").unlink()
    assert "mm_projector.bin" in refused(directory)


def test_a_projector_of_another_width_is_refused(directory: Path) -> None:
    path = directory / "mm_projector.bin"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "model.mm_projector.0.weight": torch.zeros(16, 9)}, path)
    assert "model.mm_projector.0.weight (16, 9) (expected (16, 12))" in refused(directory)


def test_a_projector_that_is_code_is_refused(directory: Path) -> None:
    torch.save({"model.mm_projector.0.weight": ref.Pair}, directory / "mm_projector.bin")
    assert "mm_projector.bin holds a pickle" in refused(directory)


@pytest.mark.parametrize(
    ("field", "value"), [("mm_vision_tower", None), ("mm_vision_select_layer", "-2"), ("torch_dtype", "auto")]
)
def test_a_value_of_the_wrong_kind_is_one_line(directory: Path, field: str, value: object) -> None:
    change(directory, **{field: value})
    assert str(directory) in refused(directory) or "vision.layer" in refused(directory)
