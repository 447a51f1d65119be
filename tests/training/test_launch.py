"""Ranks of one machine live and end together, and the run says why in one line."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flamingo_lite.errors import FlamingoError, Interrupted
from flamingo_lite.training.beginning import as_yaml
from flamingo_lite.training.launch import supervise
from flamingo_lite.training.ranks import started_ranks
from flamingo_lite.training.settings import TrainerConfig
from tests.training.conftest import Recipe

SLEEP = "import time; time.sleep(60)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_each_rank_finds_torchruns_variables(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
    code = (
        "import os, pathlib\n"
        f"found = ' '.join(os.environ[name] for name in {names!r})\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(found)"
    )
    supervise([python(code)] * 2)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == [
        f"{rank} {rank} 2 2 0 127.0.0.1" for rank in (0, 1)
    ]


def test_a_rank_that_is_killed_ends_the_others_and_is_named() -> None:
    started = time.monotonic()
    with pytest.raises(
        FlamingoError, match=r"rank 1 was ended by SIGKILL.*continues from the last checkpoint"
    ):
        supervise([python(SLEEP), python("import os; os.kill(os.getpid(), 9)")], grace=0.2)
    assert time.monotonic() - started < 20


def test_what_a_rank_says_on_its_way_out_is_the_line_of_the_run() -> None:
    code = "import sys; print('flamingo-lite: no shards here', file=sys.stderr); sys.exit(2)"
    with pytest.raises(FlamingoError, match=r"^no shards here$"):
        supervise([python(SLEEP), python(code)], grace=0.2)


def test_a_bug_in_another_rank_keeps_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FlamingoError, match=r"rank 1 ended with exit code 1: ZeroDivisionError"):
        supervise([python(SLEEP), python("1 / 0")], grace=0.2)
    assert "Traceback" in capfd.readouterr().err


def test_sigterm_reaches_the_ranks_and_what_they_answer_is_kept(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, pathlib, os\n"
        "def stop(*_): print('flamingo-lite: stopped at step 3', file=sys.stderr); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(60)"
    )

    def tell() -> None:
        while not all((tmp_path / rank).exists() for rank in "01"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    with pytest.raises(Interrupted, match=r"^stopped at step 3$"):
        supervise([python(code)] * 2)


def test_a_signal_that_takes_a_rank_while_it_starts_interrupts_the_run() -> None:
    with pytest.raises(
        Interrupted, match=r"rank 0 was stopped by SIGUSR1 while it started; the same command"
    ):
        supervise([python("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)")], grace=0.2)


def test_a_rank_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    rank = (
        "import os, pathlib, time\n"
        "from flamingo_lite.training.launch import leave_with_supervisor\n"
        "leave_with_supervisor()\n"
        f"pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    outer = (
        "import sys\n"
        "from flamingo_lite.training.launch import supervise\n"
        f"supervise([[sys.executable, '-c', {rank!r}]])"
    )
    process = subprocess.Popen(python(outer))
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 30
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    child = Path("/proc", pid.read_text())
    while (
        child.exists() and "Z" not in (child / "stat").read_text().split()[2] and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert time.monotonic() < deadline


def test_what_torchrun_started_is_read_from_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 5), ("WORLD_SIZE", 8), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    ranks = started_ranks(TrainerConfig())
    assert ranks is not None and (ranks.devices, ranks.nodes, ranks.rank) == (4, 2, 5)
    with pytest.raises(FlamingoError, match=r"trainer\.devices is 2, but torchrun has started 4"):
        started_ranks(TrainerConfig(devices=2))


def test_what_srun_started_is_read_from_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "SLURM_STEP_NUM_TASKS": 8, "SLURM_STEP_NUM_NODES": 2, "SLURM_NTASKS": 8, "SLURM_PROCID": 6,
        "SLURM_LOCALID": 2, "SLURM_NODEID": 1, "SLURM_JOB_ID": 7, "SLURM_NODELIST": "node[1-2]",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    ranks = started_ranks(TrainerConfig())
    assert ranks is not None and (ranks.devices, ranks.nodes, ranks.rank) == (4, 2, 6)
    assert ranks.environment.main_address == "node1"


def test_several_nodes_need_a_launcher() -> None:
    with pytest.raises(FlamingoError, match=r"trainer\.nodes is 2.*torchrun.*srun"):
        started_ranks(TrainerConfig(nodes=2))


def test_alone_there_is_one_rank_and_several_devices_are_to_be_launched() -> None:
    alone = started_ranks(TrainerConfig())
    assert alone is not None and (alone.number, alone.rank) == (1, 0)
    assert started_ranks(TrainerConfig(devices=2)) is None


@pytest.mark.slow
def test_the_command_trains_on_two_devices_and_ends_with_the_ranks_own_line(
    recipe: Recipe, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(recipe(tmp_path / "run", devices=2, samples=1)))
    command = [sys.executable, "-m", "flamingo_lite", "train", "--config", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("the model is in") == 1 and (tmp_path / "run" / "flamingo").is_dir()
    ended = subprocess.run(
        [*command, "stage.batch_size=5", "resume=never"], capture_output=True, text=True, timeout=500
    )
    assert ended.returncode == 2
    assert (
        ended.stderr.strip().splitlines()[-1].startswith("flamingo-lite: stage.batch_size=5 does not divide")
    )
    assert "Traceback" not in ended.stderr
