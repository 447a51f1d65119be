"""IDEFICS's vision encoder as a model of its own: transformers has it only as a part of the whole."""

from __future__ import annotations

from transformers import IdeficsVisionConfig
from transformers.models.idefics.modeling_idefics import IdeficsPreTrainedModel
from transformers.models.idefics.vision import IdeficsVisionTransformer


class IdeficsVisionModel(IdeficsPreTrainedModel):
    """`IdeficsVisionTransformer` with its keys, initialised and loaded as transformers' models are."""

    config: IdeficsVisionConfig  # pyrefly: ignore[bad-override-mutable-attribute]  # as in transformers' own halves
    main_input_name = "pixel_values"

    def __init__(self, config: IdeficsVisionConfig) -> None:
        super().__init__(config)
        for name, part in IdeficsVisionTransformer(config).named_children():
            self.add_module(name, part)
        self.post_init()

    forward = IdeficsVisionTransformer.forward
