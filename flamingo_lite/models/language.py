"""The language model: any Hugging Face causal LM, and new token rows as parameters of their own.

Shape letters: b batch, t text positions, k new tokens, d width, v vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.models.parts import backbone_directory, check_loading_info, on_meta_device, written_config

LOADING_ERRORS = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for a name, a revision, a file, a field or a library that is not there or not right."""


@dataclass
class LanguageConfig:
    """Which language model. `name`: "tiny", a directory, or a hub name; `pretrained` False leaves weights
    random.

    `config`: the architecture written out, as the fields of transformers' config with its `model_type`; it is
    taken instead of the source's config.json, so that random weights and plans need no file.
    """

    name: str = "tiny"
    revision: str | None = None
    pretrained: bool = True
    dtype: str = "float32"
    attention: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


def load_language(config: LanguageConfig) -> PreTrainedModel:
    """The causal LM; never runs code from the checkpoint.

    Raises FlamingoError in one line when it cannot load, when it is no decoder-only language model (an
    encoder, an encoder-decoder, a vision-language model), and when its weights are not all there.
    """
    written = written_config(config.config, "model.language.config") if config.config else None
    # Random weights of a written architecture come from nowhere: its name is not looked up.
    needs_source = config.pretrained or written is None
    source = (backbone_directory(config.name, "language") if needs_source else None) or config.name
    dtype = getattr(torch, config.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise FlamingoError(f"language.dtype is {config.dtype!r}; expected float32, bfloat16 or float16")
    options = {} if config.attention is None else {"attn_implementation": config.attention}
    if written is None and isinstance(source, Path) and not (source / "config.json").is_file():
        found = ", ".join(sorted(file.name for file in source.iterdir())[:6]) or "nothing"
        raise FlamingoError(
            f"cannot load the language model {config.name!r}: the directory holds no config.json (found: {found}); "
            "expected one that a causal language model was saved to"
        )
    try:
        known = written or AutoConfig.from_pretrained(
            source, revision=config.revision, trust_remote_code=False, local_files_only=on_meta_device()
        )
        refuse_other_models(known, config.name)
        if not config.pretrained:
            return AutoModelForCausalLM.from_config(known, dtype=dtype, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=known,
            revision=config.revision,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            **options,
        )
    except pickle.UnpicklingError as error:  # torch's own message advises to run it
        raise FlamingoError(
            f"cannot load the language model {config.name!r}: its weights are a pickle that holds more than "
            "tensors, and nothing of it was run; expected safetensors"
        ) from error
    except LOADING_ERRORS as error:
        raise FlamingoError(_cannot_load("language model", config, error)) from error
    language, info = loaded  # a pair only with output_loading_info
    # Heads that others have added are no part of it; weights inside the model that its config has no place for are.
    base = f"{language.base_model_prefix}."
    inside = [key for key in info["unexpected_keys"] if key.startswith(base)]
    check_loading_info(
        {**info, "unexpected_keys": inside},
        f"cannot load the language model {config.name!r}: expected a whole {type(language).__name__}, saved with its "
        "head and config.json",
    )
    return language


def refuse_other_models(config: PretrainedConfig, name: str) -> None:
    """Raise FlamingoError, naming what `name` holds, unless it is a decoder-only language model."""
    kind = type(config)
    found = None
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        found = "a vision-language model"
    elif config.is_encoder_decoder:
        found = "an encoder-decoder"
    # BERT and its kin have a causal head that their masked-language checkpoints do not use.
    elif kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        found = "an encoder"
    elif getattr(config, "use_bidirectional_attention", False) is True:
        found = "a model whose attention runs in both directions"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        found = "no language model"
    if found is not None:
        raise FlamingoError(
            f"language.name {name!r} holds {found} (model_type {config.model_type!r}); expected a decoder-only "
            "language model, one that AutoModelForCausalLM loads"
        )


def load_tokenizer(config: LanguageConfig) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, as it comes."""
    source = backbone_directory(config.name, "language") or config.name
    try:
        found = AutoTokenizer.from_pretrained(
            source, revision=config.revision, trust_remote_code=False, local_files_only=on_meta_device()
        )
        return cast(PreTrainedTokenizerBase, found)  # typed as if it might be None
    except LOADING_ERRORS as error:
        raise FlamingoError(_cannot_load("tokenizer", config, error)) from error


def _cannot_load(what: str, config: LanguageConfig, error: Exception) -> str:
    reason = first_line(error)
    revision = f" at revision {config.revision}" if config.revision else ""
    return (
        f"cannot load the {what} {config.name!r}{revision}: {reason}; expected 'tiny', a directory, or a "
        "hub name that "
        "is in the local cache or can be downloaded"
    )


def decoder_layers(language: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, found by structure: the one ModuleList of length `num_hidden_layers`."""
    count = language.config.get_text_config().num_hidden_layers
    found = [m for m in language.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise FlamingoError(
            f"{type(language).__name__} has {len(found)} module lists of length {count}, expected exactly "
            "one; "
            "its decoder layers cannot be told apart, so nothing can be inserted"
        )
    return found[0]


def context_length(config: PretrainedConfig) -> int | None:
    """The positions that the language model was made for, or None where the family states no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def accepted_arguments(language: PreTrainedModel) -> frozenset[str]:
    """The names in the LM's forward signature: MPT and BLOOM take no position_ids, for one."""
    return frozenset(inspect.signature(type(language).forward).parameters)


def add_new_rows(language: PreTrainedModel, first: int, count: int) -> None:
    """Give token ids `first .. first + count - 1` rows of their own, in the embedding and, when untied, in
    the head.

    The base matrices keep their shapes, keys and values, so that they can stay frozen, and the optimizer's
    state covers k rows only. `first` may lie inside the base matrix where that is padded beyond the
    tokenizer.
    """
    # Any: torch types a module's weight as Tensor | Module.
    embedding: Any = language.get_input_embeddings()
    head: Any = language.get_output_embeddings()
    if first > embedding.weight.shape[0]:
        raise FlamingoError(
            f"the tokenizer has {first} tokens before the new ones, the language model only "
            f"{embedding.weight.shape[0]} embeddings: they do not belong together"
        )
    if count == 0:
        return
    embedding.new_rows = nn.Parameter(_rows_like(embedding.weight, count))
    embedding.forward = functools.partial(embed_with_new_rows, embedding, first)
    if head is None:
        return
    is_tied = bool(language.config.get_text_config().tie_word_embeddings)
    if not is_tied:
        head.new_rows = nn.Parameter(_rows_like(head.weight, count))
    head.forward = functools.partial(head_with_new_rows, head, embedding if is_tied else head, first)


def embed_with_new_rows(embedding: nn.Module, first: int, ids: Tensor) -> Tensor:
    """The embedding's own forward, bound late; new ids read `new_rows`, scaled as Gemma scales its
    embeddings.
    """
    rows: Any = embedding.new_rows  # the parameter; torch types it as Tensor | Module
    is_new = (ids >= first) & (ids < first + len(rows))
    known = type(embedding).forward(embedding, ids.masked_fill(is_new, 0))
    new = F.embedding((ids - first).clamp(0, len(rows) - 1), rows) * getattr(embedding, "embed_scale", 1.0)
    return torch.where(is_new[..., None], new.to(known.dtype), known)


def head_with_new_rows(head: nn.Module, owner: nn.Module, first: int, hidden: Tensor) -> Tensor:
    """The head's own logits with the columns of the new ids put in; `owner` holds the rows (tied: the
    embedding).
    """
    known = type(head).forward(head, hidden)
    rows: Any = owner.new_rows  # the parameter; torch types it as Tensor | Module
    new = F.linear(hidden, rows.to(hidden.dtype))
    return torch.cat((known[..., :first], new, known[..., first + new.shape[-1] :]), dim=-1)


def _rows_like(weight: Tensor, count: int) -> Tensor:
    # Close to the mean row, so that an untrained token is neither loud as an input nor likely as an output.
    weight = weight.detach()
    noise = torch.randn(count, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return weight.mean(0) + 0.1 * weight.std(0) * noise
