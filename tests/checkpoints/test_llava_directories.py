"""LLaVA-1.5 directories of transformers against `LlavaForConditionalGeneration` itself, read and written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import references as ref
import torch
from references import change, refused
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

import flamingo_lite as fl
from flamingo_lite.checkpoints.formats import export
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build_processor

IMAGE = ref.WORDS
LANGUAGES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
ENCODERS = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
SEEDS = range(25)

NEW_SPELLING = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.language_model.",
    "vision_tower.": "model.vision_tower.vision_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
"""The keys that transformers writes, and those of files from versions in between."""


def drawn_config(draw: Random) -> LlavaConfig:
    language, encoder = draw.choice(list(LANGUAGES)), draw.choice(list(ENCODERS))
    heads, depth, patch = draw.choice([1, 2, 4]), draw.choice([2, 3, 4]), draw.choice([4, 8])
    text = LANGUAGES[language](
        vocab_size=IMAGE + draw.choice([1, 4]), hidden_size=8 * heads, intermediate_size=draw.choice([16, 40]),
        num_hidden_layers=draw.choice([1, 2]), num_attention_heads=heads, num_key_value_heads=draw.choice([1, heads]),
        head_dim=8, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=draw.random() < 0.5,
    )  # fmt: skip
    vision = ENCODERS[encoder](
        hidden_size=draw.choice([12, 24]), intermediate_size=20, num_hidden_layers=depth, num_attention_heads=2,
        image_size=16, patch_size=patch,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=draw.choice([-1, -2, -depth, depth - 1, [-2]]),
        vision_feature_select_strategy="full" if encoder == "siglip" else draw.choice(["default", "full"]),
        projector_hidden_act=draw.choice(["gelu", "relu", "gelu_new"]),
        multimodal_projector_bias=draw.random() < 0.5,
    )


def write(reference: Any, directory: Path) -> None:
    config = reference.config
    reference.save_pretrained(directory)
    LlavaProcessor(
        image_processor=ref.image_processor(16),
        tokenizer=ref.tokenizer("<image>"),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(config.vision_config.model_type == "clip_vision_model"),
    ).save_pretrained(directory)


def respell(directory: Path) -> None:
    path = directory / "model.safetensors"
    state = load_file(path)
    for before, after in NEW_SPELLING.items():
        state = {after + k.removeprefix(before) if k.startswith(before) else k: v for k, v in state.items()}
    save_file(state, path, metadata={"format": "pt"})


@cache
def pair(seed: int) -> ref.Pair:
    directory = ref.folder()
    reference = ref.randomised(LlavaForConditionalGeneration(drawn_config(Random(seed))), seed)
    write(reference, directory)
    if seed % 3 == 0:
        respell(directory)
    return ref.Pair(directory, reference, *fl.load(directory))


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_logits_equal_the_reference(seed: int) -> None:
    found, draw = pair(seed), Random(seed)
    batch = found.processor(ref.interleaved(draw), padding_side=draw.choice(["left", "right"]))
    is_text = batch.attention_mask
    expected = found.theirs(**ref.with_position_ids(batch)).logits[is_text]
    torch.testing.assert_close(
        found.model(**batch).logits[is_text], expected, atol=ref.TOLERANCE, rtol=ref.TOLERANCE
    )


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_greedy_generations_equal_the_reference(seed: int) -> None:
    found = pair(seed)
    batch = found.processor(ref.interleaved(Random(seed)), padding_side="left")
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
    theirs = {name: value for name, value in ref.with_position_ids(batch).items() if name != "position_ids"}
    assert torch.equal(found.model.generate(**batch, **options), found.theirs.generate(**theirs, **options))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", ["it", "tiit", "iti"])
def test_the_processor_writes_the_ids_and_pixels_of_the_reference(seed: int, order: str) -> None:
    found, draw = pair(seed), Random(seed)
    # Of the encoder's own size: resizing is compared in test_image_transform.py.
    segments = [ref.picture(draw, 16) if kind == "i" else ref.words(draw) for kind in order]
    mine = found.processor([fl.Document(segments)])
    theirs = LlavaProcessor.from_pretrained(found.directory)(
        images=[segment.pil() for segment in segments if isinstance(segment, fl.Image)],
        text="".join("<image>" if isinstance(segment, fl.Image) else segment for segment in segments),
        return_tensors="pt",
    )
    assert torch.equal(mine.input_ids, theirs["input_ids"])
    torch.testing.assert_close(mine.pixel_values, theirs["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_what_is_read_and_written_is_the_reference_again(seed: int, tmp_path: Path) -> None:
    found = pair(seed)
    export(found.model, found.processor, tmp_path / "out", format="llava")
    again, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = ref.with_position_ids(found.processor(ref.interleaved(Random(seed))))
    assert torch.equal(again.eval()(**batch).logits, found.theirs(**batch).logits)
    # What is never read comes back too: the encoder's layers behind the one that is, and its last norm.
    theirs = found.theirs.state_dict()
    assert again.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in again.state_dict().items())


def test_a_written_config_is_the_one_that_was_read(tmp_path: Path) -> None:
    found = pair(7)
    export(found.model, found.processor, tmp_path / "out", format="llava")
    read, written = (json.loads((d / "config.json").read_text()) for d in (found.directory, tmp_path / "out"))
    # The number of image tokens is written as it is; the reference leaves 336 pixels' there.
    del read["image_seq_length"], written["image_seq_length"]
    assert written == read


def test_our_own_directory_of_it_gives_the_same_logits(tmp_path: Path) -> None:
    found = pair(1)  # its embeddings are tied
    fl.save(found.model, found.processor, tmp_path / "ours")
    model, processor = fl.load(tmp_path / "ours")
    batch = processor(ref.interleaved(Random(2)))
    assert torch.equal(model(**batch).logits, found.model(**batch).logits)


def test_a_chat_template_is_read_and_written(directory: Path, tmp_path: Path) -> None:
    (directory / "chat_template.jinja").write_text("USER: {{ messages[0]['content'] }}")
    model, processor = fl.load(directory)
    export(model, processor, tmp_path / "out", format="llava")
    written = LlavaProcessor.from_pretrained(tmp_path / "out").chat_template
    assert processor.chat_template == written == "USER: {{ messages[0]['content'] }}"


def test_a_processor_that_pads_is_read_and_written(directory: Path, tmp_path: Path) -> None:
    model, processor = fl.load(directory)
    processor.image_transform = replace(processor.image_transform, resize_mode="pad", shortest_edge=None)
    export(model, processor, tmp_path / "padded", format="llava")
    again = fl.load(tmp_path / "padded")[1]
    assert again.image_transform == processor.image_transform
    wide = ref.picture(Random(0), 16).pil().resize((40, 16))
    theirs = LlavaProcessor.from_pretrained(tmp_path / "padded")
    expected = theirs(images=[wide], text="<image>", return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        again([fl.Document([fl.Image(wide)])]).pixel_values, expected, atol=0.05, rtol=0
    )


def test_a_training_checkpoint_is_laid_over_the_directory_again(tmp_path: Path) -> None:
    found = pair(3)
    fl.save(found.model, found.processor, tmp_path / "trained", whole=False)
    again = fl.load_model(tmp_path / "trained").state_dict()
    assert all(torch.equal(again[key], value) for key, value in found.model.state_dict().items())


# ---- bad input


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A fresh LLaVA directory to spoil."""
    text = LlamaConfig(
        vocab_size=IMAGE + 1, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    vision = CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    write(LlavaForConditionalGeneration(config), tmp_path)
    return tmp_path


def test_a_list_of_layers_is_refused(directory: Path) -> None:
    change(directory, vision_feature_layer=[-1, -2])
    assert "vision_feature_layer" in refused(directory)


def test_a_layer_that_is_not_there_is_refused(directory: Path) -> None:
    change(directory, vision_feature_layer=-3)
    assert "vision_feature_layer" in refused(directory)


def test_weights_keep_their_type(directory: Path) -> None:
    LlavaForConditionalGeneration.from_pretrained(directory).to(torch.bfloat16).save_pretrained(directory)
    assert {p.dtype for p in fl.load_model(directory).parameters()} == {torch.bfloat16}


def test_dropping_the_first_token_of_an_encoder_without_class_token_is_refused(directory: Path) -> None:
    change(directory, vision_config=SiglipVisionConfig(num_hidden_layers=2).to_dict())
    assert "vision_feature_select_strategy" in refused(directory)


def test_an_image_token_outside_the_vocabulary_is_refused(directory: Path) -> None:
    change(directory, image_token_index=IMAGE + 1)
    assert "image_token_index" in refused(directory)


def test_a_tokenizer_without_the_image_token_is_refused(directory: Path) -> None:
    ref.tokenizer("<picture>").save_pretrained(directory)
    assert "lacks the token <image>" in refused(directory)


def test_weights_are_refused_by_group(directory: Path) -> None:
    path = directory / "model.safetensors"
    state = load_file(path)
    state["stranger"] = state.pop("multi_modal_projector.linear_1.bias")
    state["multi_modal_projector.linear_2.bias"] = torch.zeros(3)
    save_file(state, path, metadata={"format": "pt"})
    said = refused(directory)
    assert "1 missing: multi_modal_projector.linear_1.bias" in said
    assert "1 superfluous: stranger" in said
    assert "1 of another shape: multi_modal_projector.linear_2.bias (3,) (expected (16,))" in said


def test_mllama_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama"}))
    assert "'mllama', which cannot be read here: where no image stands" in refused(tmp_path)


# ---- out of models that were built here


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """A CLIP and a Llama in directories of their own, and how LLaVA joins them."""
    vision = CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=IMAGE, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPVisionModel(vision).save_pretrained(tmp_path / "clip")
    ref.image_processor(16).save_pretrained(tmp_path / "clip")
    LlamaForCausalLM(text).save_pretrained(tmp_path / "llama")
    ref.tokenizer().save_pretrained(tmp_path / "llama")
    return {
        "vision": {"name": str(tmp_path / "clip"), "layer": -2},
        "language": {"name": str(tmp_path / "llama")},
        "connector": {"name": "mlp"},
        "fusion": {"name": "prefix"},
    }


@torch.no_grad()
def test_new_tokens_become_rows_of_the_matrices(parts: dict[str, Any], tmp_path: Path) -> None:
    model, processor = ref.randomised(fl.build(parts), 0), build_processor(parts)
    export(model, processor, tmp_path / "out", format="llava")
    reference = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    batch = processor(ref.interleaved(Random(0)))
    is_text = batch.attention_mask
    expected = reference(**ref.with_position_ids(batch)).logits[is_text]
    torch.testing.assert_close(
        model(**batch).logits[is_text], expected, atol=ref.TOLERANCE, rtol=ref.TOLERANCE
    )


@pytest.mark.parametrize(
    ("part", "fields", "named"),
    [
        ("vision", {"final_norm": True}, "vision.final_norm"),
        ("connector", {"depth": 3}, "connector"),
        ("connector", {"hidden_width": 9}, "connector.hidden_width"),
        ("fusion", {"bidirectional": True}, "fusion.bidirectional"),
    ],
)
def test_what_llava_cannot_express_is_refused_by_field(
    parts: dict[str, Any], tmp_path: Path, part: str, fields: dict[str, Any], named: str
) -> None:
    model = fl.build({**parts, part: {**parts[part], **fields}})
    with pytest.raises(FlamingoError, match=f"cannot export as llava: {named} is"):
        export(model, None, tmp_path / "out", format="llava")
