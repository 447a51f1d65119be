"""A whole run of training, on tiny random backbones: what it leaves, what it repeats, how it resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flamingo_lite.checkpoints.io import load
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.policy import frozen_sha256
from flamingo_lite.training import stages
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.checkpointing import CheckpointKeeper
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


def test_a_run_leaves_a_model_that_loads_with_the_parameters_it_trained(
    recipe: Recipe, tmp_path: Path
) -> None:
    config = recipe(tmp_path / "run")
    directory = run_stage(config)
    model, _ = load(directory)
    start = build(config.model)
    assert frozen_sha256(model) == frozen_sha256(start)
    assert any(gate != 0 for gates in model.gate_values().values() for gate in gates)
    summary = json.loads((tmp_path / "run" / "training.json").read_text())
    assert summary["finished"] and summary["frozen_sha256"] == frozen_sha256(model)


def test_metrics_have_a_row_per_step_with_loss_rate_speed_and_gates(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run", log_every=2, steps=5))
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 4, 5]
    wanted = {"loss", "learning_rate", "samples_per_second", "tokens_per_second"}
    gates = {f"gate/{layer}/{branch}" for layer in (0, 1) for branch in ("attention", "feed_forward")}
    assert wanted | gates <= rows[0].keys()
    assert all(row["samples_per_second"] > 0 for row in rows)


def test_training_lowers_the_loss(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run", steps=30, batch_size=8))
    found = losses(tmp_path / "run")
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


def test_one_seed_gives_identical_losses_whatever_the_workers(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "a"))
    run_stage(recipe(tmp_path / "b", workers=2))
    run_stage(recipe(tmp_path / "c", seed=1))
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")
    first, second = (load_file(tmp_path / x / "flamingo" / "model.safetensors") for x in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_packing_leaves_the_losses_as_they_are(recipe: Recipe, tmp_path: Path) -> None:
    apart, packed = tmp_path / "apart", tmp_path / "packed"
    run_stage(recipe(apart))
    run_stage(recipe(packed, pack=True))
    assert losses(packed) == pytest.approx(losses(apart), rel=1e-4)


class Interrupted(Exception):
    pass


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run breaks off right after it has saved its checkpoint of `step`."""
    save = CheckpointKeeper.save

    def save_and_stop(self: CheckpointKeeper, trainer: object) -> None:
        save(self, trainer)  # type: ignore[arg-type]
        if self.saved == step:
            raise Interrupted

    monkeypatch.setattr(CheckpointKeeper, "save", save_and_stop)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_continues_with_the_same_losses(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    run_stage(recipe(tmp_path / "whole", accumulate=accumulate))
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(Interrupted):
            run_stage(recipe(tmp_path / "parts", accumulate=accumulate))
    assert not (tmp_path / "parts" / "flamingo").exists()
    run_stage(recipe(tmp_path / "parts", accumulate=accumulate))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_checkpoint_holds_what_trains_and_nothing_frozen(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(tmp_path / "run")
    run_stage(config)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-00000006.ckpt", weights_only=True)
    trainable = {f"model.{name}" for name, p in build(config.model).named_parameters() if p.requires_grad}
    assert set(checkpoint["state_dict"]) == trainable
    assert checkpoint["global_step"] == 6
    assert list((tmp_path / "run").glob(".*")) == []


def test_a_finished_run_is_kept_unless_told_to_start_over(recipe: Recipe, tmp_path: Path) -> None:
    directory = run_stage(recipe(tmp_path / "run"))
    before = (directory / "model.safetensors").stat().st_mtime_ns
    run_stage(recipe(tmp_path / "run"))
    assert (directory / "model.safetensors").stat().st_mtime_ns == before
    run_stage(recipe(tmp_path / "run", resume="never"))
    assert (directory / "model.safetensors").stat().st_mtime_ns > before


def test_other_settings_are_not_mixed_into_a_run(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run"))
    with pytest.raises(FlamingoError, match=r"stage\.batch_size=4, now it is 5.*resume=never"):
        run_stage(recipe(tmp_path / "run", batch_size=5))


def test_a_run_starts_from_a_saved_model(recipe: Recipe, tmp_path: Path) -> None:
    first = run_stage(recipe(tmp_path / "first", steps=20, batch_size=8))
    run_stage(recipe(tmp_path / "second", steps=1, start=str(first)))
    assert losses(tmp_path / "second")[0] < 0.8 * losses(tmp_path / "first")[0]


def test_a_damaged_shard_is_one_error_also_from_a_worker(recipe: Recipe, tmp_path: Path) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(recipe.shards, damaged)
    shard = next(damaged.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[:2000] = bytes(2000)
    shard.write_bytes(data)
    recipe.shards = damaged
    with pytest.raises(FlamingoError, match="damaged") as raised:
        run_stage(recipe(tmp_path / "run", workers=1))
    assert "Traceback" not in str(raised.value)
    assert not (tmp_path / "run" / "flamingo").exists()


def test_there_is_a_device_for_auto_and_a_line_for_one_that_is_missing() -> None:
    assert stages.torch_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(FlamingoError, match="no such device"):
            stages.torch_device("cuda")
