"""The types that a model trains in, recomputed activations and compilation: the same figures by other means."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flamingo_lite.batch import Batch
from flamingo_lite.checkpoints.io import load
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.precision import compile_layers, hold
from flamingo_lite.training.settings import TrainerConfig
from flamingo_lite.training.stages import run_stage
from flamingo_lite.training.trial import autocast
from tests.training.conftest import Recipe

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]


@pytest.fixture
def batch(joined: Joined, image_of: Callable[[int], Image]) -> Batch:
    documents = [Document([image_of(0), "ab", image_of(1), "cd"]), Document(["no image"])]
    return joined[1](documents, complete=True)


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


class Casts(TorchDispatchMode):
    """Counts how often one of `watched` is copied into another type."""

    def __init__(self, watched: list[Tensor]) -> None:
        super().__init__()
        self.storages = {tensor.untyped_storage()._cdata for tensor in watched}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.count += args[0].untyped_storage()._cdata in self.storages
        return func(*args, **(kwargs or {}))


def frozen_matrices(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if not p.requires_grad and p.ndim >= 2]


def step(model: VisionLanguageModel, batch: Batch, precision: str) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with autocast(precision):
        loss = model.train()(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_autocast_casts_no_frozen_matrix_that_is_held_in_its_type(joined: Joined, batch: Batch) -> None:
    model = joined[0]
    counts = []
    for frozen_dtype in (None, "bfloat16"):
        hold(model, "bf16-mixed", frozen_dtype)
        with Casts(frozen_matrices(model)) as casts:
            step(model, batch, "bf16-mixed")
        counts.append(casts.count)
    assert counts[0] > 10 and counts[1] == 0


def test_what_trains_and_norms_are_held_in_float32_and_frozen_matrices_in_half_the_bytes(
    model: VisionLanguageModel,
) -> None:
    before = sum(p.nbytes for p in frozen_matrices(model))
    hold(model, "bf16-mixed", "bfloat16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if "norm" in n} == {torch.float32}
    assert sum(p.nbytes for p in frozen_matrices(model)) * 2 == before


def test_a_model_loaded_in_bfloat16_gets_masters_in_float32(model_config: dict[str, Any]) -> None:
    model = build({**model_config, "language": {**model_config["language"], "dtype": "bfloat16"}})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    hold(model, "bf16-mixed")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in frozen_matrices(model)} == {torch.bfloat16}


@pytest.mark.parametrize("frozen_dtype", [None, "bfloat16"])
def test_mixed_precision_is_within_its_types_error_of_float32(
    joined: Joined, batch: Batch, frozen_dtype: str | None
) -> None:
    model = joined[0]
    loss, gradients = step(model, batch, "32-true")
    hold(model, "bf16-mixed", frozen_dtype)
    ours, found = step(model, batch, "bf16-mixed")
    assert ours.item() == pytest.approx(loss.item(), rel=1e-2)
    assert found.keys() == gradients.keys()
    whole = torch.cat([g.flatten() for g in gradients.values()])
    narrow = torch.cat([g.flatten() for g in found.values()])
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert (whole - narrow).norm() < 0.05 * whole.norm()


def test_rotary_tables_stay_float32_in_a_model_of_bfloat16(model_config: dict[str, Any]) -> None:
    model = build({**model_config, "language": {**model_config["language"], "dtype": "bfloat16"}})
    hold(model, "bf16-true")
    tables = {n: b for n, b in model.named_buffers() if "inv_freq" in n}
    assert tables and {b.dtype for b in tables.values()} == {torch.float32}
    fresh = copy.deepcopy(tables)
    for name, table in tables.items():
        assert torch.equal(table, fresh[name])


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"precision": "bf16-mixed", "frozen_dtype": "bfloat16"}, 0.02),
        ({"precision": "bf16-mixed"}, 0.02),
        ({"precision": "bf16-true"}, 0.05),
        ({"checkpoint_activations": True}, 1e-6),
    ],
    ids=["frozen bf16", "bf16-mixed", "bf16-true", "recomputed"],
)
def test_a_run_has_the_losses_of_float32_and_saves_the_type_that_was_loaded(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], tolerance: float
) -> None:
    run_stage(recipe(tmp_path / "exact"))
    directory = run_stage(recipe(tmp_path / "run", **changes))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "exact"), rel=tolerance)
    assert {p.dtype for p in load(directory)[0].parameters()} == {torch.float32}


def test_recomputed_activations_change_no_gradient_under_narrow_frozen_parts(
    joined: Joined, batch: Batch
) -> None:
    model = joined[0]
    hold(model, "bf16-mixed", "bfloat16")
    loss, gradients = step(model, batch, "bf16-mixed")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, found = step(model, batch, "bf16-mixed")
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-6)


@pytest.fixture
def counters() -> Iterator[Any]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def test_batches_of_other_shapes_share_a_compiled_graph_that_has_no_break(
    joined: Joined, image_of: Callable[[int], Image], counters: Any
) -> None:
    model, processor = joined
    batches = [
        processor([Document([image_of(i), "ab" * (i + 1)]) for i in range(rows)], complete=True)
        for rows in (2, 3, 5)
    ]
    expected = [step(model, batch, "32-true") for batch in batches]
    compile_layers(model, backend="eager")
    for batch, (loss, gradients) in zip(batches, expected, strict=True):
        ours, found = step(model, batch, "32-true")
        torch.testing.assert_close(ours, loss, atol=1e-6, rtol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses(recipe: Recipe, tmp_path: Path, counters: Any) -> None:
    run_stage(recipe(tmp_path / "plain", steps=3))
    directory = run_stage(recipe(tmp_path / "compiled", compile=True, steps=3))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1
    load(directory)


@pytest.mark.parametrize(
    "settings",
    [
        {"frozen_dtype": "bfloat16"},
        {"precision": "16-mixed", "frozen_dtype": "bfloat16"},
        {"precision": "bf16"},
    ],
)
def test_types_that_do_not_go_together_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(FlamingoError, match=r"trainer\.(frozen_dtype|precision)"):
        TrainerConfig(**settings)
