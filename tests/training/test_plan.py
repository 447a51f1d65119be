"""The plan: parameters of published systems against transformers' own classes, and the sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    GPTNeoXConfig,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MptConfig,
    OPTConfig,
    PretrainedConfig,
)

from flamingo_lite.config import load_config
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.adapters import is_packed
from flamingo_lite.models.build import build, model_config_from
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.training.four_bits import quantize_on_paper
from flamingo_lite.training.plan import (
    State,
    device_memory,
    largest_rows,
    make_plan,
    meta_model,
    parts_of,
    sent_bytes,
    unsharded,
)
from flamingo_lite.training.trial import Trial


def preset(name: str) -> VisionLanguageModel:
    return meta_model(load_config([f"model={name}"]).model)


def count(model: nn.Module, *left_out: str) -> int:
    """The parameters whose names hold none of `left_out`, shared ones once. Each of `left_out` has to occur."""
    named = dict(model.named_parameters())
    assert all(any(part in name for name in named) for part in left_out)
    return sum(p.numel() for name, p in named.items() if not any(part in name for part in left_out))


@pytest.mark.parametrize(("name", "width", "inner", "layers", "heads"), [
    ("idefics_9b", 4096, 11008, 32, 32),
    ("idefics_80b", 8192, 22016, 80, 64),
])  # fmt: skip
def test_idefics_has_the_parameters_of_transformers_class(
    name: str, width: int, inner: int, layers: int, heads: int
) -> None:
    config = IdeficsConfig(
        vocab_size=32000, additional_vocab_size=2, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, cross_layer_interval=4, qk_layer_norms=True,
        use_resampler=True, vision_config={"embed_dim": 1280},
        perceiver_config={"use_resampler": True, "qk_layer_norms_perceiver": True},
    )  # fmt: skip
    with torch.device("meta"):
        reference = IdeficsForVisionText2Text(config)
    # It norms the class token for an output that nothing reads; its new rows are two, ours as many as may be needed.
    unread = ("vision_model.post_layernorm", "additional_embedding", "additional_fc")
    assert count(preset(name), "new_rows") == count(reference, *unread)


@pytest.mark.parametrize(("name", "width", "inner", "layers", "heads"), [
    ("llava_1_5_7b", 4096, 11008, 32, 32),
    ("llava_1_5_13b", 5120, 13824, 40, 40),
])  # fmt: skip
def test_llava_has_the_parameters_of_transformers_class(
    name: str, width: int, inner: int, layers: int, heads: int
) -> None:
    text = {
        "model_type": "llama", "vocab_size": 32064, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.device("meta"):
        reference = LlavaForConditionalGeneration(LlavaConfig(text_config=text))
    # It reads the second to last layer: the last one and the norm behind it have no effect.
    unread = ("vision_tower.encoder.layers.23.", "vision_tower.post_layernorm")
    assert count(preset(name), "new_rows") == count(reference, *unread)


def test_blip2_has_the_parameters_of_transformers_class() -> None:
    text = OPTConfig(
        hidden_size=2560,
        ffn_dim=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        word_embed_proj_dim=2560,
    )
    with torch.device("meta"):
        reference = Blip2ForConditionalGeneration(Blip2Config(text_config=text.to_dict()))
    assert count(preset("blip2_opt_2_7b"), "new_rows") == count(reference)


@pytest.mark.parametrize(("name", "config"), [
    ("openflamingo_3b", MptConfig(d_model=2048, n_heads=16, n_layers=24, vocab_size=50368)),
    ("openflamingo_4b", GPTNeoXConfig(
        vocab_size=50432, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32,
    )),
    ("openflamingo_9b", MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=50432)),
])  # fmt: skip
def test_openflamingos_language_model_has_the_parameters_of_transformers_class(
    name: str, config: PretrainedConfig
) -> None:
    with torch.device("meta"):
        reference = AutoModelForCausalLM.from_config(config)
    assert parts_of(preset(name))["language model"].parameters == count(reference)


@pytest.mark.parametrize(("name", "width", "blocks"), [
    ("openflamingo_3b", 2048, 24), ("openflamingo_4b", 2560, 16), ("openflamingo_9b", 4096, 8),
])  # fmt: skip
def test_openflamingos_join_has_the_parameters_that_its_code_gives(
    name: str, width: int, blocks: int
) -> None:
    # open_flamingo/src/helpers.py: attention of 8 heads of 64 from 1024 wide media, feed-forward of four times the width.
    block = 2 * width + width * 512 + 1024 * 1024 + 512 * width + 2 * width + 8 * width**2 + 2
    layer = 4 * 1024 + 1024 * 512 + 1024 * 1024 + 512 * 1024 + 2 * 1024 + 8 * 1024**2
    parts = parts_of(preset(name))
    assert parts["cross-attention"].parameters == blocks * block
    assert parts["connector"].parameters == 64 * 1024 + 6 * layer + 2 * 1024
    assert parts["new rows"].parameters == 3 * width * (2 if name == "openflamingo_4b" else 1)


def test_only_the_join_trains_by_default() -> None:
    trains = {name for name, part in parts_of(preset("openflamingo_9b")).items() if part.trainable}
    assert trains == {"connector", "cross-attention", "new rows"}


STATE = State(weights=1000, gradients=200, optimizer=400, scratch=200, unit=120, unit_gradients=30, root=100)


def test_one_device_holds_everything_once() -> None:
    assert device_memory("single", STATE, Trial(500, 600, {}), ranks=4).peak == 1000 + 400 + 600


def test_the_optimizers_scratch_space_is_the_peak_where_activations_are_few() -> None:
    assert device_memory("single", STATE, Trial(50, 210, {}), ranks=4).peak == 1000 + 400 + 200 + 200


def test_ddp_holds_the_gradients_twice() -> None:
    single, ddp = (device_memory(name, STATE, Trial(500, 600, {}), ranks=4) for name in ("single", "ddp"))
    assert ddp.peak == single.peak + 200


def test_fsdp_shards_the_state_and_gathers_two_layers() -> None:
    fsdp = device_memory("fsdp", STATE, Trial(500, 600, {}), ranks=4)
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (250, 50, 100)
    assert fsdp.peak == 250 + 50 + 100 + 500 + (100 + 2 * 120 + 30)


def test_ddp_sends_the_gradients_round_twice_and_fsdp_what_it_gathers_in_every_part() -> None:
    assert sent_bytes("single", STATE, ranks=4, accumulate=2) == 0
    assert sent_bytes("ddp", STATE, ranks=4, accumulate=2) == 2 * 200 * 3 / 4
    assert sent_bytes("fsdp", STATE, ranks=4, accumulate=2) == (2 * (100 + 2 * 900) + 200) * 3 / 4
    assert sent_bytes("ddp", STATE, ranks=1, accumulate=1) == sent_bytes("fsdp", STATE, 1, 1) == 0


@settings(deadline=None)
@given(
    st.integers(0, 50),
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40)), min_size=1, max_size=3),
    st.integers(0, 2000),
    st.integers(1, 60),
)
def test_the_largest_batch_fits(base: int, lines: list[tuple[int, int]], spare: int, start: int) -> None:
    def peak(rows: int) -> int:
        return base + max([a * (rows > 0) + b * rows for a, b in lines])

    rows = largest_rows(peak, base + spare, nothing=base, start=start)
    assert peak(rows) <= base + spare


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 2000), st.integers(1, 60))
def test_one_row_more_than_the_largest_batch_does_not_fit(
    base: int, slope: int, spare: int, start: int
) -> None:
    rows = largest_rows(lambda n: base + slope * n, base + spare, nothing=base, start=start)
    assert base + slope * rows <= base + spare < base + slope * (rows + 1)


SMALL = [
    "model.language.config={model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 2, vocab_size: 512}",
    "model.vision.config={embed_dim: 32, vision_cfg: {image_size: 32, patch_size: 16, layers: 1, width: 32, "
    "head_width: 16}}",
    "model.connector.depth=1",
]


def plan_of(*overrides: str, model: Sequence[str] = SMALL) -> Any:
    """For memory that no row fits, unless it is said: a search for the largest batch takes many trials."""
    few = ["stage.batch_size=2", "plan.length=64", "plan.strategy=single", "plan.memory_gb=0.001"]
    config = load_config(["model=flamingo_tiny", *model, *few, *overrides])
    return make_plan(config, config.plan)


def test_the_largest_batch_is_where_the_next_row_would_be_too_many() -> None:
    memory = "plan.memory_gb=0.008"
    rows = plan_of(memory).largest_rows["single"]
    assert rows > 2
    at, above = (plan_of(f"stage.batch_size={n}").memory["single"] for n in (rows, rows + 1))
    assert at.peak <= 0.008e9 < above.peak


def test_a_batch_is_shared_among_devices_and_accumulated_parts_as_in_training() -> None:
    shared = plan_of("stage.batch_size=24", "plan.strategy=all", "plan.ranks=4", "trainer.accumulate=2")
    assert shared.rows == {"single": 12, "ddp": 3, "fsdp": 3}
    assert shared.memory["ddp"].activations == plan_of("stage.batch_size=3").memory["single"].activations


def test_the_arithmetic_is_of_the_whole_step_however_it_is_shared() -> None:
    whole = plan_of("stage.batch_size=8")
    shared = plan_of("stage.batch_size=8", "plan.strategy=ddp", "plan.ranks=4", "trainer.accumulate=2")
    assert shared.flops == whole.flops


def test_packed_rows_are_as_long_as_the_stage_says() -> None:
    lengths = ("plan.length=null", "stage.max_length=64", "stage.row_length=96")
    assert plan_of(*lengths, "stage.pack=true").shape.length == 96
    assert plan_of(*lengths, "stage.pack=false").shape.length == 64


def test_what_a_stages_policy_trains_is_planned_for() -> None:
    parts = plan_of("stage.policy={vision.*: full}").parts
    assert parts["vision encoder"].trainable == parts["vision encoder"].parameters


QLORA, LORA = ({"language.*": {"mode": mode, "rank": 4}} for mode in ("qlora", "lora"))


def test_four_bits_weigh_in_a_plan_what_they_weigh_in_bitsandbytes(model_config: dict[str, Any]) -> None:
    planned, real = (
        make(model_config_from({**model_config, "policy": QLORA})) for make in (meta_model, build)
    )
    assert quantize_on_paper(planned)
    layers = {name: layer for name, layer in real.named_modules() if is_packed(layer)}
    assert {name for name, layer in planned.named_modules() if is_packed(layer)} == set(layers)
    for name, layer in layers.items():
        state: Any = layer.weight.quant_state  # pyrefly: ignore[missing-attribute]
        size = layer.weight.nbytes + state.absmax.nbytes + state.code.nbytes
        assert planned.get_submodule(name).weight.nbytes == size
    plain = meta_model(model_config_from({**model_config, "policy": LORA}))
    numbers = [{name: part.parameters for name, part in parts_of(m).items()} for m in (planned, plain)]
    assert numbers[0] == numbers[1]


def test_four_bits_take_less_memory_and_the_same_arithmetic() -> None:
    policy = "stage.policy={{language.*: {{mode: {}, rank: 4}}}}".format
    few = ("stage.batch_size=1", "plan.length=16")
    lora, qlora = (plan_of(*few, policy(mode), model=()) for mode in ("lora", "qlora"))
    assert qlora.flops == lora.flops
    plain, packed = (plan.parts["language model"].weight_bytes for plan in (lora, qlora))
    assert packed < 0.25 * plain
    assert lora.memory["single"].weights - qlora.memory["single"].weights == plain - packed
    assert qlora.memory["single"].peak < lora.memory["single"].peak


def test_four_bits_are_not_planned_for_where_they_are_not_shared() -> None:
    with pytest.raises(FlamingoError, match=r"qlora.*not shared among devices; use plan\.strategy=ddp"):
        plan_of("stage.policy={language.*: qlora}", "plan.strategy=fsdp")
    assert unsharded("all") == ("single", "ddp")


def test_checkpointing_takes_less_memory_and_more_arithmetic() -> None:
    plain, recomputed = plan_of(), plan_of("plan.checkpointing=true")
    assert recomputed.memory["single"].activations < plain.memory["single"].activations
    assert sum(recomputed.flops.values()) > sum(plain.flops.values())


@pytest.mark.parametrize(("override", "expected"), [
    ("plan.strategy=fdsp", "did you mean 'fsdp'?"),
    ("plan.ranks=0", "plan.ranks is 0; expected 1 or more"),
    ("plan.memory_gb=-1", "plan.memory_gb is -1"),
    ("plan.lenght=3", "did you mean 'plan.length'?"),
    ("trainer.accumulate=3", "stage.batch_size=2 does not divide"),
    ("plan.images=100", "100 images take 100 positions"),
    ("plan.length=100000", "the language model reads"),
    ("model.language.name=nobody/nothing", "cannot load the language model 'nobody/nothing'"),
    ("model.language.config={model_type: lama}", "did you mean 'llama'?"),
    ("model.language.config={hidden_size: 3}", "model.language.config has no model_type"),
    ("model.language.config={model_type: llama, hiden_size: 3}", "did you mean 'hidden_size'?"),
    ("model.vision.config={embed_dim: 3}", "expected embed_dim and vision_cfg"),
])  # fmt: skip
def test_bad_input_is_one_line(override: str, expected: str) -> None:
    with pytest.raises(FlamingoError) as raised:
        plan_of(override, model=())
    assert expected in str(raised.value) and "\n" not in str(raised.value)
