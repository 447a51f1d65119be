"""The join in language models of many families: what holds for one must hold for all, or be refused by
name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.vision import VisionConfig, load_vision, tower_to_dict

TOLERANCE = 1e-5
WORDS, FIRST_NEW = 64, 60  # the last four rows of the base matrix lie beyond its tokenizer, as in Qwen

COMMON = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {**COMMON, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT_LIKE = {**SIZES, "max_position_embeddings": 64, "intermediate_size": 24}
LLAMA_LIKE = {**GPT_LIKE, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "llama-tied": {**LLAMA_LIKE, "tie_word_embeddings": True, "model_type": "llama"},
    "mistral": {**LLAMA_LIKE, "sliding_window": None},
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gemma2": {**LLAMA_LIKE, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**LLAMA_LIKE, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "granite": {**LLAMA_LIKE, "logits_scaling": 3.0},
    "cohere": {**LLAMA_LIKE, "logit_scale": 0.2},
    "gpt2": {**COMMON, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt_neox": GPT_LIKE,
    "opt": {
        **SIZES, "max_position_embeddings": 64, "ffn_dim": 24, "word_embed_proj_dim": 8, "dropout": 0.0,
        "do_layer_norm_before": False,
    },
    "mpt": {**COMMON, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "expansion_ratio": 2},
    "bloom": {**COMMON, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": {
        **SIZES, "alibi": False, "new_decoder_architecture": False, "parallel_attn": True,
        "multi_query": True,
    },
}  # fmt: skip
REFUSE_PACKING = {"gemma2", "gemma3_text", "granite", "cohere", "bloom", "falcon"}


def language_config(family: str) -> PretrainedConfig:
    values = dict(FAMILIES[family])
    return AutoConfig.for_model(values.pop("model_type", family), **values)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def joined(
    family: str, vision_directory: Any, set_gates: Callable[[VisionLanguageModel, float], VisionLanguageModel]
) -> VisionLanguageModel:
    """A random language model of the family with five new tokens, one of them past its matrix."""
    torch.manual_seed(0)
    tower, vision = load_vision(VisionConfig(str(vision_directory)))
    language = AutoModelForCausalLM.from_config(language_config(family))
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.normal_(std=0.2)
    config = VisionLanguageConfig(
        text_config=language.config,
        vision_tower=tower_to_dict(tower),
        connector={"depth": 1, "latents": 2, "heads": 2, "dim_head": 4, "ff_mult": 1},
        fusion={"every": 1, "heads": 2, "dim_head": 4, "ff_mult": 1},
        image_token_id=FIRST_NEW,
        first_new_token=FIRST_NEW,
        new_tokens=5,
    )
    return set_gates(VisionLanguageModel(config, vision=vision, language=language), 0.7).eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two rows, the second padded on the left, with three images and new tokens."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([[60, 5, 61, 60, 7, 8, 64], [0, 0, 0, 9, 60, 11, 12]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]),
        "media_index": torch.tensor([[0, 0, 0, 1, 1, 1, 1], [-1, -1, -1, -1, 2, 2, 2]]),
        "pixel_values": torch.randn(3, 3, 16, 16, generator=generator),
    }


def second_row_alone(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    row = {name: value[1:, 3:] for name, value in batch.items() if name != "pixel_values"}
    index = row["media_index"]
    return {
        **row,
        "media_index": index.where(index < 0, index - 2),
        "pixel_values": batch["pixel_values"][2:],
    }


def test_gates_at_zero_leave_the_logits_of_known_words(
    family: str,
    joined: VisionLanguageModel,
    batch: dict[str, Tensor],
    set_gates: Callable[[VisionLanguageModel, float], VisionLanguageModel],
) -> None:
    batch["input_ids"] = batch["input_ids"].where(batch["input_ids"] < FIRST_NEW, 3)
    alone = AutoModelForCausalLM.from_config(language_config(family)).eval()
    state = joined.language.state_dict()
    alone.load_state_dict({key: state[key] for key in alone.state_dict()})
    positions = {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        ours = set_gates(joined, 0.0)(**batch).logits
        theirs = alone(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **(positions if "position_ids" in joined.accepted else {}),
        ).logits
    assert torch.equal(ours[..., :FIRST_NEW], theirs[..., :FIRST_NEW])
    assert ours.shape[-1] == FIRST_NEW + 5


def test_a_row_does_not_depend_on_its_padding_or_neighbours(
    joined: VisionLanguageModel, batch: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        together = joined(**batch).logits[1, 3:]
        alone = joined(**second_row_alone(batch)).logits[0]
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_a_cache_equals_generation_without(
    joined: VisionLanguageModel, batch: dict[str, Tensor], beams: int
) -> None:
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    cached = joined.generate(**batch, **options, use_cache=True)
    full = joined.generate(**batch, **options, use_cache=False)
    assert torch.equal(cached, full)


def test_the_loss_of_training_is_that_of_the_full_logits(
    joined: VisionLanguageModel, batch: dict[str, Tensor]
) -> None:
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == FIRST_NEW, -100)
    joined.train()
    for module in joined.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained = joined(**batch, labels=labels).loss
    trained.backward()
    assert [n for n, p in joined.named_parameters() if p.requires_grad and p.grad is None] == []
    torch.testing.assert_close(trained, joined.eval()(**batch, labels=labels).loss)


def test_packing_keeps_documents_apart_or_is_refused_by_name(
    family: str, joined: VisionLanguageModel, batch: dict[str, Tensor]
) -> None:
    one = {name: value[:1] for name, value in batch.items() if name != "pixel_values"}
    two = second_row_alone(batch)
    packed = {
        "input_ids": torch.cat((one["input_ids"], two["input_ids"]), 1),
        "attention_mask": torch.ones(1, 11, dtype=torch.int64),
        "position_ids": torch.cat((torch.arange(7), torch.arange(4)))[None],
        "segment_ids": torch.tensor([[0] * 7 + [1] * 4]),
        "media_index": torch.cat((one["media_index"], batch["media_index"][1:, 3:]), 1),
        "pixel_values": batch["pixel_values"],
    }
    if family in REFUSE_PACKING:
        with pytest.raises(FlamingoError, match=f"not supported for {family}"):
            joined(**packed)
        return
    with torch.no_grad():
        together = joined(**packed).logits[0]
        torch.testing.assert_close(
            together[:7],
            joined(**one, pixel_values=batch["pixel_values"][:2]).logits[0],
            atol=1e-5,
            rtol=1e-5,
        )
        torch.testing.assert_close(together[7:], joined(**two).logits[0], atol=1e-5, rtol=1e-5)


def test_saving_and_loading_is_bit_identical(
    joined: VisionLanguageModel, batch: dict[str, Tensor], tmp_path: Any
) -> None:
    joined.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, joined(**batch).logits)
    assert loaded.config.text_config._attn_implementation == joined.config.text_config._attn_implementation
