"""Runs under other policies than the default: adapters in checkpoints, optimizer state, groups of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch

from flamingo_lite.checkpoints.io import load
from flamingo_lite.models.adapters import MARK, adapters_of, is_packed
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy, frozen_sha256
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.optim import OptimizerConfig, build_optimizer, parameter_groups
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe
from tests.training.test_stages import Interrupted, interrupt_after

LORA: dict[str, Any] = {"language.*": {"mode": "lora", "rank": 4, "dropout": 0.1, "learning_rate": 0.02}}
QLORA: dict[str, Any] = {"language.*": {"mode": "qlora", "rank": 4}}


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


@pytest.mark.parametrize("policy", [LORA, QLORA], ids=["lora", "qlora"])
def test_a_run_with_adapters_resumes_with_the_same_losses_and_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    whole = run_stage(recipe(tmp_path / "whole", policy=policy))
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(Interrupted):
            run_stage(recipe(tmp_path / "parts", policy=policy))
    parts = run_stage(recipe(tmp_path / "parts", policy=policy))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first, second = (dict(load(path)[0].named_parameters()) for path in (whole, parts))
    assert all(torch.equal(parameter, second[name]) for name, parameter in first.items())
    assert any(parameter.any() for name, parameter in first.items() if f"{MARK}B" in name)


def test_the_checkpoint_and_the_optimizer_hold_what_trains_adapters_and_new_rows_included(
    recipe: Recipe, tmp_path: Path
) -> None:
    model, _ = load(run_stage(recipe(tmp_path / "run", policy=LORA)))
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-00000006.ckpt", weights_only=True)
    sizes = {f"model.{name}": p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert {name: t.shape for name, t in checkpoint["state_dict"].items()} == sizes
    (rows,) = [shape for name, shape in sizes.items() if name.endswith("new_rows")]
    assert rows[0] == model.config.new_tokens < 10
    state = checkpoint["optimizer_states"][0]["state"]
    assert sum(s["exp_avg"].numel() for s in state.values()) == sum(shape.numel() for shape in sizes.values())


def test_a_stage_on_a_model_with_adapters_keeps_them_and_trains_what_it_says(
    recipe: Recipe, tmp_path: Path
) -> None:
    first = run_stage(recipe(tmp_path / "first", policy=LORA))
    before, _ = load(first)
    second = run_stage(
        recipe(
            tmp_path / "second", start=str(first), policy={"connector.*": "frozen", "vision.*": "bias_norm"}
        )
    )
    after, _ = load(second)
    assert adapters_of(after) == adapters_of(before)
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved and not any(MARK in name or name.startswith("connector.") for name in moved)
    assert any(name.startswith("vision.") for name in moved)


def test_a_run_leaves_frozen_weights_of_four_bits_as_they_were(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(tmp_path / "run", policy=QLORA)
    torch.manual_seed(0)
    start = build(config.model)
    apply_policy(start, QLORA)
    trained, _ = load(run_stage(config))
    assert frozen_sha256(trained) == frozen_sha256(start)


@pytest.mark.parametrize("bias", [None, "bias_norm"])
def test_biases_beside_four_bits_stay_in_their_type_under_mixed_precision(
    recipe: Recipe, tmp_path: Path, bias: str | None
) -> None:
    """bitsandbytes casts a bias to the type of what it meets, for good: a frozen one would be changed, a master cut."""
    adapted = {"vision.*": {"mode": "qlora", "rank": 2}, **({"*.bias": bias} if bias else {})}
    types: list[torch.dtype] = []

    class Look(lightning.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            layers = [m for m in pl_module.modules() if is_packed(m) and m.bias is not None]
            types.extend(layer.bias.dtype for layer in layers)
            assert {layer.compute_dtype for layer in layers} == set(types)

    config = recipe(tmp_path / "run", policy=adapted, precision="bf16-mixed", steps=2, samples=0)
    run_stage(config, callbacks=[Look()])  # which hashes what is frozen
    assert set(types) == {torch.float32 if bias else torch.bfloat16}


def groups_of(model: VisionLanguageModel, policy: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = {id(p): name for name, p in model.named_parameters()}
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.3, gate_factor=2.0)
    return {
        str(group["name"]): {**group, "params": {names[id(p)] for p in group["params"]}}  # type: ignore[attr-defined]
        for group in parameter_groups(model, config, policy)
    }


def test_an_entry_with_a_rate_and_a_decay_has_groups_of_its_own(model: VisionLanguageModel) -> None:
    policy = {
        "language.*": {"mode": "lora", "rank": 4, "learning_rate": 0.01, "weight_decay": 0.0},
        "*.cross_attention.*": {"mode": "full", "learning_rate": 0.02},
    }
    apply_policy(model, policy)
    groups = groups_of(model, policy)
    adapters = groups["language.* matrices"]
    assert adapters["params"] == {n for n, p in model.named_parameters() if MARK in n}
    assert (adapters["lr"], adapters["weight_decay"]) == (0.01, 0.0)
    blocks = groups["*.cross_attention.* matrices"]
    assert (blocks["lr"], blocks["weight_decay"]) == (0.02, 0.3)
    assert groups["*.cross_attention.* gates"]["lr"] == pytest.approx(0.04)
    assert groups["*.cross_attention.* vectors"]["weight_decay"] == 0.0
    assert (groups["matrices"]["lr"], groups["matrices"]["weight_decay"]) == (0.1, 0.3)
    assert all(name.startswith("connector.") for name in groups["matrices"]["params"])
    every = [name for group in groups.values() for name in group["params"]]
    assert sorted(every) == sorted(n for n, p in model.named_parameters() if p.requires_grad)


def test_the_optimizer_keeps_two_rows_and_not_the_matrix(model: VisionLanguageModel) -> None:
    optimizer, _ = build_optimizer(model, OptimizerConfig(), steps=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    embedding: Any = model.get_input_embeddings()
    assert embedding.weight not in optimizer.state
    assert optimizer.state[embedding.new_rows]["exp_avg"].shape == (model.config.new_tokens, 32)
    assert set(optimizer.state) == {p for p in model.parameters() if p.requires_grad}
