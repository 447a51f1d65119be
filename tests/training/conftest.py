"""Shards of a few small documents, and a configuration that trains tiny random backbones on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from flamingo_lite.config import Config
from flamingo_lite.data.make import DataConfig
from flamingo_lite.data.shards import write_shards
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.models.build import model_config_from
from flamingo_lite.training.flops import ATTENTION
from flamingo_lite.training.optim import OptimizerConfig
from flamingo_lite.training.settings import StageConfig, TrainerConfig
from flamingo_lite.training.tracking import WandbConfig


def document(number: int, image_of: Callable[[int], Image]) -> Document:
    """One to three examples: an image, and the number that it stands for."""
    segments: list[Text | Image] = []
    for item in range(number % 3 + 1):
        answer = Text(f" {(number + item) % 5}", ends_chunk=True)
        segments += [image_of((number + item) % 5), Text(" =", loss=False), answer]
    return Document(segments)


@pytest.fixture
def torchs_counter() -> FlopCounterMode:
    """torch's own counter of arithmetic, and of the kernels that this version of it does not know."""
    unknown = {kernel: count for kernel, count in ATTENTION.items() if kernel not in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=unknown)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, image_of: Callable[[int], Image]) -> Path:
    directory = tmp_path_factory.mktemp("data") / "shards"
    write_shards(((f"{i:04d}", document(i, image_of)) for i in range(23)), directory, samples_per_shard=10)
    return directory


@dataclass
class Recipe:
    """Makes configurations that differ in what a test is about."""

    model: dict[str, Any]
    shards: Path
    wandb: str = "disabled"
    stage: dict[str, Any] = field(default_factory=dict)

    def __call__(self, output: Path, **changes: Any) -> Config:
        stage = {
            "steps": 6,
            "batch_size": 4,
            "log_every": 1,
            "checkpoint_every": 3,
            "samples": 2,
            **self.stage,
        }
        trainer = {"accelerator": "cpu", "threads": 1, "workers": 0}
        for name in list(changes):
            if name in StageConfig.__dataclass_fields__:
                stage[name] = changes.pop(name)
            elif name in TrainerConfig.__dataclass_fields__:
                trainer[name] = changes.pop(name)
        return Config(
            name="test",
            output=str(output),
            model=model_config_from(self.model),
            data=DataConfig(directory=str(self.shards)),
            stage=StageConfig(**{"optimizer": OptimizerConfig(learning_rate=0.01, warmup_steps=2), **stage}),
            trainer=TrainerConfig(**trainer),
            wandb=WandbConfig(mode=changes.pop("wandb", self.wandb)),
            **changes,
        )


@pytest.fixture
def recipe(model_config: dict[str, Any], shards: Path) -> Recipe:
    return Recipe(model_config, shards)
