"""A whole run of training, on tiny random backbones: what it leaves, what it repeats, how it resumes."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from flamingo_lite.checkpoints.io import load
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.data.shards import Shards
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.policy import frozen_sha256
from flamingo_lite.training import stages
from flamingo_lite.training.beginning import check_same_run, identity
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.checkpointing import CheckpointKeeper
from flamingo_lite.training.datamodule import ShardDataModule, open_sources
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


def test_packing_leaves_the_loss_of_an_epoch_as_it_is(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "apart", epochs=1, batch_size=23))
    run_stage(recipe(tmp_path / "packed", epochs=1, batch_size=23, pack=True))
    apart, packed = (read_metrics(tmp_path / name / "metrics.csv") for name in ("apart", "packed"))
    assert len(apart) == len(packed) == 1
    assert packed[0]["loss"] == pytest.approx(apart[0]["loss"], rel=1e-4)
    assert apart[0]["documents"] == packed[0]["documents"] == 23
    assert 0 < packed[0]["fill_rate"] <= 1 and 0 < apart[0]["fill_rate"] <= 1


def test_tokens_of_a_source_count_what_its_weight_says(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(tmp_path / "run", steps=1, batch_size=12)
    config.data.sources = {
        "first": SourceConfig(str(recipe.shards), weight=1.0),
        "second": SourceConfig(str(recipe.shards), weight=1.0, loss_weight=0.25),
    }
    run_stage(config)
    lightning.seed_everything(config.seed, verbose=False)
    model, processor = build(config.model).train(), build_processor(config.model)
    data = ShardDataModule(open_sources(config.data), config.data, config.stage, processor, config.seed, 256)
    prepared = next(iter(data.train_dataloader())).to("cpu")
    assert set(prepared.source_ids.unique().tolist()) == {-1, 0, 1}
    logits = model.eval()(**prepared.batch).logits[:, :-1]
    nll = cross_entropy(logits.flatten(0, 1), prepared.batch.labels[:, 1:].flatten(), reduction="none")
    is_trained = prepared.batch.labels[:, 1:].flatten() != -100
    weights = torch.where(prepared.source_ids[:, 1:].flatten() == 1, 0.25, 1.0) * is_trained
    expected = ((weights * nll).sum() / weights.sum()).item()
    assert losses(tmp_path / "run") == pytest.approx([expected], rel=1e-5)
    assert expected != pytest.approx((nll.sum() / is_trained.sum()).item(), rel=1e-4)


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


def test_starting_over_with_a_wrong_setting_keeps_the_model_that_was_there(
    recipe: Recipe, tmp_path: Path
) -> None:
    run_stage(recipe(tmp_path / "run"))
    wrong = recipe(tmp_path / "run", resume="never", batch_size=5, accumulate=2)
    with pytest.raises(FlamingoError, match=r"stage\.batch_size=5 does not divide"):
        run_stage(wrong)
    assert (tmp_path / "run" / "flamingo" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "metrics.csv").is_file()


def test_other_settings_are_not_mixed_into_a_run(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run"))
    with pytest.raises(FlamingoError, match=r"stage\.batch_size=4, now it is 5.*resume=never"):
        run_stage(recipe(tmp_path / "run", batch_size=5))


def test_a_setting_that_a_later_version_brought_had_its_defaults_effect_before(
    recipe: Recipe, tmp_path: Path
) -> None:
    config = recipe(tmp_path / "run")
    now = identity(config, {})
    before = json.loads(json.dumps(now))
    del before["stage"]["loss_mean"]
    check_same_run(before, now, tmp_path)
    config.stage.loss_mean = "sources"
    with pytest.raises(FlamingoError, match=r"stage\.loss_mean=tokens, now it is sources"):
        check_same_run(before, identity(config, {}), tmp_path)


def test_a_run_starts_from_a_saved_model(recipe: Recipe, tmp_path: Path) -> None:
    first = run_stage(recipe(tmp_path / "first", steps=20, batch_size=8))
    run_stage(recipe(tmp_path / "second", steps=1, start=str(first)))
    assert losses(tmp_path / "second")[0] < 0.8 * losses(tmp_path / "first")[0]


def spoilt(recipe: Recipe, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """The recipe's shards, with one of them changed."""
    damaged = tmp_path / "shards"
    shutil.copytree(recipe.shards, damaged)
    spoil(damaged / "shard-000001.tar")
    recipe.shards = damaged


@pytest.mark.parametrize("pack", [False, True])
def test_samples_that_cannot_be_used_are_counted_and_written_down(
    recipe: Recipe, tmp_path: Path, pack: bool
) -> None:
    spoilt(recipe, tmp_path, lambda shard: os.truncate(shard, 2 * shard.stat().st_size // 3))
    lost = [r for r in outcomes(recipe.shards) if r is not None]
    run_stage(recipe(tmp_path / "run", epochs=2, batch_size=4, pack=pack, workers=1))
    row = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    assert (row["documents"], row["rejects/truncated"]) == (46, 2 * len(lost))
    lines = [json.loads(line) for line in (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"truncated"} and len(lines) == 2 * len(lost) > 0
    assert {(line["source"], line["shard"]) for line in lines} == {("data", "shard-000001.tar")}
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


def outcomes(directory: Path) -> list[str | None]:
    """Why each sample cannot be read, None if it can."""
    shards, found = Shards(directory), []
    for index in range(len(shards)):
        try:
            _ = shards[index]
            found.append(None)
        except SampleError as error:
            found.append(error.reason)
    return found


def test_a_run_of_rejects_stops_in_one_line(recipe: Recipe, tmp_path: Path) -> None:
    spoilt(recipe, tmp_path, lambda shard: os.truncate(shard, 0))
    os.truncate(recipe.shards / "shard-000000.tar", 0)
    config = recipe(tmp_path / "run", epochs=5)
    config.data.max_rejects_in_a_row = 5
    with pytest.raises(FlamingoError, match="5 samples in a row could not be used.*truncated.*rejects.jsonl"):
        run_stage(config)


def test_an_error_that_is_no_samples_own_stops_in_one_line_also_from_a_worker(
    recipe: Recipe, tmp_path: Path
) -> None:
    spoilt(recipe, tmp_path, lambda shard: shard.with_name(f"{shard.name}.idx").write_bytes(b"none"))
    with pytest.raises(FlamingoError, match=r"shard-000001.tar.idx: the index does not fit") as raised:
        run_stage(recipe(tmp_path / "run", epochs=1, workers=1))
    assert "Traceback" not in str(raised.value)
    assert not (tmp_path / "run" / "flamingo").exists()


def test_there_is_a_device_for_auto_and_a_line_for_one_that_is_missing() -> None:
    assert stages.torch_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(FlamingoError, match="no such device"):
            stages.torch_device("cuda")
