"""Checkpoints: whole or not there, the last and the best kept, and what happens where the disk refuses."""

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.errors import FlamingoError
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.checkpointing import (
    VerifiedCheckpointIO,
    keep_last_and_best,
    latest_checkpoint,
    problem_of,
    read_record,
    write_checkpoint,
)
from flamingo_lite.training.stages import run_stage
from tests.training import ranks_helper
from tests.training.conftest import Recipe

CONTENT = {"weights": torch.arange(5000.0), "global_step": 3, "mean_loss": 1.5}


def written(folder: Path, step: int, loss: float = 1.0) -> Path:
    path = folder / f"step-{step:08d}.ckpt"
    write_checkpoint({**CONTENT, "global_step": step}, path, step, loss)
    return path


def refuse(said: str) -> None:
    raise AssertionError(f"nothing was to be said: {said}")


def test_what_is_written_is_read_back_equal_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    loaded = VerifiedCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["weights"], CONTENT["weights"]) and loaded["global_step"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003.ckpt", "step-00000003.json"]


def test_the_newest_checkpoint_is_taken(tmp_path: Path) -> None:
    for step in (3, 12, 6):
        written(tmp_path, step)
    assert latest_checkpoint(tmp_path, refuse) == tmp_path / "step-00000012.ckpt"


@settings(max_examples=30, deadline=None)
@given(keep=st.integers(0, 20000), flip=st.booleans())
def test_a_checkpoint_of_which_any_part_is_missing_or_changed_is_not_whole(
    tmp_path_factory: pytest.TempPathFactory, keep: int, flip: bool
) -> None:
    path = written(tmp_path_factory.mktemp("cut"), 3)
    data = bytearray(path.read_bytes())
    place = keep % len(data)
    if flip:
        data[place] ^= 1
    path.write_bytes(data if flip else data[:place])
    assert problem_of(path) is not None


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path) -> None:
    before, last = written(tmp_path, 3), written(tmp_path, 6)
    last.write_bytes(last.read_bytes()[:1000])
    said: list[str] = []
    assert latest_checkpoint(tmp_path, said.append) == before
    assert len(said) == 1 and "step-00000006.ckpt is cut short (1000 of" in said[0]
    assert "continuing from step-00000003.ckpt" in said[0]


def test_a_checkpoint_without_its_record_was_not_finished(tmp_path: Path) -> None:
    before, last = written(tmp_path, 3), written(tmp_path, 6)
    last.with_suffix(".json").unlink()
    said: list[str] = []
    assert latest_checkpoint(tmp_path, said.append) == before
    assert "not written to its end" in said[0]


def test_when_no_checkpoint_is_whole_the_run_does_not_start_over_by_itself(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    path.write_bytes(b"")
    with pytest.raises(FlamingoError, match="no checkpoint in .* is whole.*resume=never"):
        latest_checkpoint(tmp_path, refuse)


def test_when_no_checkpoint_is_whole_a_second_start_does_not_start_over_either(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(FlamingoError, match="no checkpoint in .* is whole"):
            latest_checkpoint(tmp_path, refuse)


@settings(max_examples=25, deadline=None)
@given(losses=st.lists(st.floats(0, 10), min_size=1, max_size=7), keep=st.integers(1, 4))
def test_the_last_few_and_the_best_are_kept(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float], keep: int
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    for step, loss in enumerate(losses, start=1):
        written(folder, step, loss)
        keep_last_and_best(folder, keep)
    steps = {int(path.stem.removeprefix("step-")) for path in folder.glob("*.ckpt")}
    last = set(range(1, len(losses) + 1)[-keep:])
    assert last <= steps and len(steps) <= keep + 1
    assert min(losses) == min(losses[step - 1] for step in steps)


def test_nothing_in_a_checkpoint_is_ever_run(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    torch.save({"weights": Path("a path is no tensor")}, path)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        VerifiedCheckpointIO().load_checkpoint(path)


def test_a_run_keeps_the_last_checkpoints_and_their_mean_losses(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run", steps=8, checkpoint_every=2, keep=2))
    folder = tmp_path / "run" / "checkpoints"
    steps = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    record = read_record(folder / "step-00000008.ckpt")
    assert record is not None and record.loss == pytest.approx((steps[6] + steps[7]) / 2)
    assert (folder / "step-00000006.ckpt").exists() and len(list(folder.glob("*.ckpt"))) <= 3


def test_the_composed_config_is_in_the_run_folder_and_in_the_checkpoint(
    recipe: Recipe, tmp_path: Path
) -> None:
    run_stage(recipe(tmp_path / "run"))
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-00000006.ckpt", weights_only=True)
    assert checkpoint["config"] == (tmp_path / "run" / "config.yaml").read_text()
    assert "learning_rate: 0.01" in checkpoint["config"]


def train_with_little_disk(config: Any, most: int) -> None:
    """No file may grow beyond `most` bytes: the system refuses as it does when a disk is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        run_stage(config)
    except Exception as error:
        # The model does not fit either, at the very end.
        assert "cannot write" in str(error), error


def test_a_full_disk_keeps_the_checkpoint_before_and_training_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "run"
    ranks_helper.run(1, run_stage, recipe(output, steps=4, checkpoint_every=2))
    size = (output / "checkpoints" / "step-00000002.ckpt").stat().st_size
    # Taken up again as if it had been stopped at step 2, on a disk with too little room for another checkpoint.
    for name in ("step-00000004.ckpt", "step-00000004.json"):
        (output / "checkpoints" / name).unlink()
    summary = output / "training.json"
    summary.write_text(summary.read_text().replace('"finished": true', '"finished": false'))
    log = tmp_path / "log"
    [process] = ranks_helper.start(
        1, train_with_little_disk, recipe(output, steps=4, checkpoint_every=2), size - 1, log=log
    )
    process.join(60)
    said = Path(f"{log}.0").read_text()
    assert process.exitcode == 0, said
    assert "no checkpoint at step 4 (File too large): the one before stays, and training goes on" in said
    assert [path.name for path in (output / "checkpoints").glob("*")] != []
    assert latest_checkpoint(output / "checkpoints", refuse) == output / "checkpoints" / "step-00000002.ckpt"
    assert [row["step"] for row in read_metrics(output / "metrics.csv")] == [1, 2, 3, 4]
