"""VisionLanguageConfig: everything that rebuilds a model without its sources, as transformers saves it."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

from transformers import AutoConfig, PretrainedConfig


class VisionLanguageConfig(PretrainedConfig):
    """The parts' own configs, the join, and the ids of the new tokens.

    `text_config.vocab_size` counts the new rows (prompt lookup and beam search index logits by it), while
    `base_vocab_size` is that of the language model as it came. `sources` is the model config that `build` was
    given: names, revisions, weights. `adapters`: which linear maps have one beside them (models/adapters.py).
    """

    model_type = "flamingo_lite"
    # As in transformers' own composite configs; their base computes it in a property of the class.
    sub_configs = {"text_config": AutoConfig}  # pyrefly: ignore[bad-override]

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_tower: dict[str, Any] | None = None,
        connector: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        policy: dict[str, Any] | None = None,
        adapters: list[dict[str, Any]] | None = None,
        sources: dict[str, Any] | None = None,
        image_token_id: int = 0,
        first_new_token: int = 0,
        new_tokens: int = 0,
        base_vocab_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        # AutoModel makes the config before it looks the model up by it (see registration.py).
        import_module("flamingo_lite.models.model")
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        elif text_config is not None:
            # A copy, and its attention implementation set again below: an outer config built around the
            # config of an existing model resets it to None, and the causal mask is then dropped without a
            # word.
            text_config = copy.deepcopy(text_config)
        attention = getattr(text_config, "_attn_implementation", None)
        self.text_config = text_config if text_config is not None else AutoConfig.for_model("llama")
        self.vision_tower = vision_tower or {}
        self.connector = connector or {}
        self.fusion = fusion or {}
        self.policy = policy or {}
        self.adapters = adapters or []
        self.sources = sources or {}
        self.image_token_id = image_token_id
        self.first_new_token = first_new_token
        self.new_tokens = new_tokens
        self.base_vocab_size = base_vocab_size or self.text_config.vocab_size
        self.text_config.vocab_size = max(self.base_vocab_size, first_new_token + new_tokens)
        kwargs["tie_word_embeddings"] = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)
        if attention is not None:
            self.text_config._attn_implementation = attention

    def language_config(self) -> PretrainedConfig:
        """The language model's config as it came: a copy without the new rows."""
        config = copy.deepcopy(self.text_config)
        config._attn_implementation = self.text_config._attn_implementation
        config.vocab_size = self.base_vocab_size
        return config


AutoConfig.register(VisionLanguageConfig.model_type, VisionLanguageConfig, exist_ok=True)
