"""Signals, and processes that die: the run saves and stops, or ends with the cause, and never hangs."""

import contextlib
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest

from flamingo_lite.errors import FlamingoError, Interrupted
from flamingo_lite.training import stages
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.stages import run_stage
from tests.training import ranks_helper
from tests.training.conftest import Recipe


class Signal(lightning.Callback):
    """Sends this process a signal in the middle of optimizer step `step` (from 1), on `rank`."""

    def __init__(self, step: int, number: int, rank: int = 0) -> None:
        self.step, self.number, self.rank = step, number, rank

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


def test_sigterm_saves_at_the_end_of_the_step_and_the_run_continues_as_if_nothing_had_been(
    recipe: Recipe, tmp_path: Path
) -> None:
    run_stage(recipe(tmp_path / "whole", accumulate=2))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        Interrupted, match=r"stopped by SIGTERM at step 2 of 6, saved; the same command continues"
    ):
        run_stage(recipe(tmp_path / "parts", accumulate=2), callbacks=[Signal(2, signal.SIGTERM)])
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "parts" / "checkpoints" / "step-00000002.ckpt").exists()
    run_stage(recipe(tmp_path / "parts", accumulate=2))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Job 42 of a SLURM that writes down what it is asked, into this file."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    return tmp_path / "asked"


def test_slurms_warning_puts_the_job_into_the_queue_again(
    recipe: Recipe, tmp_path: Path, slurm: Path
) -> None:
    with pytest.raises(Interrupted, match="SLURM has job 42 in the queue again"):
        run_stage(recipe(tmp_path / "run"), callbacks=[Signal(2, signal.SIGUSR1)])
    assert slurm.read_text() == "requeue 42\n"


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a signal come while the model is loaded (inside an attempt that takes any failure for a reason to go on)."""

    def at(where: str, number: int) -> None:
        function = getattr(stages, where)

        def first(*arguments: Any) -> Any:
            with contextlib.suppress(Exception):
                os.kill(os.getpid(), number)
            return function(*arguments)

        monkeypatch.setattr(stages, where, first)

    return at


@pytest.mark.parametrize("where", ["open_sources", "_start", "made_model"])
def test_a_signal_while_no_step_is_taken_ends_the_run_at_once_and_it_continues(
    recipe: Recipe, tmp_path: Path, signalled: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    signalled(where, signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM while no step was taken"):
        run_stage(recipe(tmp_path / "run", steps=1, samples=0))
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is before
    assert run_stage(recipe(tmp_path / "run", steps=1, samples=0)).is_dir()


def test_slurms_warning_while_the_model_is_loaded_puts_the_job_into_the_queue_again(
    recipe: Recipe, tmp_path: Path, slurm: Path, signalled: Any
) -> None:
    signalled("_start", signal.SIGUSR1)
    with pytest.raises(Interrupted, match="SIGUSR1 while no step.*SLURM has job 42 in the queue again"):
        run_stage(recipe(tmp_path / "run"))
    assert slurm.read_text() == "requeue 42\n"


def run_signalled(config: Any, number: int, rank: int) -> None:
    run_stage(config, callbacks=[Signal(3, number, rank)])


def test_all_ranks_stop_at_the_step_in_which_one_was_told(recipe: Recipe, tmp_path: Path) -> None:
    log = tmp_path / "log"
    config = recipe(tmp_path / "run")
    processes = ranks_helper.start(2, run_signalled, config, signal.SIGTERM, 1, log=log)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [1, 1]
    for rank in (0, 1):
        assert "stopped by SIGTERM at step 3 of 6, saved" in Path(f"{log}.{rank}").read_text()
    assert len(losses(tmp_path / "run")) == 3


def test_a_rank_that_dies_ends_the_run_of_the_others_with_one_line(recipe: Recipe, tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = time.monotonic()
    processes = ranks_helper.start(2, run_signalled, recipe(tmp_path / "run"), signal.SIGKILL, 1, log=log)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL]
    assert "another rank has ended" in Path(f"{log}.0").read_text()
    assert time.monotonic() - started < 60


class KillWorkers(lightning.Callback):
    """Kills the processes that prepare batches, at optimizer step 2."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)


def run_without_workers(config: Any) -> None:
    run_stage(config, callbacks=[KillWorkers()])


def test_a_worker_that_dies_ends_the_run_with_one_line(recipe: Recipe, tmp_path: Path) -> None:
    log = tmp_path / "log"
    [process] = ranks_helper.start(
        1, run_without_workers, recipe(tmp_path / "run", workers=2, steps=500), log=log
    )
    process.join(60)
    assert process.exitcode == 1
    assert "a process that prepares batches has died" in Path(f"{log}.0").read_text()


def test_two_runs_do_not_write_into_one_folder(recipe: Recipe, tmp_path: Path, monkeypatch: Any) -> None:
    from flamingo_lite.training import claim

    monkeypatch.setattr(claim, "PATIENCE", 0.1)
    with claim.claimed(tmp_path / "run"), pytest.raises(FlamingoError, match="in use by another run"):
        run_stage(recipe(tmp_path / "run"))


def test_a_folder_that_cannot_be_written_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        FlamingoError, match=r"file/run cannot be written \(Not a directory\); choose another output="
    ):
        run_stage(recipe(tmp_path / "file" / "run"))
