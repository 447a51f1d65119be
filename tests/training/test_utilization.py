"""What a step is said to take equals what torch's own counter sees in a real one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flamingo_lite.batch import IGNORED
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.training.trial import StepShape, step_inputs
from flamingo_lite.training.utilization import StepFlops, Work, known_peak, step_flops


@pytest.fixture(scope="module", params=["cross_attention", "prefix"])
def fitted(
    request: pytest.FixtureRequest, model_config: dict[str, Any], prefix_config: dict[str, Any]
) -> tuple[VisionLanguageModel, dict[str, torch.Tensor], StepFlops]:
    """A model, its weights before anything was counted, and what its steps take."""
    model = build(model_config if request.param == "cross_attention" else prefix_config).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flops = step_flops(model, "32-true")
    assert flops is not None
    return model, before, flops


def test_the_arithmetic_is_that_of_a_real_step_of_another_shape(
    fitted: tuple[VisionLanguageModel, dict[str, torch.Tensor], StepFlops], torchs_counter: FlopCounterMode
) -> None:
    model, _, flops = fitted
    inputs = step_inputs(model, StepShape(104, 3), 5)
    # Fewer labels than positions: a prompt is not trained on.
    inputs["labels"][:, :60] = IGNORED
    trained = int((inputs["labels"][:, 1:] != IGNORED).sum())
    found = flops(Work(rows=5, tokens=5 * 104, images=15, trained=trained))
    with torchs_counter:
        model(**inputs).loss.backward()
    assert found == pytest.approx(torchs_counter.get_total_flops(), rel=0.02)


def test_counting_leaves_the_model_as_it_was(
    fitted: tuple[VisionLanguageModel, dict[str, torch.Tensor], StepFlops],
) -> None:
    model, before, _ = fitted
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_no_peak_is_made_up_for_the_cpu() -> None:
    assert known_peak(torch.device("cpu"), "bf16-mixed") is None
