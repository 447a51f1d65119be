"""LLaVA's two stages by the presets' own policies: what stays bit for bit, what changes, and who is named when marks do
not fit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch

from flamingo_lite.checkpoints.io import load
from flamingo_lite.config import load_config
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe

LINEAR: dict[str, Any] = {"name": "linear"}
MLP2X_GELU: dict[str, Any] = {"name": "mlp", "depth": 2, "activation": "gelu"}


@pytest.fixture
def llava_recipe(prefix_config: dict[str, Any], shards: Path) -> Recipe:
    return Recipe({**prefix_config, "connector": MLP2X_GELU}, shards, stage={"steps": 2, "samples": 0})


def policy_of(stage: str) -> dict[str, Any]:
    return load_config([f"stage={stage}"]).stage.policy


def sha256(model: VisionLanguageModel) -> dict[str, str]:
    """By parameter and buffer."""
    return {
        name: hashlib.sha256(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def changed(before: VisionLanguageModel, after: VisionLanguageModel) -> set[str]:
    old, new = sha256(before), sha256(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


def started(recipe: Recipe, output: Path, policy: dict[str, Any]) -> VisionLanguageModel:
    """The model as the run of the recipe starts from it."""
    config = recipe(output, policy=policy)
    lightning.seed_everything(config.seed, verbose=False)
    model = build(config.model)
    apply_policy(model, policy)
    return model


@pytest.mark.parametrize(
    ("connector", "stage"), [(LINEAR, "tiny_align"), (MLP2X_GELU, "tiny_align"), (MLP2X_GELU, "llava_align")]
)
def test_the_first_stage_changes_the_projector_alone(
    llava_recipe: Recipe, tmp_path: Path, connector: dict[str, Any], stage: str
) -> None:
    llava_recipe.model = {**llava_recipe.model, "connector": connector}
    policy = policy_of(stage)
    before = started(llava_recipe, tmp_path, policy)
    after, _ = load(run_stage(llava_recipe(tmp_path / "run", policy=policy)))
    found = changed(before, after)
    assert found == {name for name, _ in before.named_parameters() if name.startswith("connector.")}
    assert {name.split(".")[0] for name in sha256(before)} == {"connector", "language", "vision"}


@pytest.mark.parametrize("stage", ["tiny_instruct", "tiny_lora", "llava_instruct", "llava_lora"])
def test_the_second_stage_changes_what_the_table_says(
    llava_recipe: Recipe, tmp_path: Path, stage: str
) -> None:
    first = run_stage(llava_recipe(tmp_path / "first", policy=policy_of("tiny_align")))
    policy = policy_of(stage)
    before, _ = load(first)
    table = apply_policy(before, policy)
    after, _ = load(run_stage(llava_recipe(tmp_path / "second", start=str(first), policy=policy)))
    assert changed(before, after) == {name for name, p in before.named_parameters() if p.requires_grad}
    assert sum(row.trainable for row in table) == sum(
        p.numel() for p in after.parameters() if p.requires_grad
    )
    parts = {row.part for row in table if row.trainable}
    full = {"connector", "language model", "new rows"}
    wanted = {
        "tiny_instruct": {*full, "vision encoder"},
        "llava_instruct": full,
        "tiny_lora": {"connector", "adapters"},
        "llava_lora": {"connector", "adapters"},
    }
    assert parts == wanted[stage]


class OneMarkLess(lightning.Callback):
    """Takes a mark from the second row of the third batch."""

    def __init__(self, image_token_id: int) -> None:
        self.image_token_id = image_token_id
        self.names: list[str] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            ids = batch.batch.input_ids
            place = (ids[1] == self.image_token_id).nonzero()[0]
            ids[1, place] = 7
            segments = batch.batch.segment_ids
            rows = [1] if segments is None else [i for i in segments[1].unique().tolist() if i >= 0]
            self.names = ["/".join(batch.samples[i]) for i in rows]


@pytest.mark.parametrize("pack", [False, True])
def test_marks_that_do_not_fit_stop_a_run_by_the_names_of_the_samples(
    prefix_config: dict[str, Any], shards: Path, tmp_path: Path, pack: bool
) -> None:
    spoil = OneMarkLess(build(prefix_config).config.image_token_id)
    config = Recipe(prefix_config, shards)(tmp_path / "run", pack=pack, row_length=64 if pack else None)
    with pytest.raises(FlamingoError, match=r"row 1 has \d+ <image> ids and reads \d images") as raised:
        run_stage(config, callbacks=[spoil])
    assert spoil.names and str(raised.value).startswith(f"sample {', '.join(spoil.names)}: ")
