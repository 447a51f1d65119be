"""Sweeps run by hydra's own launchers, each run in a folder of its own, and what cannot be is one line."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flamingo_lite.cli import main
from flamingo_lite.data.shards import write_shards
from flamingo_lite.document import Document, Image, Text


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, image_of: Callable[[int], Image]) -> list[str]:
    """Two steps on eight small documents."""
    shards = tmp_path_factory.mktemp("launched") / "shards"
    documents = [Document([image_of(i), Text(f" {i}", ends_chunk=True)]) for i in range(8)]
    write_shards(((f"{i:04d}", document) for i, document in enumerate(documents)), shards, 8)
    return [
        f"data.directory={shards}", "stage.steps=2", "stage.batch_size=2", "stage.pack=false", "stage.samples=0",
        "stage.max_length=32", "wandb.mode=disabled", "trainer.accelerator=cpu", "trainer.threads=1",
        "trainer.workers=0",
    ]  # fmt: skip


def seed_of(folder: Path) -> int:
    return yaml.safe_load((folder / "config.yaml").read_text())["seed"]


def test_joblib_trains_the_runs_of_a_sweep(
    tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert main(["train", "-m", *launcher, *settings, "seed=0,1", f"output={tmp_path}"]) == 0
    said = capsys.readouterr().out
    for seed in (0, 1):
        folder = tmp_path / f"seed={seed}"
        assert (folder / "flamingo" / "model.safetensors").is_file()
        assert seed_of(folder) == seed
        assert "What trains" in (folder / "log.txt").read_text()
        assert f"seed={seed}: the model is in {folder / 'flamingo'}" in said


def test_submitit_trains_on_this_machine_as_it_would_on_a_cluster(
    tmp_path: Path, settings: list[str]
) -> None:
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    assert main(["train", "-m", *launcher, *settings, f"output={tmp_path}"]) == 0
    assert (tmp_path / "flamingo" / "model.safetensors").is_file()
    assert list((tmp_path / ".submitit").rglob("*_result.pkl"))


def test_a_run_that_fails_is_named_and_the_others_finish(
    tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "-m", "hydra/launcher=basic", *settings, "trainer.accumulate=1,3", f"output={tmp_path}"]
    assert main(words) == 2
    # transformers' bars, which end in no line break, come before.
    said = capsys.readouterr().err.strip().rpartition("flamingo-lite: ")[2]
    assert said.startswith("1 of 2 runs did not finish; trainer.accumulate=3: ")
    assert "\n" not in said
    assert (tmp_path / "trainer.accumulate=1" / "flamingo").is_dir()
    assert "accumulate" in (tmp_path / "trainer.accumulate=3" / "log.txt").read_text()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM whose queue takes nothing: it keeps what it was given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in {"srun": "exit 0", "sbatch": f'cp "$1" {tmp_path}/script.sh; exit 1'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "script.sh"


def test_the_script_for_sbatch_asks_for_what_the_preset_and_the_overrides_say(
    cluster: Path, tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.nodes=2"]
    words = ["train", "-m", *launcher, *settings, "seed=0,1,2", f"output={tmp_path}/runs", "name=tiny"]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("flamingo-lite: SlurmLauncher: ")
    assert "\n" not in said
    script = cluster.read_text()
    for line in (
        "--array=0-2%3", "--job-name=tiny", "--partition=gpu", "--nodes=2", "--ntasks-per-node=8",
        "--gpus-per-node=8", "--cpus-per-task=8", "--time=1440", "--signal=USR1@120", "--requeue",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert re.search(r"^srun .* -u -m submitit\.core\._submit ", script, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "hydra/launcher=joblip"], "did you mean 'joblib'?"),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.n_job=1"], "did you mean 'n_jobs'?"),
        (["-m", "hydra/launcher=slurm", "hydra.launcher.partitio=x"], "did you mean 'partition'?"),
        (["-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=1h"], "timeout_min=1h"),
        (["-m", "hydra.launcher.n_jobs=1"], "sets a launcher that is not chosen"),
        (["hydra/launcher=joblib"], "add -m"),
        (["hydra.verbose=true"], "unknown option 'hydra.verbose'"),
    ],
)
def test_a_launcher_that_cannot_be_is_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, f"output={tmp_path}"]) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said
    assert "\n" not in said
