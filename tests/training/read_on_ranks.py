"""A run of training on the ranks that torchrun has started; each writes down what it was given, and its losses.

python -m torch.distributed.run --nproc_per_node 2 read_on_ranks.py SETTINGS.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from flamingo_lite.data.make import DataConfig
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.models.build import build, build_processor, model_config_from
from flamingo_lite.training.datamodule import Counting, ShardDataModule, open_sources
from flamingo_lite.training.module import TrainingModule
from flamingo_lite.training.optim import OptimizerConfig
from flamingo_lite.training.ranks import join, started_ranks
from flamingo_lite.training.settings import StageConfig, TrainerConfig
from flamingo_lite.training.skipping import SkippedSteps


class Witness(lightning.Callback):
    """Notes the documents of every batch, and the loss of every step."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append([used.key for used in batch.samples])
        if batch.position is not None:
            self.losses.append(float(pl_module.report.loss))


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    lightning.seed_everything(0, verbose=False)
    model_config = model_config_from(settings["model"])
    sources = {name: SourceConfig(path, 1.0) for name, path in settings["sources"].items()}
    data_config = DataConfig(sources=sources, shuffle_shards=2)
    stage = StageConfig(batch_size=8, steps=settings["steps"], pack=True, pack_window=16, row_length=40)
    data = ShardDataModule(
        open_sources(data_config),
        data_config,
        stage,
        build_processor(model_config),
        seed=0,
        max_length=40,
        accumulate=settings["accumulate"],
        workers=1,
        output=Path(settings["output"]),
    )
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
    trainer_config = TrainerConfig(accelerator="cpu", devices=settings["ranks"], strategy="auto")
    ranks = started_ranks(trainer_config)
    assert ranks is not None
    join(ranks, trainer_config)
    module = TrainingModule(
        build(model_config).train(),
        optimizer,
        data.steps,
        settings["accumulate"],
        ranks=ranks,
        skipped=SkippedSteps(Path(settings["output"]) / "skipped.jsonl", 1, ranks),
        notes={},
    )
    witness = Witness()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=settings["ranks"],
        strategy="ddp" if settings["ranks"] > 1 else "auto",
        max_steps=data.steps,
        max_epochs=-1,
        accumulate_grad_batches=settings["accumulate"],
        callbacks=[Counting(3), witness],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)
    state = data.state_dict()
    found = {"batches": witness.batches, "losses": witness.losses, "state": state}
    name = f"rank_{trainer.global_rank}_of_{trainer.world_size}.json"
    (Path(settings["output"]) / name).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
