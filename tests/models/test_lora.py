"""Adapters that a policy puts in: equal to PEFT's own, saved whole, merged, over weights of four bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import flamingo_lite as fl
from flamingo_lite.batch import Batch
from flamingo_lite.document import Document, Image
from flamingo_lite.models.adapters import MARK, adapters_of, merge_adapters
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.processing import VisionLanguageProcessor

LORA = {"language.*": {"mode": "lora", "rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"]}}
QLORA = {"language.*": {**LORA["language.*"], "mode": "qlora"}}

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]


@pytest.fixture
def batch(joined: Joined, image_of: Callable[[int], Image]) -> Batch:
    documents = [Document([image_of(0), "ab", image_of(1)]), Document(["no image"])]
    return joined[1](documents, complete=True)


def train(model: VisionLanguageModel, batch: Batch, steps: int = 2) -> VisionLanguageModel:
    """The first step moves only the half of an adapter that starts at 0."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def logits(model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.fixture(params=[LORA, QLORA], ids=["lora", "qlora"])
def adapted(request: pytest.FixtureRequest, joined: Joined, batch: Batch) -> VisionLanguageModel:
    model = joined[0]
    model.config.policy = request.param
    torch.manual_seed(3)
    apply_policy(model, request.param)
    return train(model, batch)


def test_an_adapted_model_trains_as_one_that_peft_wraps(joined: Joined, batch: Batch) -> None:
    ours = joined[0]
    theirs: Any = get_peft_model(
        copy.deepcopy(ours), LoraConfig(r=4, lora_alpha=8, target_modules=r".*\.(q_proj|v_proj|down_proj)")
    )
    # PEFT trains nothing beside its adapters.
    join = dict.fromkeys(("connector.*", "*.new_rows", "*.cross_attention.*"), "frozen")
    if not ours.blocks:
        del join["*.cross_attention.*"]
    apply_policy(ours, LORA | join)
    given = {name: p for name, p in theirs.named_parameters() if MARK in name}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if MARK in name:
                parameter.copy_(given.pop(f"base_model.model.{name}"))
    assert not given
    torch.testing.assert_close(logits(train(ours, batch), batch), logits(train(theirs, batch), batch))


def test_what_is_adapted_stays_as_it_was_beside_its_adapter(
    joined: Joined, batch: Batch, adapted: VisionLanguageModel
) -> None:
    for name, parameter in adapted.named_parameters():
        if MARK in name:
            assert parameter.requires_grad and parameter.any(), name
        elif "base_layer" in name:
            assert not parameter.requires_grad and parameter.grad is None


def test_a_saved_model_comes_back_with_its_adapters_bit_for_bit(
    adapted: VisionLanguageModel, batch: Batch, tmp_path: Path
) -> None:
    fl.save(adapted, None, tmp_path / "model")
    loaded = fl.load_model(tmp_path / "model")
    assert adapters_of(loaded) == adapters_of(adapted)
    assert torch.equal(logits(loaded, batch), logits(adapted, batch))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trained


def test_a_training_checkpoint_comes_back_with_its_adapters_bit_for_bit(
    adapted: VisionLanguageModel, batch: Batch, tmp_path: Path
) -> None:
    fl.save(adapted, None, tmp_path / "trained", whole=False)
    kept = load_file(tmp_path / "trained" / "trained.safetensors")
    assert set(kept) == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any(MARK in name for name in kept)
    # The gates were set before training: the checkpoint has them because they train.
    assert torch.equal(logits(fl.load_model(tmp_path / "trained"), batch), logits(adapted, batch))


def test_a_merged_model_is_a_plain_one_with_the_same_logits(
    adapted: VisionLanguageModel, batch: Batch, tmp_path: Path
) -> None:
    expected = logits(adapted, batch)
    merge_adapters(adapted)
    assert not any(MARK in name or "base_layer" in name for name, _ in adapted.named_parameters())
    torch.testing.assert_close(logits(adapted, batch), expected, atol=1e-4, rtol=1e-4)
    fl.save(adapted, None, tmp_path / "merged")
    assert torch.equal(logits(fl.load_model(tmp_path / "merged"), batch), logits(adapted, batch))


def test_an_adapted_model_generates_and_scores_as_its_merged_self(
    joined: Joined, adapted: VisionLanguageModel, image_of: Callable[[int], Image]
) -> None:
    documents = [Document([image_of(0), "ab"])]
    merged = copy.deepcopy(adapted)
    merge_adapters(merged)
    written, scores = [], []
    for model in (adapted, merged):
        written.append(fl.generate(model, joined[1], documents, max_new_tokens=4))
        scores.append(fl.score(model, joined[1], documents, candidates=["a", "bc"]))
    assert written[0] == written[1]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)


def test_four_bits_are_those_of_bitsandbytes_and_nothing_else_is_quantized(
    joined: Joined, batch: Batch
) -> None:
    model = joined[0]
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    apply_policy(model, QLORA)
    quantized = {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert {name.removesuffix(".base_layer") for name in quantized} == set(adapters_of(model))
    rest = {n: p for n, p in model.named_parameters() if n in plain}
    assert all(torch.equal(p, plain[n]) for n, p in rest.items())
    for name, layer in quantized.items():
        weight = plain[f"{name.removesuffix('.base_layer')}.weight"]
        packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
        assert torch.equal(layer.weight.data, packed)  # type: ignore[arg-type]
        assert layer.weight.nbytes * 8 == weight.nbytes  # type: ignore[union-attr]
        torch.testing.assert_close(layer.weight.quant_state.absmax, state.absmax)  # type: ignore[union-attr]


def test_the_table_counts_numbers_and_not_the_bytes_that_hold_them(joined: Joined) -> None:
    before = sum(row.numbers for row in apply_policy(joined[0]))
    rows = apply_policy(joined[0], QLORA)
    assert sum(row.numbers for row in rows if row.part != "adapters") == before


def test_adapters_over_four_bits_get_the_gradients_that_they_get_over_the_same_weights_read_back(
    joined: Joined, batch: Batch, tmp_path: Path
) -> None:
    model = joined[0]
    torch.manual_seed(3)
    apply_policy(model, QLORA)
    train(model, batch, steps=1)
    plain = copy.deepcopy(model)
    for name in adapters_of(plain):
        layer: Any = plain.get_submodule(name)
        read = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.base_layer.bias is not None)
        weight = layer.base_layer.weight
        read.weight = torch.nn.Parameter(
            bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state), requires_grad=False
        )
        layer.base_layer = read
    found = []
    for each in (model, plain):
        each.zero_grad()
        each.train()(**batch).loss.backward()
        found.append({n: p.grad for n, p in each.named_parameters() if MARK in n})
    assert found[0].keys() == found[1].keys() and found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-5)


def test_exporting_merges_in_a_copy(
    model_config: dict[str, Any],
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    tmp_path: Path,
) -> None:
    model = build({**model_config, "connector": {}, "fusion": {}})  # all that the format has
    apply_policy(model, LORA)
    batch = processor([Document([image_of(0), "ab"])], complete=True)
    train(model, batch)
    fl.export(model, processor, tmp_path / "theirs", format="openflamingo")
    assert adapters_of(model)
    exported = fl.load_model(tmp_path / "theirs")
    assert not adapters_of(exported)
    torch.testing.assert_close(logits(exported, batch), logits(model, batch), atol=1e-4, rtol=1e-4)


def test_the_default_policy_on_a_model_of_adapters_keeps_them_when_saved(
    joined: Joined, batch: Batch, tmp_path: Path
) -> None:
    model = joined[0]
    apply_policy(model, LORA)
    train(model, batch)
    model.config.policy = {}
    apply_policy(model)
    fl.save(model, None, tmp_path / "model")
    assert torch.equal(logits(fl.load_model(tmp_path / "model"), batch), logits(model, batch))


def test_building_twice_with_one_seed_draws_the_same_adapters(model_config: dict[str, Any]) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        model = build({**model_config, "policy": LORA})
        found.append({n: p for n, p in model.named_parameters() if MARK in n})
    assert all(torch.equal(p, found[1][n]) for n, p in found[0].items())
    assert any(p.any() for p in found[0].values())
