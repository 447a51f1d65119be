"""What answering costs: bytes and operations against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training import cost
from flamingo_lite.training.cost import measure_cost

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]


def prompt(image_of: Callable[[int], Image]) -> Document:
    return Document([image_of(1), Text(" = 8", ends_chunk=True), image_of(2), Text(" =")])


def test_a_token_holds_the_keys_and_values_of_every_layer(
    joined: Joined, image_of: Callable[[int], Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "REPEATS", 1)
    model, processor = joined
    text = model.config.text_config
    width = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    found = measure_cost(model, processor, [prompt(image_of)])
    assert found.token_bytes == text.num_hidden_layers * 2 * width * 4
    assert found.prompt_bytes >= found.held_bytes >= found.positions * found.token_bytes
    assert found.images == 2


def test_a_token_takes_two_operations_for_each_weight_that_it_meets_at_least(
    joined: Joined, image_of: Callable[[int], Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "REPEATS", 1)
    model, processor = joined
    found = measure_cost(model, processor, [prompt(image_of)])
    matrices = [p.numel() for n, p in model.language.named_parameters() if p.ndim == 2 and "layers." in n]
    met = sum(matrices) + model.language.get_output_embeddings().weight.numel()
    projected = [
        p.numel() for n, p in model.language.named_parameters() if ".cross_attention." in n and "to_kv" in n
    ]
    # Media are projected once, and attention itself comes on top.
    assert 2 * (met - sum(projected)) <= found.token_flops <= 2 * met * 1.5
    assert found.prompt_flops > found.token_flops * found.positions * 0.5
