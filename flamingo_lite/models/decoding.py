"""Ways of decoding that cannot be had, refused by name before anything is computed.

transformers keeps some of them as code on its hub, which is never run here; others bypass the model's forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from flamingo_lite.errors import FlamingoError

CODE_ON_THE_HUB = {
    "penalty_alpha": "contrastive search",
    "dola_layers": "DoLa",
    "num_beam_groups": "group beam search",
    "force_words_ids": "constrained beam search",
    "constraints": "constrained beam search",
}
"""The option that asks for a way of decoding whose code transformers loads from its hub."""

INSTEAD = "choose greedy, sampling, beams, prompt lookup or an assistant model"


def check_decoding(options: Mapping[str, Any], config: GenerationConfig | None) -> None:
    """Raise FlamingoError for what `options` of `generate`, or the generation `config`, ask for and cannot be had."""
    for name, way in CODE_ON_THE_HUB.items():
        value = options.get(name, getattr(config, name, None))
        # One group is plain beam search, and a penalty of 0 is none.
        if value not in (None, 0, 1) or (name == "penalty_alpha" and value):
            raise FlamingoError(
                f"{name}={value!r} asks for {way}, whose code transformers loads from its hub; code from "
                f"elsewhere is never run: {INSTEAD}"
            )
    if isinstance(options.get("custom_generate"), str) or options.get("trust_remote_code"):
        raise FlamingoError(
            f"custom_generate={options.get('custom_generate')!r}, trust_remote_code="
            f"{options.get('trust_remote_code')!r}: code from elsewhere is never run; give a function of your own, or "
            f"{INSTEAD}"
        )
    if options.get("guidance_scale", getattr(config, "guidance_scale", None)) not in (None, 1, 1.0):
        raise FlamingoError(
            "guidance_scale runs a second prompt beside the first, to which transformers gives no images; leave it out"
        )
    if options.get("assistant_early_exit", getattr(config, "assistant_early_exit", None)):
        raise FlamingoError(
            "assistant_early_exit drafts with the first layers of the language model alone, without images; give an "
            "assistant_model"
        )


def check_assistant(model: PreTrainedModel, assistant: Any, is_encoded: bool) -> None:
    """Raise FlamingoError unless `assistant` reads the same ids and can see the images itself."""
    if not isinstance(assistant, type(model)):
        raise FlamingoError(
            f"assistant_model is a {type(assistant).__name__}, which knows neither images nor <image>; expected a "
            f"{type(model).__name__} with the same tokenizer"
        )
    if is_encoded:
        raise FlamingoError(
            "an assistant_model sees images through its own encoder, but media holds them encoded by another; give "
            "pixel_values instead"
        )
