"""What is done beside training changes no bit of it, on one rank and on several."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flamingo_lite.checkpoints.io import load
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.generation.generate import generate
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.asides import each_forward, few_shot_columns, undisturbed
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.settings import StageConfig
from flamingo_lite.training.stages import run_stage
from tests.training import ranks_helper
from tests.training.conftest import Recipe

FEW = EvaluationConfig(
    splits=["test"], styles=["direct"], shots=[0, 1], seeds=[0], conditions=["standard"], queries=2
)
BESIDE: dict[str, Any] = {"samples": 1, "samples_every": 1, "evaluate_every": 2, "evaluation": FEW}
DROPOUT = {"language.*": {"mode": "lora", "rank": 2, "dropout": 0.5}}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load(directory)[0].named_parameters())


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


def test_training_is_the_same_bit_for_bit_with_and_without(recipe: Recipe, tmp_path: Path) -> None:
    # Dropout: each step draws from the generators that an evaluation might have moved.
    recipe.model = {**recipe.model, "policy": DROPOUT}
    run_stage(recipe(tmp_path / "without", steps=3, samples=0))
    run_stage(recipe(tmp_path / "with", steps=3, **BESIDE))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    alone, beside = weights(tmp_path / "without" / "flamingo"), weights(tmp_path / "with" / "flamingo")
    assert all(torch.equal(p, beside[name]) for name, p in alone.items())


def test_generators_stand_where_they_stood() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with undisturbed():
        draw()
    assert draw() == expected


def test_ranks_that_wait_hear_of_every_token_and_of_images(
    joined: tuple[VisionLanguageModel, VisionLanguageProcessor], image_of: Callable[[int], Image]
) -> None:
    heard: list[None] = []
    with each_forward(joined[0], lambda: heard.append(None)):
        generate(*joined, [Document([image_of(0), "a"])], max_new_tokens=3, stop=None, min_new_tokens=3)
    assert len(heard) == 4
    generate(*joined, [Document(["a"])], max_new_tokens=1)
    assert len(heard) == 4


def test_an_evaluation_repeats_itself(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("once", "again"):
        run_stage(recipe(tmp_path / name, steps=2, **BESIDE))
    files = [path.relative_to(tmp_path / "once") for path in (tmp_path / "once" / "few_shot").rglob("*.*")]
    assert len(files) == 2
    assert all((tmp_path / "once" / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


def test_a_cell_in_which_every_prediction_failed_has_no_column() -> None:
    cell = {"task": "t", "split": "s", "style": "d", "condition": "standard", "shots": 4, "value": None}
    assert few_shot_columns({"cells": [cell, {**cell, "shots": 0, "value": 0.5}]}) == {
        "few_shot/t/s/d/standard/0_shots": 0.5
    }


@pytest.mark.parametrize("name", ["samples", "samples_every", "evaluate_every"])
def test_a_negative_period_is_refused_by_name(name: str) -> None:
    with pytest.raises(FlamingoError, match=f"stage.{name} is -1; expected 0 or more"):
        StageConfig(**{name: -1})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_do_the_same_and_nobody_hangs(recipe: Recipe, tmp_path: Path, strategy: str) -> None:
    run_stage(recipe(tmp_path / "one", steps=2, **BESIDE))
    config = recipe(tmp_path / "two", steps=2, devices=2, strategy=strategy, **BESIDE)
    ranks_helper.run(2, run_stage, config)
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for alone, together in zip(one, two, strict=True):
        own = {"attention", "memory"}  # those are of the first rank's rows
        for name in together.keys() - {"seconds", "fill_rate"}:  # how rows are padded depends on the ranks
            if not name.endswith("_per_second") and name.partition("/")[0] not in own:
                assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name
    texts = [(tmp_path / name / "generations.jsonl").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]
