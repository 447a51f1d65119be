"""Steps whose loss or gradient is no number: left out, counted, written down, and in the end a reason to stop."""

import json
import math
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from safetensors.torch import load_file, save_file

from flamingo_lite.errors import FlamingoError
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.ranks import Ranks
from flamingo_lite.training.sharding import local
from flamingo_lite.training.skipping import Part, SkippedSteps, culprits
from flamingo_lite.training.stages import run_stage
from tests.training import ranks_helper
from tests.training.conftest import Recipe

NAN = float("nan")


class Spoil(lightning.Callback):
    """At optimizer step `step` (from 1), on `rank`, the pixels (`what` "loss") or a gradient become NaN."""

    def __init__(self, step: int, what: str = "loss", rank: int = 0) -> None:
        self.step, self.what, self.rank = step, what, rank

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank and self.what == "loss":
            batch.batch.pixel_values.fill_(NAN)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step + 1 == self.step and self.what == "gradient":
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(NAN)


class SpoilAll(lightning.Callback):
    """A gradient becomes NaN in every step."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(NAN)


class Trained(lightning.Callback):
    """Writes what trains, and the optimizer's moments, before and after step `step` (from 1)."""

    def __init__(self, step: int, folder: Path) -> None:
        self.step, self.folder = step, folder

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step in (self.step - 1, self.step):
            state = {n: local(p.detach()).clone() for n, p in pl_module.named_parameters() if p.requires_grad}
            for number, moments in trainer.optimizers[0].state_dict()["state"].items():
                state |= {f"moment/{number}/{name}": local(value).clone() for name, value in moments.items()}
            save_file(state, self.folder / f"{trainer.global_step}.safetensors")


def skips(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "skipped_steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_no_number_moves_neither_weights_nor_moments(
    recipe: Recipe, tmp_path: Path, what: str
) -> None:
    run_stage(recipe(tmp_path / "run"), callbacks=[Spoil(3, what), Trained(3, tmp_path)])
    before, after = (load_file(tmp_path / f"{step}.safetensors") for step in (2, 3))
    assert before and all(torch.equal(before[name], after[name]) for name in before)


def test_skipped_steps_are_counted_and_the_run_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run"), callbacks=[Spoil(3), Spoil(5)])
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] not in (3, 5))


def test_the_samples_of_a_skipped_step_are_written_down(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run", accumulate=2), callbacks=[Spoil(3)])
    [line] = skips(tmp_path / "run")
    assert line["step"] == 3 and all(math.isnan(part["loss"]) for part in line["parts"])
    samples = [name for part in line["parts"] for name in part["samples"]]
    assert len(samples) == 4 and all("shard-" in name for name in samples)


def test_more_skipped_steps_than_allowed_stop_the_run_with_the_file_of_samples(
    recipe: Recipe, tmp_path: Path
) -> None:
    config = recipe(tmp_path / "run", steps=50, max_skipped_steps=2)
    config.stage.optimizer.learning_rate = 1e30
    config.stage.optimizer.gradient_clip = 0
    with pytest.raises(
        FlamingoError, match=r"is the 3rd whose loss or gradient is no number.*skipped_steps\.jsonl"
    ):
        run_stage(config)
    assert len(skips(tmp_path / "run")) == 3


def run_spoilt(config: Any, step: int, rank: int, folder: Path) -> None:
    run_stage(
        config,
        callbacks=[Spoil(step, rank=rank), *([Trained(step, folder)] if os.environ["RANK"] == "1" else [])],
    )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_ranks_skip_the_step_of_which_one_rank_made_no_number(
    recipe: Recipe, tmp_path: Path, strategy: str
) -> None:
    output = tmp_path / "run"
    ranks_helper.run(2, run_spoilt, recipe(output, strategy=strategy), 3, 1, tmp_path)
    [line] = skips(output)
    assert [part["rank"] for part in line["parts"]] == [1]
    before, after = (load_file(tmp_path / f"{step}.safetensors") for step in (2, 3))
    assert before and all(torch.equal(before[name], after[name]) for name in before)
    losses = [row["loss"] for row in read_metrics(output / "metrics.csv")]
    assert [math.isfinite(loss) for loss in losses] == [True, True, False, True, True, True]


def test_where_only_the_gradient_is_no_number_every_part_is_suspect() -> None:
    parts = [Part(1.0, ["a"]), Part(2.0, ["b"])]
    assert culprits(parts) == parts
    assert [part.samples for part in culprits([*parts, Part(NAN, ["c"])])] == [["c"]]


HALF: dict[str, Any] = {"precision": "16-mixed", "samples": 0, "max_skipped_steps": 0}


def test_in_float16_a_gradient_that_is_no_number_is_counted_and_stops_no_run_that_goes_on(
    recipe: Recipe, tmp_path: Path
) -> None:
    run_stage(recipe(tmp_path / "run", **HALF), callbacks=[Spoil(3, "gradient"), Trained(3, tmp_path)])
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    skipped = [line["step"] for line in skips(tmp_path / "run")]
    assert 3 in skipped and rows[-1]["skipped_steps"] == len(skipped)
    assert rows[2]["loss_scale"] == rows[1]["loss_scale"] / 2
    before, after = (load_file(tmp_path / f"{step}.safetensors") for step in (2, 3))
    assert before and all(torch.equal(before[name], after[name]) for name in before)


def test_in_float16_gradients_that_no_scale_makes_a_number_stop_the_run(
    recipe: Recipe, tmp_path: Path
) -> None:
    config = recipe(tmp_path / "run", steps=60, **{**HALF, "max_skipped_steps": 1})
    with pytest.raises(FlamingoError, match="is the 2nd whose loss or gradient is no number"):
        run_stage(config, callbacks=[SpoilAll()])
    scales = [line["loss_scale"] for line in skips(tmp_path / "run")]
    assert all(scale > 1 for scale in scales[:-2]) and max(scales[-2:]) <= 1


def test_in_float16_a_loss_that_is_no_number_is_nothing_that_a_scale_explains(tmp_path: Path) -> None:
    skipped = SkippedSteps(tmp_path / "skipped.jsonl", 0, Ranks())
    skipped.add(1, NAN, [Part(1.0, ["a"])], loss_scale=2.0)
    with pytest.raises(FlamingoError, match="step 2 is the 1st"):
        skipped.add(2, NAN, [Part(NAN, ["a"])], loss_scale=2.0)


def test_the_limit_counts_from_one_run_to_the_next(tmp_path: Path) -> None:
    skipped = SkippedSteps(tmp_path / "skipped.jsonl", 2, Ranks())
    skipped.count = 2
    with pytest.raises(FlamingoError, match="is the 3rd"):
        skipped.add(7, NAN, [Part(NAN, ["a"])])
