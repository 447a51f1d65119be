"""Many processes train as one: equal losses, nothing frozen moves, no collective too many, no hang."""

import contextlib
import json
from collections import Counter
from pathlib import Path
from signal import SIGTERM
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch

from flamingo_lite.checkpoints.io import load
from flamingo_lite.config import Config
from flamingo_lite.data.shards import write_shards
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import Interrupted
from flamingo_lite.models.build import build
from flamingo_lite.models.policy import frozen_sha256
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.sharding import local
from flamingo_lite.training.stages import run_stage
from tests.training import ranks_helper
from tests.training.conftest import Recipe


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


class Memory(lightning.Callback):
    """Writes down what holds optimizer state after the last step; nothing frozen ever has a gradient."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        frozen = [
            name for name, p in pl_module.named_parameters() if not p.requires_grad and p.grad is not None
        ]
        assert not frozen, frozen

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        [optimizer] = trainer.optimizers
        trainable = {id(p) for p in pl_module.parameters() if p.requires_grad}
        held = sum(local(m).numel() for s in optimizer.state.values() for n, m in s.items() if n != "step")
        facts = {
            "is_of_trainable_only": {id(p) for p in optimizer.state} == trainable,
            "moments": held,
            "mine": sum(local(p).numel() for p in pl_module.parameters()),
            "all": sum(p.numel() for p in pl_module.parameters()),
            "trainable": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
        }
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(facts))


def watched(config: Config, path: Path) -> None:
    run_stage(config, callbacks=[Memory(path)])


def counted(config: Config, path: Path) -> None:
    """A run whose collectives are counted, by torch's own profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run_stage(config)
    counts = Counter(event.name for event in profile.events() if event.name.startswith("c10d::"))
    path.with_suffix(".counts").write_text(json.dumps(counts))


def facts(path: Path, rank: int) -> dict[str, Any]:
    return json.loads(path.with_suffix(f".{rank}").read_text())


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, model_config: dict[str, Any], shards: Path
) -> dict[str, Path]:
    """The same 20 steps on one process, and on two under either strategy, by name."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = Recipe(model_config, shards, stage={"steps": 20, "samples": 1, "checkpoint_every": 100})
    run_stage(recipe(folder / "one", batch_size=4))
    for name in ("ddp", "fsdp2"):
        ranks_helper.run(2, watched, recipe(folder / name, batch_size=4, strategy=name), folder / name)
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


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_nothing_frozen_has_a_gradient_or_optimizer_state(trained: dict[str, Path], name: str) -> None:
    found = [facts(trained[name], rank) for rank in (0, 1)]
    assert all(of_rank["is_of_trainable_only"] for of_rank in found)
    wanted = 2 * found[0]["trainable"] * (2 if name == "ddp" else 1)
    assert sum(of_rank["moments"] for of_rank in found) == wanted


def test_fsdp2_shares_frozen_parameters_too(trained: dict[str, Path]) -> None:
    found = [facts(trained["fsdp2"], rank) for rank in (0, 1)]
    assert found[0]["mine"] + found[1]["mine"] == found[0]["all"]
    assert max(of_rank["mine"] for of_rank in found) < 0.6 * found[0]["all"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "collective"), [("ddp", "c10d::allreduce_"), ("fsdp2", "c10d::_reduce_scatter_base_")]
)
def test_accumulated_batches_add_no_collective_for_gradients(
    recipe: Recipe, tmp_path: Path, name: str, collective: str
) -> None:
    counts = []
    for accumulate in (1, 3):
        output = tmp_path / f"accumulate-{accumulate}"
        config = recipe(output, steps=2, batch_size=6, accumulate=accumulate, strategy=name, samples=1)
        ranks_helper.run(2, counted, config, output)
        counts.append(json.loads(output.with_suffix(".counts").read_text())[collective])
    assert counts[0] == counts[1] > 0


def test_ranks_with_and_without_images_train_together(recipe: Recipe, tmp_path: Path, image_of: Any) -> None:
    """One document in six has an image: in most steps one rank has none, in some neither has."""
    documents = (
        Document([*([image_of(i)] if i % 6 == 0 else []), Text(f"number {i}", ends_chunk=True)])
        for i in range(24)
    )
    recipe.shards = tmp_path / "shards"
    write_shards(((f"{i:03d}", d) for i, d in enumerate(documents)), recipe.shards, samples_per_shard=12)
    run_stage(recipe(tmp_path / "one", batch_size=2, steps=12, samples=1))
    for name in ("ddp", "fsdp2"):
        ranks_helper.run(
            2, run_stage, recipe(tmp_path / name, batch_size=2, steps=12, strategy=name, samples=1)
        )
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def stop_at(config: Config, step: int) -> None:
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.lightning_module.signal = SIGTERM if trainer.global_step == step - 1 else None

    with contextlib.suppress(Interrupted):
        run_stage(config, callbacks=[Stop()])


@pytest.mark.parametrize(
    ("before", "after"), [((2, "ddp"), (1, "auto")), ((1, "auto"), (2, "fsdp2")), ((2, "fsdp2"), (2, "ddp"))]
)
def test_a_run_resumes_on_other_ranks_and_under_another_strategy(
    recipe: Recipe, tmp_path: Path, trained: dict[str, Path], before: tuple[int, str], after: tuple[int, str]
) -> None:
    recipe.stage = {"steps": 20, "samples": 1, "checkpoint_every": 100}
    output = tmp_path / "run"
    ranks_helper.run(before[0], stop_at, recipe(output, batch_size=4, strategy=before[1]), 9)
    assert len(losses(output)) == 9
    ranks_helper.run(after[0], run_stage, recipe(output, batch_size=4, strategy=after[1]))
    assert losses(output) == pytest.approx(losses(trained["one"]), abs=1e-4)


@pytest.mark.slow
def test_fsdp2_shares_adapters_and_narrow_frozen_weights(recipe: Recipe, tmp_path: Path) -> None:
    recipe.stage = {"steps": 4, "samples": 1, "policy": {"language.*": {"mode": "lora", "rank": 2}}}
    for name in ("ddp", "fsdp2"):
        config = recipe(tmp_path / name, strategy=name, precision="bf16-mixed", frozen_dtype="bfloat16")
        ranks_helper.run(2, run_stage, config)
    assert losses(tmp_path / "fsdp2") == pytest.approx(losses(tmp_path / "ddp"), abs=2e-2)
