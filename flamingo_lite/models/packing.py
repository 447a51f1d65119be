"""Documents packed into one row of a language model: one mask per attention type keeps them apart.

What decides is the config's attention types and a table of families whose packed logits were tested to equal
those of the documents alone (docs/language_models.md). Every other family is refused by name.

Shape letters: b batch, t text positions.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from flamingo_lite.errors import FlamingoError
from flamingo_lite.nn.masks import packing_mask

KEPT_APART = frozenset({
    "apertus", "arcee", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "deepseek_v2", "ernie4_5",
    "exaone4", "falcon", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode",
    "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "llama",
    "mistral", "mixtral", "mpt", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3",
    "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
    "vaultgemma", "xglm",
})  # fmt: skip
"""Families whose packed logits were tested to equal those of each document alone (tests/models)."""

NOT_KEPT_APART = {"bloom": "its ALiBi is computed from a mask (b t), so it takes none of (b 1 t t)"}
"""Families in which no mask that they take keeps documents apart, and why."""

ATTENTION_TYPES = ("full_attention", "sliding_attention")
MASKED_ATTENTION = ("eager", "sdpa")
"""The implementations that read a mask (b 1 t t). Flash attention wants the documents' lengths instead, flex
attention a block mask."""


def packed_masks(
    language: PreTrainedModel,
    segment_ids: Tensor,
    attention_mask: Tensor | None = None,
    also: Tensor | None = None,
) -> Tensor | dict[str, Tensor]:
    """What `language` takes as `attention_mask` when its rows hold several documents (`segment_ids` b t).

    Additive masks (b 1 t t) in the language model's dtype: one tensor where all layers attend alike, else one
    for each attention type by name. `also` (b t t) bool: pairs that see each other against causality, within
    a document. Raises FlamingoError, by name, for a language model that cannot keep documents apart.
    """
    refuse_packing(language)
    masks = {
        name: packing_mask(segment_ids, attention_mask, language.dtype, window, also)
        for name, window in attention_windows(language.config).items()
    }
    return masks if has_layer_types(language.config) else next(iter(masks.values()))


def attention_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """The sliding window of each attention type that the layers have, None where a layer sees everything.

    transformers' convention: models with `layer_types` name a type per layer, in the others all layers slide
    when `sliding_window` is set.
    """
    config = config.get_text_config()
    window = declared(config, "sliding_window")
    if not has_layer_types(config):
        return {"full_attention" if window is None else "sliding_attention": window}
    return {name: window if name == "sliding_attention" else None for name in sorted(set(config.layer_types))}


def has_layer_types(config: PretrainedConfig) -> bool:
    """Does the model choose a mask for each layer by the layer's attention type?"""
    return declared(config.get_text_config(), "layer_types") is not None


def declared(config: PretrainedConfig, field: str) -> Any:
    """The field's value, None unless the family knows the field: a config keeps whatever its file says, and a
    Llama converted from Mistral says `sliding_window` though no layer slides.
    """
    return getattr(config, field, None) if field in inspect.signature(type(config)).parameters else None


def refuse_packing(language: PreTrainedModel) -> None:
    """Raise FlamingoError, by name, for a language model in which no mask keeps packed documents apart."""
    config = language.config.get_text_config()
    reason = _why_not(config)
    if reason is not None:
        raise FlamingoError(
            f"packed documents (segment_ids) are not supported for {config.model_type}: {reason}; "
            "train without packing (stage.pack=false)"
        )


def _why_not(config: PretrainedConfig) -> str | None:
    attention = getattr(config, "_attn_implementation", None)
    windows = attention_windows(config)
    foreign = [name for name in windows if name not in ATTENTION_TYPES]
    if config.model_type in NOT_KEPT_APART:
        return NOT_KEPT_APART[config.model_type]
    if getattr(config, "alibi", False):
        return "with alibi=true it computes its positions from a mask (b t), so it takes none of (b 1 t t)"
    if config.model_type not in KEPT_APART:
        return f"it is not among the families tested, which are {', '.join(sorted(KEPT_APART))}"
    if foreign:
        return f"its layers have {', '.join(foreign)}, expected only {' or '.join(ATTENTION_TYPES)}"
    if "sliding_attention" in windows and windows["sliding_attention"] is None:
        return "its layers slide, but sliding_window is not set in its config"
    if attention not in MASKED_ATTENTION:
        return (
            f"its attention is {attention!r}, expected {' or '.join(MASKED_ATTENTION)} (language.attention)"
        )
    return None
