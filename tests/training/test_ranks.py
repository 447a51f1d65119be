"""What ranks tell each other while one of them works alone."""

import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as distributed
from lightning.fabric.plugins.environments import TorchElasticEnvironment

from flamingo_lite.training.ranks import Ranks
from tests.training import ranks_helper

PATIENCE = 6.0


def work_alone(seconds: float, folder: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    ranks = Ranks(2, 1, TorchElasticEnvironment())

    def work(is_alive) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)
            is_alive()
        return "done"

    (folder / str(ranks.rank)).write_text(ranks.first_alone(work))


def test_ranks_wait_for_the_first_one_longer_than_they_have_patience(tmp_path: Path) -> None:
    ranks_helper.run(2, work_alone, 1.5 * PATIENCE, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["done", "done"]


def test_one_rank_alone_waits_for_nobody() -> None:
    assert Ranks().first_alone(lambda is_alive: is_alive() or 7) == 7
