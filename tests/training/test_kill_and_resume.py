"""`kill -9` at any moment, also while a checkpoint is written: what was trained is what an undisturbed run trains.

Compared bit by bit: the losses of all steps, the samples consumed in each, and the weights at the end; with a mixture of
sources, packed rows, accumulated batches, worker processes, adapters with dropout and documents that cannot be used.
"""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from safetensors.torch import load_file

from flamingo_lite.config import Config
from flamingo_lite.data.make import DataConfig
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.data.shards import write_shards
from flamingo_lite.training import checkpointing
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.stages import run_stage
from tests.training import ranks_helper
from tests.training.conftest import Recipe, document


class Consumed(lightning.Callback):
    """Notes which samples each step took, on this rank; a step that is taken again is noted again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step + (pl_module.report is None)
        line = json.dumps([step, batch.position is None, ["/".join(sample) for sample in batch.samples]])
        with (self.folder / f"consumed.{trainer.global_rank}").open("a") as file:
            file.write(line + "\n")


class KilledFile(checkpointing._HashingFile):
    """Dies in the middle of writing a checkpoint, when enough bytes are on the disk."""

    most = 0

    def write(self, data: Any) -> int:
        if self.bytes + len(data) > self.most:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)


def train(config: Config, folder: Path, killed_after_bytes: int | None = None) -> None:
    if killed_after_bytes is not None:
        KilledFile.most = killed_after_bytes
        checkpointing._HashingFile = KilledFile
    run_stage(config, callbacks=[Consumed(folder)])


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, image_of: Any) -> dict[str, SourceConfig]:
    """Two sources of short documents; in one of them an image is damaged."""
    folder = tmp_path_factory.mktemp("sources")
    for name, count in (("first", 40), ("second", 25)):
        write_shards(
            ((f"{name}-{i:03d}", document(i, image_of)) for i in range(count)),
            folder / name,
            samples_per_shard=10,
        )
    spoil_an_image(folder / "second" / "shard-000000.tar")
    return {
        "first": SourceConfig(str(folder / "first"), weight=2.0, loss_weight=0.5),
        "second": SourceConfig(str(folder / "second"), weight=1.0),
    }


def spoil_an_image(shard: Path) -> None:
    """Overwrites the pixels of the first image in `shard`: its document cannot be used any more."""
    data = bytearray(shard.read_bytes())
    start = data.find(b"\x89PNG")
    data[start + 8 : start + 60] = bytes(52)
    shard.write_bytes(data)


def config_of(recipe: Recipe, mixture: dict[str, SourceConfig], output: Path, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "steps": 24, "batch_size": 4, "accumulate": 2, "pack": True, "pack_window": 16, "max_length": 96,
        "checkpoint_every": 3, "keep": 2, "samples": 1, "workers": 1,
        "policy": {"language.*": {"mode": "lora", "rank": 2, "dropout": 0.1}}, **changes,
    }  # fmt: skip
    config = recipe(output, **settings)
    config.data = DataConfig(directory="", sources=mixture, workers=1)
    return config


def figures(output: Path, ranks: int) -> dict[str, Any]:
    """All that two runs must share: losses and gradient norms by step, the samples of each step, the weights."""
    rows = read_metrics(output / "metrics.csv")
    samples: dict[tuple[int, int, int], list[str]] = {}
    for rank in range(ranks):
        for line in (output.parent / f"consumed.{rank}").read_text().splitlines():
            step, turn, names = json.loads(line)
            samples[step, turn, rank] = names  # the last time that the step was taken counts
    weights = load_file(output / "flamingo" / "model.safetensors")
    return {
        "rows": [(row["step"], row["loss"], row["gradient_norm"], row["documents"]) for row in rows],
        # The lines of two ranks may come in either order.
        "rejects": sorted((output / "rejects.jsonl").read_text().splitlines()),
        "rejects by step": [{k: v for k, v in row.items() if k.startswith("rejects/")} for row in rows],
        "samples": samples,
        "weights": {name: tensor.clone() for name, tensor in weights.items()},
    }


def assert_identical(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["rows"] == wanted["rows"]
    assert found["rejects"] == wanted["rejects"]
    assert found["rejects by step"] == wanted["rejects by step"]
    assert found["weights"].keys() == wanted["weights"].keys()
    assert all(torch.equal(found["weights"][name], wanted["weights"][name]) for name in wanted["weights"])
    assert found["samples"] == wanted["samples"]


def run_and_kill(config: Config, folder: Path, ranks: int, kills: list[float | int]) -> int:
    """Starts the run again and again. Of `kills`, a float is the share of the rest of the run after which all ranks
    are killed, a number the bytes of a checkpoint after which its writer dies. Returns how many kills it took.
    """
    output, steps = Path(config.output), config.stage.steps
    done = 0
    for kill in kills:
        before = last_step(output)
        arguments = (config, folder, kill if isinstance(kill, int) else None)
        processes = ranks_helper.start(ranks, train, *arguments, log=folder / "log")
        goal = before + kill * (steps - before) if isinstance(kill, float) else steps + 1
        while all(process.exitcode is None for process in processes) and last_step(output) < goal:
            time.sleep(0.03)
        time.sleep(random.Random(done).uniform(0, 0.05))
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        done += any(process.exitcode == -signal.SIGKILL for process in processes)
    ranks_helper.run(ranks, train, config, folder)
    return done


def last_step(output: Path) -> int:
    rows = read_metrics(output / "metrics.csv")
    return int(rows[-1]["step"]) if rows else 0


def whole_run(recipe: Recipe, mixture: Any, folder: Path, ranks: int, **changes: Any) -> dict[str, Any]:
    folder.mkdir()
    ranks_helper.run(ranks, train, config_of(recipe, mixture, folder / "run", **changes), folder)
    return figures(folder / "run", ranks)


def test_a_run_killed_between_steps_and_in_a_checkpoint_is_bit_identical(
    recipe: Recipe, tmp_path: Path, mixture: dict[str, SourceConfig]
) -> None:
    wanted = whole_run(recipe, mixture, tmp_path / "whole", 1, steps=12)
    folder = tmp_path / "killed"
    folder.mkdir()
    config = config_of(recipe, mixture, folder / "run", steps=12)
    assert run_and_kill(config, folder, 1, [0.4, 20_000]) == 2
    assert_identical(figures(folder / "run", 1), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_at_ten_random_moments_is_bit_identical(
    recipe: Recipe, tmp_path: Path, mixture: dict[str, SourceConfig], ranks: int
) -> None:
    """Three of the ten fall into the writing of a checkpoint: at its beginning, in its middle, near its end."""
    wanted = whole_run(recipe, mixture, tmp_path / "whole", ranks, steps=40)
    folder = tmp_path / "killed"
    folder.mkdir()
    chance = random.Random(ranks)
    kills = [chance.uniform(0.02, 0.2) for _ in range(7)]
    size = next((tmp_path / "whole" / "run" / "checkpoints").glob("*.ckpt")).stat().st_size
    for place, share in ((1, 0.01), (4, 0.5), (8, 0.99)):
        kills.insert(place, int(share * size))
    config = config_of(recipe, mixture, folder / "run", steps=40)
    assert run_and_kill(config, folder, ranks, kills) == 10
    assert_identical(figures(folder / "run", ranks), wanted)
