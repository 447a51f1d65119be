"""Sweeps run by hydra's own launchers, each run in a folder of its own, and what cannot be is one line."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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


def launched(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a launcher sets up logging, signals and processes that would outlive the test."""
    return subprocess.run([sys.executable, "-m", "flamingo_lite", *words], capture_output=True, text=True)


@dataclass
class Sweep:
    code: int
    folder: Path
    printed: str
    said: str


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Sweep:
    """Three runs, two at a time, of which the last cannot be: two rows do not make three equal parts."""
    folder = tmp_path_factory.mktemp("sweep")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.accumulate=1,2,3"]
    done = launched("train", "-m", *words, *settings, f"output={folder}")
    return Sweep(done.returncode, folder, done.stdout, done.stderr)


def test_joblib_trains_each_run_in_a_folder_of_its_own(sweep: Sweep) -> None:
    for parts in (1, 2):
        folder = sweep.folder / f"trainer.accumulate={parts}"
        assert (folder / "flamingo" / "model.safetensors").is_file()
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (config["output"], config["trainer"]["accumulate"]) == (str(folder), parts)
        assert f"trainer.accumulate={parts}: the model is in {folder / 'flamingo'}" in sweep.printed


def test_a_run_writes_what_it_says_into_its_log(sweep: Sweep) -> None:
    assert "What trains" in (sweep.folder / "trainer.accumulate=2" / "log.txt").read_text()
    assert "does not divide" in (sweep.folder / "trainer.accumulate=3" / "log.txt").read_text()


def test_a_run_that_fails_is_named_in_one_line(sweep: Sweep) -> None:
    assert sweep.code == 2
    assert sweep.said.startswith(
        "flamingo-lite: 1 of 3 runs did not finish; trainer.accumulate=3: stage.batch_size"
    )
    assert sweep.said.count("\n") == 1


@pytest.mark.slow
def test_submitit_trains_on_this_machine_as_it_would_on_a_cluster(
    tmp_path: Path, settings: list[str]
) -> None:
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    done = launched("train", "-m", *launcher, *settings, f"output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "flamingo" / "model.safetensors").is_file()
    assert list((tmp_path / ".submitit").rglob("*_result.pkl"))


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
    cluster: Path, tmp_path: Path, settings: list[str]
) -> None:
    launcher = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.nodes=2"]
    done = launched("train", "-m", *launcher, *settings, "seed=0,1,2", f"output={tmp_path}/runs", "name=tiny")
    assert done.returncode == 2
    said = done.stderr.strip()
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


SLURM = {
    # Runs the job here, and again for as long as somebody has asked for that meanwhile.
    "sbatch": """
        cp "$1" {folder}/script.sh
        export SLURM_JOB_ID=77 SLURM_NODELIST=localhost SLURM_JOB_NODELIST=localhost
        (
          while true; do
            echo RUNNING > {folder}/state; rm -f {folder}/requeued
            bash {folder}/script.sh
            [ -e {folder}/requeued ] || break
          done
          echo COMPLETED > {folder}/state
        ) > {folder}/job.log 2>&1 < /dev/null &
        echo "Submitted batch job 77"
    """,
    "srun": """
        while [[ "$1" != *python* ]]; do shift; done
        echo $$ > {folder}/pid
        exec "$@"
    """,
    "sacct": """
        echo "JobID|State|NodeList"
        echo "77|$(cat {folder}/state)|localhost"
    """,
    "scontrol": """
        [ "$*" = "requeue 77" ] && touch {folder}/requeued
    """,
}


@pytest.mark.slow
def test_a_job_that_slurm_warns_saves_goes_back_into_the_queue_and_is_waited_for(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in SLURM.items():
        text = "#!/bin/bash\n" + textwrap.dedent(body).format(folder=tmp_path)
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    log = tmp_path / "run" / "log.txt"

    def warn() -> None:
        while not (log.exists() and "loss" in log.read_text()):
            time.sleep(0.2)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)

    threading.Thread(target=warn, daemon=True).start()
    long = [
        "hydra.launcher.tasks_per_node=1",
        "stage.steps=300",
        "stage.log_every=1",
        "stage.checkpoint_every=1000",
    ]
    done = launched("train", "-m", "hydra/launcher=slurm", *settings, *long, f"output={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    said = log.read_text()
    assert re.search(
        r"stopped by SIGUSR1 at step \d+ of 300, saved; SLURM has job 77 in the queue again", said
    )
    assert re.search(r"resuming \S+ at step \d+ of 300", said)
    assert (tmp_path / "run" / "flamingo" / "model.safetensors").is_file()
