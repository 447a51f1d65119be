"""A step on fake tensors: its bytes against the allocator's own record of the real step, its arithmetic by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import ModelConfig, model_config_from
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.training.optim import OptimizerConfig, build_optimizer
from flamingo_lite.training.plan import device_memory, meta_model, state_of
from flamingo_lite.training.trial import StepShape, autocast, run_trial, step_inputs

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
LANGUAGES: list[dict[str, Any]] = [
    {
        "model_type": "llama", "vocab_size": 500, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    {"model_type": "mpt", "vocab_size": 400, "d_model": 64, "n_heads": 4, "n_layers": 4, "max_seq_len": 512},
    {
        "model_type": "opt", "vocab_size": 600, "hidden_size": 64, "ffn_dim": 256, "num_hidden_layers": 4,
        "num_attention_heads": 4, "word_embed_proj_dim": 64,
    },
]  # fmt: skip
PERCEIVER = {"name": "perceiver", "depth": 2, "latents": 8, "heads": 2, "dim_head": 16}
CROSS = {"heads": 4, "dim_head": 16}
SYSTEMS: list[dict[str, Any]] = [
    {"connector": PERCEIVER, "fusion": {**CROSS, "every": 1}},
    {"connector": PERCEIVER, "fusion": {**CROSS, "every": 2, "place": "start", "sees": "all_previous"}},
    {"connector": {"name": "mlp"}, "fusion": {"name": "prefix"}, "policy": {"language.*": "full"}},
]


def tiny(language: dict[str, Any], **parts: Any) -> ModelConfig:
    return model_config_from(
        {"vision": {"config": CLIP, "pretrained": False}, "language": {"config": language}, **parts}
    )


def drawn(seed: int) -> tuple[ModelConfig, StepShape, int, bool]:
    """A model, the shape of a row, a number of rows, and whether activations are recomputed, by chance."""
    chance = random.Random(seed)
    config = tiny(chance.choice(LANGUAGES), **chance.choice(SYSTEMS))
    shape = StepShape(
        length=chance.choice([96, 160, 224]),
        images=chance.randint(1, 3),
        precision=chance.choice(["32-true", "bf16-mixed"]),
        packed=chance.random() < 0.5,
    )
    return config, shape, chance.randint(2, 9), chance.random() < 0.5


def with_numbers(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model on the CPU: small numbers will do, as bytes do not depend on them."""
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    return model


def measured_peak(model: VisionLanguageModel, shape: StepShape, rows: int) -> int:
    """Most bytes that live at once in a step, as the allocator records them. Not the first, which has no moments yet."""
    optimizer, _ = build_optimizer(model, OptimizerConfig(), 10)
    inputs = step_inputs(model, shape, rows)

    def step() -> None:
        with autocast(shape.precision):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    state = [tensor for moments in optimizer.state.values() for tensor in moments.values()]
    held = {
        t.untyped_storage()._cdata: t.nbytes
        for t in (*model.parameters(), *model.buffers(), *state, *inputs.values())
    }
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return sum(held.values()) + most


@pytest.mark.parametrize("seed", range(4))
def test_the_predicted_peak_is_within_5_percent_of_the_measured_one(seed: int) -> None:
    config, shape, rows, checkpointing = drawn(seed)
    model = meta_model(config, checkpointing)
    memory = device_memory("single", state_of(model, foreach=False), run_trial(model, shape, rows), ranks=1)
    measured = measured_peak(with_numbers(meta_model(config, checkpointing)), shape, rows)
    assert memory.peak == pytest.approx(measured, rel=0.05)


def test_the_arithmetic_is_what_torchs_counter_counts(torchs_counter: FlopCounterMode) -> None:
    config, shape = tiny(LANGUAGES[0], **SYSTEMS[0]), StepShape(length=96, images=2)
    model = with_numbers(meta_model(config))
    with torchs_counter:
        model(**step_inputs(model, shape, 2)).loss.backward()
    assert sum(run_trial(meta_model(config), shape, 2).flops.values()) == torchs_counter.get_total_flops()


def test_frozen_parts_have_the_arithmetic_of_the_forward_pass_alone() -> None:
    # A patch embedding of 8 x 8 x 3 for 16 patches, then two blocks over 17 tokens: q, k, v, out, feed-forward, attention.
    config = tiny(LANGUAGES[0], **SYSTEMS[0])
    images, tokens, d, inner = 4, 17, 48, 96
    block = 2 * tokens * (4 * d * d + 2 * d * inner) + 2 * 2 * tokens * tokens * d
    expected = images * (2 * 16 * 3 * 64 * d + 2 * block)
    assert (
        run_trial(meta_model(config), StepShape(length=96, images=2), 2).flops["vision encoder"] == expected
    )


def test_what_trains_has_three_times_the_arithmetic_of_its_forward_pass() -> None:
    config, shape = tiny(LANGUAGES[0], **SYSTEMS[2]), StepShape(length=96, images=2)
    # Two linear layers from 48 to 64 to 64 over the 16 patches of each of 4 images; the first one's input needs no gradient.
    first, second = (2 * 4 * 16 * n * 64 for n in (48, 64))
    assert run_trial(meta_model(config), shape, 2).flops["connector"] == 2 * first + 3 * second


def test_images_that_do_not_fit_into_a_row_are_one_line() -> None:
    with pytest.raises(FlamingoError, match="3 images take 48 positions of a row"):
        run_trial(meta_model(tiny(LANGUAGES[0], **SYSTEMS[2])), StepShape(length=40, images=3), 2)
