"""Masks of packed documents are those of transformers; what cannot be kept apart is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from language_families import FAMILIES, PACKED_ALONE, Family, random_language
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.masking_utils import create_causal_mask, create_masks_for_generate, sliding_window_overlay

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.packing import KEPT_APART, attention_windows, packed_masks
from flamingo_lite.nn.masks import packed_positions, packing_mask

SMALL: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1,
    "num_key_value_heads": 1, "attn_implementation": "eager",
}  # fmt: skip
MIXED = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}
CONFIGS: dict[str, PretrainedConfig] = {
    "full": LlamaConfig(**SMALL),
    "sliding": MistralConfig(**SMALL, sliding_window=3),
    "both": Qwen3Config(**SMALL, **MIXED, sliding_window=2),
}
LANGUAGE = {name: AutoModelForCausalLM.from_config(config) for name, config in CONFIGS.items()}
# At least two documents per row: of one alone transformers says nothing about packing.
LENGTHS = st.lists(st.integers(1, 6), min_size=2, max_size=4)


def segments_of(lengths: list[int]) -> torch.Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(CONFIGS))
@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_masks_of_packed_documents_equal_those_of_transformers(
    name: str, dtype: torch.dtype, lengths: list[int]
) -> None:
    segment_ids = segments_of(lengths)
    language = LANGUAGE[name].to(dtype)
    theirs = create_masks_for_generate(
        config=language.config,
        inputs_embeds=torch.zeros(*segment_ids.shape, 8, dtype=dtype),
        attention_mask=None,
        past_key_values=None,
        position_ids=packed_positions(segment_ids),
    )
    ours = packed_masks(language, segment_ids)
    assert isinstance(ours, dict) == isinstance(theirs, dict) == (name == "both")
    pairs = [(ours[kind], theirs[kind]) for kind in theirs] if name == "both" else [(ours, theirs)]
    assert all(torch.equal(mine, expected) for mine, expected in pairs)


@pytest.mark.parametrize("window", [None, 3])
@settings(max_examples=30, deadline=None)
@given(blocks=st.lists(st.integers(-1, 2), min_size=2, max_size=10))
def test_pairs_seen_against_causality_equal_those_of_transformers(
    window: int | None, blocks: list[int]
) -> None:
    block = torch.tensor([blocks])
    also = (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, :, None]
    theirs = create_causal_mask(
        config=CONFIGS["full"],
        inputs_embeds=torch.zeros(*block.shape, 8),
        attention_mask=None,
        past_key_values=None,
        or_mask_function=lambda row, head, query, key: also[row, query, key],
        and_mask_function=None if window is None else sliding_window_overlay(window),
    )
    ours = packing_mask(torch.zeros_like(block), None, torch.float32, window, also)
    assert torch.equal(ours, theirs)


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS)
def test_positions_restart_at_each_document(lengths: list[int]) -> None:
    expected = [position for length in lengths for position in range(length)]
    assert packed_positions(segments_of(lengths))[0].tolist() == expected


def test_attention_types_are_read_from_the_config() -> None:
    assert attention_windows(CONFIGS["full"]) == {"full_attention": None}
    assert attention_windows(CONFIGS["sliding"]) == {"sliding_attention": 3}
    assert attention_windows(CONFIGS["both"]) == {"full_attention": None, "sliding_attention": 2}


def test_a_window_that_the_family_does_not_know_is_none() -> None:
    converted = LlamaConfig(**SMALL, sliding_window=2, layer_types=["sliding_attention"] * 2)
    language = AutoModelForCausalLM.from_config(converted)
    segment_ids = torch.zeros(1, 4, dtype=torch.int64)
    assert attention_windows(converted) == {"full_attention": None}
    assert torch.equal(packed_masks(language, segment_ids), packing_mask(segment_ids, None, torch.float32))


@pytest.mark.parametrize(
    ("model_type", "values", "message"),
    [
        ("bloom", {"n_head": 1, "n_layer": 1}, "not supported for bloom: its ALiBi"),
        ("falcon", {"alibi": True}, "not supported for falcon: with alibi=true"),
        (
            "xlnet",
            {"d_model": 8, "n_head": 1, "d_inner": 8, "n_layer": 1},
            "not supported for xlnet: it is not among the families tested",
        ),
        (
            "qwen3",
            {**MIXED, "use_sliding_window": False, "sliding_window": None},
            "its layers slide, but sliding_window is not set",
        ),
        (
            "qwen3",
            {"layer_types": ["full_attention", "linear_attention"]},
            "its layers have linear_attention, expected only full_attention or sliding_attention",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(
    model_type: str, values: dict[str, Any], message: str
) -> None:
    config = AutoConfig.for_model(model_type, **{**SMALL, **values})
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(config)
    with pytest.raises(FlamingoError, match=message) as error:
        packed_masks(language, torch.zeros(1, 4, dtype=torch.int64))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_reads_no_such_mask_is_refused_by_name(attention: str) -> None:
    language = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    language.config._attn_implementation = attention  # the model's own setter asks for the kernels
    with pytest.raises(FlamingoError, match=f"its attention is '{attention}', expected eager or sdpa"):
        packed_masks(language, torch.zeros(1, 4, dtype=torch.int64))


def test_every_family_that_packs_is_tested() -> None:
    tested = {family.model_type for family in (*FAMILIES.values(), *PACKED_ALONE.values())}
    assert tested - {"bloom"} == KEPT_APART


@pytest.mark.parametrize("family", PACKED_ALONE.values(), ids=PACKED_ALONE)
def test_packed_documents_have_the_logits_that_they_have_alone(family: Family) -> None:
    language = random_language(family).eval()
    documents = torch.arange(3, 10)[None], torch.arange(20, 25)[None]
    segment_ids = segments_of([7, 5])
    with torch.no_grad():
        together = language(
            torch.cat(documents, 1),
            attention_mask=packed_masks(language, segment_ids),
            position_ids=packed_positions(segment_ids),
        ).logits[0]
        alone = torch.cat([language(ids).logits[0] for ids in documents])
    assert alone.std() > 1e-2
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
