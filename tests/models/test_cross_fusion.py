"""What every flavour of gated cross-attention promises inside a language model, and where its blocks stand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from flamingo_lite.batch import Batch
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.cross_fusion import with_heads_of
from flamingo_lite.models.language import decoder_layers
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.gated import GatedConfig
from flamingo_lite.processing import VisionLanguageProcessor

TOLERANCE = 1e-5

IDEFICS: dict[str, Any] = {
    "place": "start", "heads": None, "dim_head": None, "gate": "vector", "norm": "rms", "norm_eps": 1e-6,
    "qk_norm": "rms", "feed_forward": "swiglu", "feed_forward_width": 40,
}  # fmt: skip
FLAVOURS: dict[str, dict[str, Any]] = {
    "idefics": IDEFICS,
    "idefics, every second layer, all images": {**IDEFICS, "every": 2, "sees": "all_previous"},
    "shared keys": {**IDEFICS, "gate": "scalar", "place": "end", "key_value_heads": 1},
    "layer norms": {"qk_norm": "layer", "gate": "vector", "sees": "all_previous"},
}


def with_fusion(model_config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**model_config, "fusion": {**model_config["fusion"], **fields}}


@pytest.fixture(params=FLAVOURS)
def flavoured(
    request: pytest.FixtureRequest,
    model_config: dict[str, Any],
    set_gates: Callable[[VisionLanguageModel, float], VisionLanguageModel],
) -> VisionLanguageModel:
    """A model of each flavour, gates open."""
    torch.manual_seed(2)
    return set_gates(build(with_fusion(model_config, **FLAVOURS[request.param])), 0.7).eval()


@pytest.fixture
def batch(processor: VisionLanguageProcessor, image_of: Callable[[int], Image]) -> Batch:
    """Several images, text before the first, and a row without any."""
    documents = [["ab", image_of(0), "c", image_of(1), "d"], [image_of(2), image_of(3), "ab"], ["abc"]]
    return processor([Document(segments) for segments in documents], complete=True)


def test_with_gates_at_zero_logits_are_bit_identical(
    flavoured: VisionLanguageModel,
    batch: Batch,
    processor: VisionLanguageProcessor,
    set_gates: Callable[[VisionLanguageModel, float], VisionLanguageModel],
    language_directory: Path,
) -> None:
    alone = AutoModelForCausalLM.from_pretrained(language_directory).eval()
    # <image> is no word of the language model alone: replace the mark, which only its own column would show.
    ids = batch.input_ids.masked_fill(batch.input_ids == processor.image_token_id, 5)
    fields = {**batch, "input_ids": ids, "labels": None}
    with torch.no_grad():
        theirs = alone(ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
        assert not torch.equal(flavoured(**fields).logits[..., : theirs.shape[-1]], theirs)
        ours = set_gates(flavoured, 0.0)(**fields).logits
    assert torch.equal(ours[..., : theirs.shape[-1]], theirs)


def test_cached_decoding_equals_full_recomputation(
    flavoured: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    prompts = processor([Document([image_of(0), "ab", image_of(1), "c"]), Document(["xy"])])
    options = {
        "max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    cached = flavoured.generate(**prompts, **options, use_cache=True)
    full = flavoured.generate(**prompts, **options, use_cache=False)
    assert torch.equal(cached.sequences, full.sequences)
    for a, b in zip(cached.logits, full.logits, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(
    flavoured: VisionLanguageModel, batch: Batch, reentrant: bool
) -> None:
    plain, recomputed = copy.deepcopy(flavoured).train(), flavoured.train()
    plain(**batch).loss.backward()
    recomputed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    recomputed(**batch).loss.backward()
    for (name, p), q in zip(recomputed.named_parameters(), plain.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None and q.grad is not None, name
            torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_text_alone_leaves_no_trained_parameter_without_gradient(
    flavoured: VisionLanguageModel, processor: VisionLanguageProcessor
) -> None:
    flavoured.train()(**processor([Document(["abc"])], complete=True)).loss.backward()
    assert [n for n, p in flavoured.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_saved_model_gives_the_same_logits(
    flavoured: VisionLanguageModel, batch: Batch, tmp_path: Path
) -> None:
    flavoured.save_pretrained(tmp_path)
    again = VisionLanguageModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, flavoured(**batch).logits)


@pytest.mark.parametrize(("place", "layer"), [("end", 1), ("start", 0)])
def test_a_block_stands_at_the_place_named(model_config: dict[str, Any], place: str, layer: int) -> None:
    model = build(with_fusion(model_config, every=2, place=place))
    assert list(model.blocks) == [layer]
    assert [hasattr(x, "cross_attention") for x in decoder_layers(model.language)] == [
        i == layer for i in range(2)
    ]


def test_gates_start_where_the_config_says(model_config: dict[str, Any]) -> None:
    model = build(with_fusion(model_config, gate="vector", gate_mean=1.0))
    for value in (value for pair in model.gate_values().values() for value in pair):
        assert value == pytest.approx(math.tanh(1))


def test_heads_left_open_are_the_language_models_own(model_config: dict[str, Any]) -> None:
    attention = build(with_fusion(model_config, heads=None, dim_head=None)).blocks[0].attention
    assert attention.heads == 2
    assert attention.to_q.weight.shape == (32, 32)


def test_heads_that_no_language_model_tells_are_asked_for() -> None:
    with pytest.raises(FlamingoError, match="fusion.heads is null, and the config of") as error:
        with_heads_of(PretrainedConfig(), GatedConfig(heads=None))
    assert "\n" not in str(error.value)


def test_an_interval_longer_than_the_language_model_is_refused(model_config: dict[str, Any]) -> None:
    with pytest.raises(FlamingoError, match="fusion.every is 3, but the language model has 2 layers"):
        build(with_fusion(model_config, every=3))
