"""The same run on a CUDA device."""

from pathlib import Path

import pytest
import torch

from flamingo_lite.checkpoints.io import load
from flamingo_lite.generation.generate import generate
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe, document

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_training_on_cuda_follows_the_losses_of_the_cpu(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "cpu"))
    run_stage(recipe(tmp_path / "cuda", accelerator="cuda", deterministic=False))
    on_cpu, on_cuda = (
        [row["loss"] for row in read_metrics(tmp_path / d / "metrics.csv")] for d in ("cpu", "cuda")
    )
    assert on_cuda == pytest.approx(on_cpu, rel=1e-3)


def test_a_trained_model_writes_the_same_on_cuda(recipe: Recipe, tmp_path: Path, image_of) -> None:
    model, processor = load(run_stage(recipe(tmp_path / "run")))
    prompts = [document(number, image_of) for number in range(6)]
    on_cpu = generate(model, processor, prompts, max_new_tokens=4)
    assert generate(model.to("cuda"), processor, prompts, max_new_tokens=4) == on_cpu
