"""The head of a language model: from hidden states to logits, for some positions at a time.

Shape letters: k positions, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

HEAD_POST_PROCESSING = (
    "final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "logits_soft_cap",
)  # fmt: skip
"""Config fields of families that do more than one linear map between hidden states and logits."""


def capped(logits: Tensor, cap: float) -> Tensor:
    return torch.tanh(logits / cap) * cap


POST_PROCESSING: dict[str, tuple[str, Callable[[Tensor, Any], Tensor]]] = {
    **dict.fromkeys(("gemma2", "gemma3_text"), ("final_logit_softcapping", capped)),
    **dict.fromkeys(("cohere", "cohere2"), ("logit_scale", torch.mul)),
    **dict.fromkeys(("granite", "granitemoe"), ("logits_scaling", torch.div)),
}
"""By model_type: the field, and what is done with it. The same field multiplies in one family and divides in another."""


def has_plain_head(language: PreTrainedModel) -> bool:
    """Are logits one linear map of the hidden states?"""
    config = language.config.get_text_config()
    scales = (getattr(config, name, None) for name in HEAD_POST_PROCESSING)
    return language.get_output_embeddings() is not None and all(scale in (None, 1, 1.0) for scale in scales)


def head_of(language: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """(k d) -> (k v), as the language model's own forward computes them; None where it alone knows how."""
    head: Any = language.get_output_embeddings()
    if has_plain_head(language):
        return head
    config = language.config.get_text_config()
    field, process = POST_PROCESSING.get(config.model_type, (None, None))
    if head is None or field is None or process is None:
        return None
    value = getattr(config, field)
    return lambda states: process(head(states), value)


def head_parameters(language: PreTrainedModel) -> list[nn.Parameter]:
    """All that the head reads: its own, and the embedding's, whose matrix or new rows a tied head shares."""
    owners = (language.get_output_embeddings(), language.get_input_embeddings())
    return list(dict.fromkeys(p for owner in owners if owner is not None for p in owner.parameters()))
