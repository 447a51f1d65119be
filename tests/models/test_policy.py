"""The policy's table: which entry decides, what each mode trains, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console

from flamingo_lite.config import load_config
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.adapters import adapters_of
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy, policy_table


def trained(model: VisionLanguageModel) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def join(model: VisionLanguageModel) -> set[str]:
    """What trains by default."""
    return {
        name
        for name, _ in model.named_parameters()
        if name.startswith("connector.") or ".cross_attention." in name or name.endswith("new_rows")
    }


def test_bias_norm_adds_biases_and_norms_and_leaves_the_rest_to_the_entries_before(
    model: VisionLanguageModel,
) -> None:
    apply_policy(model, {"language.*": "bias_norm", "vision.*": "bias_norm"})
    more = trained(model) - join(model)
    assert join(model) <= trained(model)
    assert {name for name in more if name.startswith("language.")} == {
        name for name, _ in model.language.named_parameters(prefix="language") if "norm" in name
    } - join(model)
    seen = {name for name in more if name.startswith("vision.")}
    assert all(name.endswith("bias") or "ln_" in name for name in seen) and any("ln_" in n for n in seen)


def test_new_rows_trains_the_rows_of_new_tokens_and_not_the_matrix(model: VisionLanguageModel) -> None:
    apply_policy(model, {"*.new_rows": "frozen", "language.*": "new_rows"})
    assert [n for n in trained(model) if "embed" in n or "lm_head" in n] == [
        "language.model.embed_tokens.new_rows"
    ]


def test_lora_adapts_the_frozen_linear_maps_and_leaves_the_join_whole(model: VisionLanguageModel) -> None:
    before = join(model)
    apply_policy(model, {"language.*": {"mode": "lora", "rank": 4}})
    assert {name for name in trained(model) if ".lora_" not in name} == before
    adapted = {name.rpartition(".")[2] for name in adapters_of(model)}
    assert adapted == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert not any("cross_attention" in name or "lm_head" in name for name in adapters_of(model))


def test_targets_choose_among_the_linear_maps(model: VisionLanguageModel) -> None:
    apply_policy(model, {"language.*": {"mode": "lora", "targets": ["q_proj", "v_proj"]}})
    assert {name.rpartition(".")[2] for name in adapters_of(model)} == {"q_proj", "v_proj"}


def test_blocks_are_adapted_where_their_own_entry_says_so(model: VisionLanguageModel) -> None:
    apply_policy(model, {"*.cross_attention.*": "lora", "*_gate": "full"})
    assert {name.split(".cross_attention.")[1] for name in adapters_of(model)} >= {
        "attention.to_q", "attention.to_kv", "attention.to_out"
    }  # fmt: skip
    in_blocks = {name for name in trained(model) if ".cross_attention." in name}
    assert all(".lora_" in name or name.endswith("_gate") for name in in_blocks)


def test_a_later_entry_takes_a_layer_out_of_the_adapted_ones(model: VisionLanguageModel) -> None:
    apply_policy(model, {"language.*": "lora", "language.model.layers.1.self_attn.*": "full"})
    assert not any("layers.1.self_attn" in name for name in adapters_of(model))
    assert "language.model.layers.1.self_attn.q_proj.weight" in trained(model)


def test_no_number_of_the_table_is_cut_in_a_narrow_terminal(model: VisionLanguageModel) -> None:
    rows = apply_policy(model)
    printed = io.StringIO()
    Console(file=printed, width=80).print(policy_table(rows, 1e-4))
    assert all(f"{row.numbers:,}" in printed.getvalue() for row in rows) and "…" not in printed.getvalue()


def test_a_policy_applied_twice_is_applied_once(model: VisionLanguageModel) -> None:
    policy = {"language.*": "lora"}
    rows = apply_policy(model, policy)
    names = [name for name, _ in model.named_parameters()]
    assert apply_policy(model, policy) == rows
    assert [name for name, _ in model.named_parameters()] == names


def test_adapters_of_an_earlier_policy_stay_and_are_frozen(model: VisionLanguageModel) -> None:
    apply_policy(model, {"language.*": "lora"})
    apply_policy(model, {})
    assert adapters_of(model) and trained(model) == join(model)


def test_the_vision_encoders_own_attention_is_left_alone(model: VisionLanguageModel) -> None:
    apply_policy(model, {"vision.*": "lora"})
    assert adapters_of(model) and not any(".attn." in name for name in adapters_of(model))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"langauge.*": "full"}, r"matches no parameter; did you mean 'language\.\*'"),
        ({"language.*": "loar"}, "did you mean 'lora'"),
        ({"language.*": {"mode": "lora", "rang": 4}}, "unknown field of policy .* did you mean 'rank'"),
        ({"language.*": {"mode": "full", "rank": 4}}, "has rank, which full does not read"),
        ({"language.*": {"mode": "lora", "rank": 0}}, "rank is 0"),
        ({"language.*": {"mode": "lora", "rank": 1.5}}, "expected a whole number"),
        ({"language.*": {"mode": "lora", "dropout": 1.0}}, "dropout is 1.0"),
        ({"language.*": {"mode": "lora", "targets": "q_proj"}}, r"expected a list of names"),
        ({"language.*": {"mode": "lora", "targets": ["query"]}}, "unknown target of policy 'language"),
        (
            {"language.*": {"mode": "lora", "targets": ["q_proj", "v_porj"]}},
            "'v_porj'; did you mean 'v_proj'",
        ),
        ({"language.*": {"learning_rate": -1}}, "learning_rate is -1"),
        ({"connector.*": "new_rows"}, "finds nothing to train there"),
        ({"language.model.layers.*.cross_attention.*": "lora"}, "entries before it leave frozen"),
        ({"vision.*": 3}, "expected a mode"),
    ],
)
def test_what_cannot_be_is_one_line(model: VisionLanguageModel, policy: dict[str, Any], message: str) -> None:
    with pytest.raises(FlamingoError, match=message):
        apply_policy(model, policy)


def test_another_adapter_than_the_one_that_is_there_is_refused(model: VisionLanguageModel) -> None:
    apply_policy(model, {"language.*": {"mode": "lora", "rank": 4}})
    with pytest.raises(FlamingoError, match="has an adapter with .*'rank': 4.*merge"):
        apply_policy(model, {"language.*": {"mode": "lora", "rank": 8}})


def test_a_pattern_with_an_asterisk_is_given_on_the_command_line() -> None:
    override = (
        "model.policy={vision.*: bias_norm, "
        "language.*: {mode: lora, rank: 4, targets: [q_proj, v_proj], learning_rate: 1e-4}}"
    )
    assert load_config([override]).model.policy == {
        "vision.*": "bias_norm",
        "language.*": {"mode": "lora", "rank": 4, "targets": ["q_proj", "v_proj"], "learning_rate": 1e-4},
    }


def test_the_table_says_of_each_part_what_trains_how_and_at_which_rate(model: VisionLanguageModel) -> None:
    rows = apply_policy(model, {"language.*": {"mode": "lora", "rank": 4, "learning_rate": 2e-4}})
    assert sum(row.numbers for row in rows) == sum(p.numel() for p in model.parameters())
    assert sum(row.trainable for row in rows) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    console = Console(file=io.StringIO(), width=140)
    console.print(policy_table(rows, learning_rate=1e-3))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO, typed as IO
    assert "all in float32" in shown
    adapters = next(line for line in shown.splitlines() if "adapters" in line)
    assert all(word in adapters for word in ("language.*", "lora", "0.0002"))
    connector = next(line for line in shown.splitlines() if "connector" in line)
    assert "full" in connector and "0.001" in connector


def test_a_model_whose_policy_has_adapters_is_built_on_the_meta_device(model_config: dict[str, Any]) -> None:
    written = {**model_config, "policy": {"language.*": "qlora"}}
    with torch.device("meta"):
        model = build(written)
    assert adapters_of(model) and all(p.device.type == "meta" for p in model.parameters())
