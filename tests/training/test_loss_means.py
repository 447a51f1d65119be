"""The loss as the sum of the sources' means: OpenFlamingo's recipe, on any number of parts of a step."""

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from flamingo_lite.config import Config
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.datamodule import ShardDataModule, open_sources
from flamingo_lite.training.loss_means import source_weights, trained_items
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe

WEIGHTS = (1.0, 0.2)


def of_two_sources(recipe: Recipe, output: Path, **changes: Any) -> Config:
    config = recipe(output, batch_size=12, loss_mean="sources", samples=0, **changes)
    config.data.sources = {
        "mmc4": SourceConfig(str(recipe.shards), weight=1.0, loss_weight=WEIGHTS[0]),
        "laion": SourceConfig(str(recipe.shards), weight=2.0, loss_weight=WEIGHTS[1]),
    }
    return config


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


def test_the_loss_is_the_sum_of_means_that_open_flamingos_trainer_adds_up(
    recipe: Recipe, tmp_path: Path
) -> None:
    config = of_two_sources(recipe, tmp_path / "run", steps=1)
    run_stage(config)
    lightning.seed_everything(config.seed, verbose=False)
    model, processor = build(config.model).eval(), build_processor(config.model)
    data = ShardDataModule(open_sources(config.data), config.data, config.stage, processor, config.seed, 256)
    prepared = next(iter(data.train_dataloader())).to("cpu")
    logits = model(**prepared.batch).logits[:, :-1]
    expected = 0.0
    for name, weight in zip(("mmc4", "laion"), WEIGHTS, strict=True):
        source = [s.name for s in data.sources].index(name)
        # What its loader of this source would give the model, which means over the labels of a batch.
        labels = prepared.batch.labels.masked_fill(prepared.source_ids != source, -100)[:, 1:]
        expected += weight * cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    assert losses(tmp_path / "run") == pytest.approx([expected], rel=1e-5)


def test_in_how_many_parts_a_step_is_taken_changes_no_loss(recipe: Recipe, tmp_path: Path) -> None:
    for accumulate in (1, 3):
        run_stage(of_two_sources(recipe, tmp_path / str(accumulate), steps=4, accumulate=accumulate))
    assert losses(tmp_path / "3") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 10_000)), min_size=1, max_size=5))
def test_each_source_counts_its_weight_however_many_tokens_it_has(sources: list[tuple[float, int]]) -> None:
    loss_weights, trained = (
        torch.tensor(values, dtype=torch.float64) for values in zip(*sources, strict=True)
    )
    weights = source_weights(loss_weights, trained)
    assert weights[-1] == 0
    shares = weights[:-1] * trained / trained.sum().clamp(min=1)
    assert torch.allclose(shares, torch.where(trained > 0, loss_weights, 0.0))


@pytest.mark.parametrize("weights", [None, torch.ones(2, 5, device="meta")])
def test_counting_what_is_trained_on_waits_for_no_device(weights: torch.Tensor | None) -> None:
    labels = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    assert trained_items(labels, weights).device.type == "meta"
