"""A run of training under prefix fusion: the same stages, no gates, and the preset that the package ships."""

from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.checkpoints.io import load
from flamingo_lite.config import load_config
from flamingo_lite.evaluation.curves import read_curves
from flamingo_lite.evaluation.report import training_figures
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe


@pytest.fixture
def prefix_recipe(prefix_config: dict[str, Any], shards: Path) -> Recipe:
    return Recipe(prefix_config, shards)


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


def test_training_lowers_the_loss_and_leaves_a_model_that_loads(
    prefix_recipe: Recipe, tmp_path: Path
) -> None:
    directory = run_stage(prefix_recipe(tmp_path / "run", steps=30, batch_size=8))
    found = losses(tmp_path / "run")
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    model, processor = load(directory)
    assert model.fusion.name == "prefix" and processor.template.image_tokens == 3


def test_there_is_no_gate_to_log_and_the_figures_do_without(prefix_recipe: Recipe, tmp_path: Path) -> None:
    run_stage(prefix_recipe(tmp_path / "run", steps=3))
    row = read_metrics(tmp_path / "run" / "metrics.csv")[0]
    assert [name for name in row if name.startswith("gate/")] == []
    assert set(training_figures(read_curves(tmp_path / "run" / "metrics.csv"))) == {"training"}


def test_packing_leaves_the_loss_of_an_epoch_as_it_is(prefix_recipe: Recipe, tmp_path: Path) -> None:
    run_stage(prefix_recipe(tmp_path / "apart", epochs=1, batch_size=23))
    run_stage(prefix_recipe(tmp_path / "packed", epochs=1, batch_size=23, pack=True))
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "apart"), rel=1e-4)


def test_the_preset_trains(shards: Path, tmp_path: Path) -> None:
    config = load_config(
        [
            "model=llava_tiny", f"output='{tmp_path}/run'", f"data.directory='{shards}'", "stage.steps=2",
            "stage.batch_size=2", "stage.log_every=1", "stage.samples=1", "trainer.accelerator=cpu",
            "trainer.threads=1", "trainer.workers=0", "wandb.mode=disabled",
        ]
    )  # fmt: skip
    run_stage(config)
    assert len(losses(tmp_path / "run")) == 2
