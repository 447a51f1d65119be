"""Many processes train as one: equal losses, nothing frozen moves, no collective too many, no hang."""

from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.checkpoints.io import load
from flamingo_lite.models.build import build
from flamingo_lite.models.policy import frozen_sha256
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.stages import run_stage
from tests.training import ranks_helper
from tests.training.conftest import Recipe


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, model_config: dict[str, Any], shards: Path
) -> dict[str, Path]:
    """The same 20 steps on one process, and on two under either strategy, by name."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = Recipe(model_config, shards, stage={"steps": 20, "samples": 1, "checkpoint_every": 100})
    run_stage(recipe(folder / "one", batch_size=4))
    ranks_helper.run(2, run_stage, recipe(folder / "ddp", batch_size=4, strategy="ddp"))
    ranks_helper.run(2, run_stage, recipe(folder / "fsdp2", batch_size=4, strategy="fsdp2"))
    return {name: folder / name for name in ("one", "ddp", "fsdp2")}


def test_two_ddp_processes_have_the_losses_of_one_with_the_doubled_batch(trained: dict[str, Path]) -> None:
    assert losses(trained["ddp"]) == pytest.approx(losses(trained["one"]), abs=1e-5)


def test_fsdp2_has_the_losses_of_ddp(trained: dict[str, Path]) -> None:
    assert losses(trained["fsdp2"]) == pytest.approx(losses(trained["ddp"]), abs=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_frozen_parts_are_untouched(
    trained: dict[str, Path], model_config: dict[str, Any], name: str
) -> None:
    model, _ = load(trained[name] / "flamingo")
    assert frozen_sha256(model) == frozen_sha256(build(model_config))
