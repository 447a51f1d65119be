"""What cannot be trained on, or continued from: one clear line each, and never a loss that is no number."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.data.make import DataConfig
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.data.shards import write_shards
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError, Interrupted
from flamingo_lite.models.build import model_config_from
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe
from tests.training.test_interrupts import Signal


def test_no_data_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    recipe.shards = tmp_path / "nowhere"
    with pytest.raises(FlamingoError, match=r"nowhere.*no shards"):
        run_stage(recipe(tmp_path / "run"))


def test_an_empty_source_is_named(recipe: Recipe, tmp_path: Path) -> None:
    manifest = json.loads((recipe.shards / "shards.json").read_text())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "shards.json").write_text(json.dumps({**manifest, "shards": []}))
    config = recipe(tmp_path / "run")
    sources = {"full": SourceConfig(str(recipe.shards)), "bare": SourceConfig(str(tmp_path / "empty"))}
    config.data = DataConfig(directory="", sources=sources)
    with pytest.raises(FlamingoError, match="bare"):
        run_stage(config)


def test_samples_without_a_label_are_counted_and_the_loss_stays_a_number(
    recipe: Recipe, tmp_path: Path
) -> None:
    """Every second document is masked, and with two rows a batch some batches have nothing to train on."""
    documents = (Document([Text(f"number {i}", loss=i % 2 == 0, ends_chunk=i % 2 == 0)]) for i in range(12))
    recipe.shards = tmp_path / "shards"
    write_shards(((f"{i:03d}", d) for i, d in enumerate(documents)), recipe.shards)
    run_stage(recipe(tmp_path / "run", batch_size=2, steps=12, samples=1))
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["rejects/no_labels"] == 12 and rows[-1]["skipped_steps"] == 0


def test_a_batch_that_does_not_divide_names_the_nearest_that_do(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match=r"stage\.batch_size=5 does not divide.*accumulate=2.*4 or 6"):
        run_stage(recipe(tmp_path / "run", batch_size=5, accumulate=2))


def test_a_batch_that_does_not_divide_among_devices_is_refused_before_processes_start(
    recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(FlamingoError, match=r"stage\.batch_size=5 does not divide among 2 ranks"):
        run_stage(recipe(tmp_path / "run", batch_size=5, devices=2))
    assert not (tmp_path / "run").exists()  # a rank would have claimed it


def test_a_checkpoint_of_another_model_is_refused(
    recipe: Recipe, tmp_path: Path, model_config: dict[str, Any]
) -> None:
    run_stage(recipe(tmp_path / "other"))
    recipe.model = {**model_config, "connector": {**model_config["connector"], "depth": 2}}
    with pytest.raises(Interrupted):
        run_stage(recipe(tmp_path / "run"), callbacks=[Signal(2, 15)])
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(FlamingoError, match=r"train different parameters.*connector.*resume=never"):
        run_stage(recipe(tmp_path / "run"))
    assert model_config_from(recipe.model).connector.depth == 2
