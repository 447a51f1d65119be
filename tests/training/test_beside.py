"""What lies beside a run: where the disk refuses it, one line says so, and training goes on."""

import io
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
from rich.console import Console

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.training.beside import Beside, LineFile, drop_lines_after
from flamingo_lite.training.callbacks import MetricsFile, read_metrics
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe
from tests.training.test_skipping import Spoil
from tests.training.test_stages import spoilt


@contextmanager
def full_disk(most: int = 0) -> Iterator[None]:
    """No file may grow beyond `most` bytes: the system refuses as it does when a disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def refuse(said: str) -> None:
    raise AssertionError(f"nothing was to be said: {said}")


class FullDisk(lightning.Callback):
    """While the steps are taken, nothing can be written."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.disk = full_disk()
        self.disk.__enter__()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.disk.__exit__(None, None, None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: Any) -> None:
        self.disk.__exit__(None, None, None)


def test_a_full_disk_costs_files_beside_the_run_and_not_the_run(recipe: Recipe, tmp_path: Path) -> None:
    spoilt(recipe, tmp_path, lambda shard: os.truncate(shard, 2 * shard.stat().st_size // 3))
    few = EvaluationConfig(
        splits=["test"], styles=["direct"], shots=[0], seeds=[0], conditions=["standard"], queries=1
    )
    config = recipe(tmp_path / "run", samples=1, samples_every=2, evaluate_every=3, evaluation=few)
    said = io.StringIO()
    directory = run_stage(config, Console(file=said, width=500), [FullDisk(), Spoil(2, "gradient")])
    assert (directory / "model.safetensors").is_file()
    files = (
        "rejects.jsonl",
        "skipped_steps.jsonl",
        "generations.jsonl",
        "samples",
        "metrics.csv",
        "few_shot",
    )
    for name in files:
        line = f"{tmp_path / 'run' / name} cannot be written (File too large)"
        assert said.getvalue().count(line) == 1, (name, said.getvalue())


def test_what_is_wrong_beside_the_disk_is_not_hidden() -> None:
    with pytest.raises(FlamingoError, match="a bad value"), Beside(refuse).writing("a file"):
        raise FlamingoError("a bad value")


def test_each_kind_of_file_is_told_of_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    beside = Beside(said.append)
    for name in ("a", "a", "b"):
        with beside.writing(name):
            write_atomically(tmp_path / "file" / name, b"")
    assert [line.split(" cannot")[0] for line in said] == ["a", "b"]


def test_lines_go_on_where_there_is_room_again_and_one_that_was_cut_spoils_no_other(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines.jsonl", Beside([].append))
    file.add([{"step": 1}])
    with full_disk(20):
        file.add([{"step": 2, "long": "x" * 50}])
    file.add([{"step": 3}, {"step": 4}])
    drop_lines_after(tmp_path / "lines.jsonl", 3)
    kept = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [1, 3]


def test_rows_that_the_disk_refused_stand_in_the_file_when_there_is_room_again(tmp_path: Path) -> None:
    said: list[str] = []
    file = MetricsFile(tmp_path / "metrics.csv", beside=Beside(said.append))
    rows = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "new": 1},
        {"step": 3, "loss": 0.125, "new": 2},
    ]
    file(rows[0])
    with full_disk():
        file(rows[1])
    file(rows[2])
    assert read_metrics(tmp_path / "metrics.csv") == rows
    assert len(said) == 1
