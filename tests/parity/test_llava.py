"""Prefix fusion against transformers' `LlavaForConditionalGeneration`, the same weights and image features."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.cache import MediaCache

TOLERANCE = 1e-5
IMAGE, PAD, WORDS, WIDTH = 60, 0, 64, 32
TOKENS = 4  # a picture of 16 x 16 pixels in patches of 8


def randomised(model: Any) -> Any:
    # The stock 0.02 leaves logits so flat that a difference would hide below the tolerance.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    return model.eval()


@cache
def theirs() -> Any:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=1, eos_token_id=None, pad_token_id=PAD,
        tie_word_embeddings=False,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-2
    )
    config.image_token_id = IMAGE
    return randomised(LlavaForConditionalGeneration(config))


@cache
def ours() -> VisionLanguageModel:
    """Their language model's weights under our model; its own encoder and connector are never used."""
    reference = theirs()
    language = AutoModelForCausalLM.from_config(reference.config.text_config)
    language.model.load_state_dict(reference.model.language_model.state_dict())
    language.lm_head.load_state_dict(reference.lm_head.state_dict())
    tower = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8},
        "quick_gelu": False,
        "preprocess": {"size": 16},
    }
    config = VisionLanguageConfig(
        text_config=language.config,
        vision_tower=tower,
        connector={"depth": 1, "latents": TOKENS, "heads": 1, "dim_head": 4, "ff_mult": 1, "width": WIDTH},
        fusion={"name": "prefix"},
        image_token_id=IMAGE,
        first_new_token=WORDS,
    )
    return VisionLanguageModel(config, language=language).eval()


def features(pixels: Tensor) -> Tensor:
    """(m c h w) -> (m n d): the patches of the second to last layer, projected, as LLaVA does."""
    model = theirs().model
    states = model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    return model.multi_modal_projector(states[:, 1:])


def batch_of(rows: list[list[int | None]], side: str) -> dict[str, Any]:
    """Rows of word ids, None for an image, padded on one side; pixels are drawn at random."""
    written = [[x for word in row for x in ([IMAGE] * TOKENS if word is None else [word])] for row in rows]
    longest = max(map(len, written))
    ids, mask, index = (torch.full((len(rows), longest), value) for value in (PAD, 0, -1))
    images = 0
    for i, (row, words) in enumerate(zip(written, rows, strict=True)):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        last, of_row = -1, []
        for word in words:
            last = images if word is None else last
            images += word is None
            of_row += [last] * (TOKENS if word is None else 1)
        ids[i, where], mask[i, where] = torch.tensor(row), 1
        index[i, where] = torch.tensor(of_row)
    pixels = torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(images))
    return {"input_ids": ids, "attention_mask": mask, "media_index": index, "pixels": pixels}


def reading(batch: dict[str, Any], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same batch as arguments of our model and of theirs."""
    common = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **more}
    if not len(batch["pixels"]):
        return common, common
    cached = MediaCache(media=features(batch["pixels"]))
    return (
        {**common, "media": cached, "media_index": batch["media_index"]},
        {**common, "pixel_values": batch["pixels"]},
    )


ROWS = st.lists(
    st.lists(st.one_of(st.none(), st.integers(1, IMAGE - 1)), min_size=1, max_size=7), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, side=st.sampled_from(["left", "right"]))
@torch.no_grad()
def test_logits_equal_llavas(rows: list[list[int | None]], side: str) -> None:
    batch = batch_of(rows, side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    mine, reference = reading(batch, position_ids=positions)
    is_text = batch["attention_mask"].bool()
    torch.testing.assert_close(
        ours()(**mine).logits[is_text], theirs()(**reference).logits[is_text], atol=TOLERANCE, rtol=TOLERANCE
    )


GREEDY = [
    ([[5, None, 7], [None, None, 8, 9, 3], [4]], "left"),
    ([[None], [3, None, 4, None, 5]], "left"),
    ([[7, 8, 9]], "left"),
]


@pytest.mark.parametrize(("rows", "side"), GREEDY)
@torch.no_grad()
def test_greedy_generations_equal_llavas(rows: list[list[int | None]], side: str) -> None:
    mine, reference = reading(batch_of(rows, side))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
    expected = theirs().generate(**reference, **options, suppress_tokens=[IMAGE])
    assert torch.equal(ours().generate(**mine, **options), expected)


@torch.no_grad()
def test_the_reference_tells_one_image_from_another() -> None:
    one, other = (batch_of([[5, None, 7]], "right") for _ in range(2))
    other["pixels"] = other["pixels"] + 1
    logits = [theirs()(**reading(batch)[1]).logits[0, -1] for batch in (one, other)]
    assert (logits[0] - logits[1]).abs().max() > 0.1
