"""The language models of the test matrix: one tiny random model for each family and variant, listed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.vision import VisionConfig, load_vision, tower_to_dict

# The last four rows of the base matrix lie beyond its tokenizer, as in Qwen.
WORDS, FIRST_NEW, NEW = 64, 60, 5
WINDOW = 4  # shorter than the documents of the tests

COMMON = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {**COMMON, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT_LIKE = {**SIZES, "max_position_embeddings": 64, "intermediate_size": 24}
LLAMA_LIKE = {**GPT_LIKE, "num_key_value_heads": 1, "head_dim": 8}
HALF_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA_LIKE = {**LLAMA_LIKE, **HALF_SLIDING, "query_pre_attn_scalar": 8}
GPT2 = {
    **COMMON, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}  # fmt: skip
OPT = {**SIZES, "max_position_embeddings": 64, "ffn_dim": 24, "dropout": 0.0}
FALCON = {
    **SIZES,
    "alibi": False,
    "new_decoder_architecture": False,
    "parallel_attn": True,
    "multi_query": True,
}


@dataclass(frozen=True)
class Family:
    """A family or one of its variants: transformers' model type, config values, what is special about it."""

    model_type: str
    values: Mapping[str, Any]
    note: str = ""
    refuses_packing: bool = False

    def config(self) -> PretrainedConfig:
        return AutoConfig.for_model(self.model_type, **self.values)

    @property
    def embeddings_are_tied(self) -> bool:
        return bool(self.config().tie_word_embeddings)


FAMILIES: dict[str, Family] = {
    "Llama": Family("llama", LLAMA_LIKE),
    "Llama, tied": Family("llama", {**LLAMA_LIKE, "tie_word_embeddings": True}),
    "Mistral": Family("mistral", {**LLAMA_LIKE, "sliding_window": None}),
    "Mistral, sliding": Family("mistral", {**LLAMA_LIKE, "sliding_window": WINDOW}, "all layers slide"),
    "Qwen2": Family("qwen2", LLAMA_LIKE),
    "Qwen2, sliding": Family(
        "qwen2", {**LLAMA_LIKE, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "full and sliding layers",
    ),
    "Qwen3": Family("qwen3", {**LLAMA_LIKE, **HALF_SLIDING, "use_sliding_window": True}, "full and sliding layers"),
    "Gemma": Family("gemma", LLAMA_LIKE, "scaled embeddings"),
    "Gemma2": Family("gemma2", GEMMA_LIKE, "full and sliding layers, capped logits"),
    "Gemma3": Family("gemma3_text", GEMMA_LIKE, "full and sliding layers, scaled embeddings"),
    "Phi": Family("phi", {**GPT_LIKE, "partial_rotary_factor": 0.5}, "bias in the head"),
    "Phi3": Family("phi3", {**GPT_LIKE, "num_key_value_heads": 1}),
    "Phi3, sliding": Family(
        "phi3", {**GPT_LIKE, "num_key_value_heads": 1, "sliding_window": WINDOW}, "all layers slide"
    ),
    "OPT": Family("opt", OPT),
    "OPT-350m": Family(
        "opt", {**OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
        "embeddings narrower than the layers",
    ),
    "GPT-2": Family("gpt2", GPT2),
    "GPT-2, untied": Family("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "GPT-NeoX": Family("gpt_neox", GPT_LIKE),
    "GPT-J": Family("gptj", {**GPT2, "rotary_dim": 4}, "bias in the head, eager attention only"),
    "MPT": Family(
        "mpt", {**COMMON, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "expansion_ratio": 2},
        "ALiBi",
    ),
    "BLOOM": Family("bloom", {**COMMON, "hidden_size": 16, "n_layer": 2, "n_head": 2}, "ALiBi", True),
    "Falcon": Family("falcon", FALCON, "rotary"),
    "Falcon, ALiBi": Family("falcon", {**FALCON, "alibi": True}, "ALiBi", True),
    "StableLM": Family("stablelm", {**GPT_LIKE, "num_key_value_heads": 1}),
    "OLMo2": Family("olmo2", {**GPT_LIKE, "num_key_value_heads": 1}),
    "SmolLM3": Family(
        "smollm3", {**GPT_LIKE, **HALF_SLIDING, "num_key_value_heads": 1, "use_sliding_window": True,
        "no_rope_layers": [1, 0]}, "full and sliding layers, one without rotary positions",
    ),
    "Granite": Family("granite", {**LLAMA_LIKE, "logits_scaling": 3.0}, "scaled logits"),
    "Cohere": Family("cohere", {**LLAMA_LIKE, "logit_scale": 0.2}, "scaled logits"),
}  # fmt: skip

EXPERTS = {
    "moe_intermediate_size": 8, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 8,
}  # fmt: skip
LATENT = {  # DeepSeek's attention, in which keys and values are kept as a latent
    **GPT_LIKE, **EXPERTS, "q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
SLIDING = {**LLAMA_LIKE, "sliding_window": WINDOW}
XGLM = {**COMMON, "d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 24, "dropout": 0.0}
PACKED_ALONE: dict[str, Family] = {
    "Apertus": Family("apertus", LLAMA_LIKE),
    "Arcee": Family("arcee", LLAMA_LIKE),
    "BioGPT": Family("biogpt", GPT_LIKE),
    "BitNet": Family("bitnet", LLAMA_LIKE),
    "CodeGen": Family("codegen", {**GPT2, "n_head": 4, "rotary_dim": 4}),
    "Cohere2": Family("cohere2", {**LLAMA_LIKE, **HALF_SLIDING, "logit_scale": 1.0}),
    "DeepSeek-V2": Family("deepseek_v2", LATENT),
    "ERNIE 4.5": Family("ernie4_5", LLAMA_LIKE),
    "EXAONE 4": Family("exaone4", {**LLAMA_LIKE, **HALF_SLIDING}),
    "FlexOlmo": Family("flex_olmo", {**LLAMA_LIKE, **EXPERTS}),
    "GLM": Family("glm", LLAMA_LIKE),
    "GLM-4": Family("glm4", LLAMA_LIKE),
    "GPT-BigCode": Family("gpt_bigcode", GPT2),
    "GPT-Neo": Family(
        "gpt_neo", {**GPT_LIKE, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW}
    ),
    "gpt-oss": Family("gpt_oss", {**LLAMA_LIKE, **HALF_SLIDING, **EXPERTS}),
    "GraniteMoE": Family("granitemoe", {**LLAMA_LIKE, **EXPERTS}),
    "Helium": Family("helium", LLAMA_LIKE),
    "Hunyuan": Family("hunyuan_v1_dense", LLAMA_LIKE),
    "Mixtral": Family("mixtral", {**SLIDING, **EXPERTS}),
    "Nemotron": Family("nemotron", LLAMA_LIKE),
    "OLMo": Family("olmo", LLAMA_LIKE),
    "OLMo3": Family("olmo3", {**LLAMA_LIKE, **HALF_SLIDING}),
    "OLMoE": Family("olmoe", {**LLAMA_LIKE, **EXPERTS}),
    "Persimmon": Family("persimmon", GPT_LIKE),
    "PhiMoE": Family("phimoe", {**SLIDING, **EXPERTS}),
    "Qwen2-MoE": Family("qwen2_moe", {**LLAMA_LIKE, **HALF_SLIDING, **EXPERTS, "use_sliding_window": True}),
    "Qwen3-MoE": Family("qwen3_moe", {**SLIDING, **EXPERTS, "use_sliding_window": True}),
    "Seed-OSS": Family("seed_oss", LLAMA_LIKE),
    "StarCoder2": Family("starcoder2", {**SLIDING, "residual_dropout": 0.0, "embedding_dropout": 0.0}),
    "VaultGemma": Family("vaultgemma", GEMMA_LIKE),
    "XGLM": Family("xglm", XGLM),
}  # fmt: skip
"""Families of which nothing but packing is tested here."""


def random_language(family: Family, attention: str | None = None) -> PreTrainedModel:
    """A random model of the family, its matrices wide enough that a leak between positions shows."""
    torch.manual_seed(0)
    options = {} if attention is None else {"attn_implementation": attention}
    language = AutoModelForCausalLM.from_config(family.config(), **options)
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.normal_(std=0.2)
    return language


def join(language: PreTrainedModel, vision_directory: Path) -> VisionLanguageModel:
    """`language` with five new tokens, one of them past its matrix, and a block before each layer."""
    torch.manual_seed(1)
    tower, vision = load_vision(VisionConfig(str(vision_directory)))
    config = VisionLanguageConfig(
        text_config=language.config,
        vision_tower=tower_to_dict(tower),
        connector={"depth": 1, "latents": 2, "heads": 2, "dim_head": 4, "ff_mult": 1},
        fusion={"every": 1, "heads": 2, "dim_head": 4, "ff_mult": 1},
        image_token_id=FIRST_NEW,
        first_new_token=FIRST_NEW,
        new_tokens=NEW,
    )
    return VisionLanguageModel(config, vision=vision, language=language)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
