"""The data of a run: sources, their plan, the batches that workers prepare, and where the run stands in it.

The state is three numbers and the names of what decides the order, the same on all ranks; going on from it reads no
shard. Ranks, accumulated batches and workers are no part of it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from flamingo_lite.data.batches import Packing, Plan, Position, Recipe, rows_each, share
from flamingo_lite.data.encoding import source_template
from flamingo_lite.data.features import FeatureCache
from flamingo_lite.data.lengths import Lengths, Measure, Progress, index_lengths
from flamingo_lite.data.make import DataConfig, available_cores
from flamingo_lite.data.manifest import Manifest
from flamingo_lite.data.mixing import Mixture, SourceConfig
from flamingo_lite.data.order import Numbers
from flamingo_lite.data.prepared import PreparedBatch
from flamingo_lite.data.reader import Reader, Source
from flamingo_lite.data.shards import Shards
from flamingo_lite.data.stores import check_room, open_store
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.results import sha256_of_json
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.beside import Beside, drop_lines_after
from flamingo_lite.training.rejects import Consumption
from flamingo_lite.training.settings import StageConfig

ONLY_SOURCE = "data"
"""What the one source is called where data.directory alone names it."""


def source_configs(data: DataConfig) -> dict[str, SourceConfig]:
    """The sources by name, in the order of their names: in which order they were written changes nothing."""
    if not data.sources:
        return {ONLY_SOURCE: SourceConfig(data.directory)}
    return dict(sorted(data.sources.items()))


def open_sources(data: DataConfig) -> dict[str, Shards]:
    """The shards of each source; reads their manifests.

    Errors: `FlamingoError` for a source without shards, and a cache that cannot hold those read at a time.
    """
    opened = {
        name: Shards(open_store(source.directory, data.cache))
        for name, source in source_configs(data).items()
    }
    read = [(shards.store, shards.manifest.shards) for shards in opened.values()]
    check_room(data.cache, read, data.shuffle_shards)
    return opened


def shards_sha256(manifest: Manifest) -> str:
    """Identifies the data of a source: its shards' contents, in order."""
    return sha256_of_json([shard.sha256 for shard in manifest.shards])


class ShardDataModule(lightning.LightningDataModule):
    """The batches of a stage. `accumulate`, `workers`: see `TrainerConfig`; they change no batch.

    `max_length`: where documents are cut. `output`: where rejects are written down.
    `steps`: those that the stage names, or those that its epochs come to.
    Errors: `FlamingoError` for settings that cannot be, naming the setting.
    """

    def __init__(
        self,
        shards: Mapping[str, Shards],
        data: DataConfig,
        stage: StageConfig,
        processor: VisionLanguageProcessor,
        seed: int,
        max_length: int | None = None,
        accumulate: int = 1,
        workers: int = 0,
        output: Path | None = None,
        progress: Progress | None = None,
        features: FeatureCache | None = None,
        beside: Beside | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.data, self.stage, self.processor, self.seed = data, stage, processor, seed
        self.max_length, self.accumulate, self.workers = max_length, accumulate, workers
        configs = source_configs(data)
        self.sources = [
            Source(name, shards[name], source_template(processor, config.template, name), config.loss_weight)
            for name, config in configs.items()
        ]
        sizes = {name: source_sizes(shards[name], config, name) for name, config in configs.items()}
        weights = {name: config.weight for name, config in configs.items()}
        mixture = Mixture(sizes, weights, seed, data.shuffle_shards)
        self.packing = self._packing(progress) if stage.pack else None
        self.plan = Plan(mixture, stage.batch_size, self.packing, documents_of(stage, mixture))
        self.steps = stage.steps if stage.epochs is None else self.plan.count()
        self.position = Position()
        self.consumption = Consumption(output, data.max_reject_share, data.max_rejects_in_a_row, beside)

    def train_dataloader(self) -> "Batches":
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        budgets = (self.packing.tokens, self.packing.images) if self.packing else (None, None)
        return Batches(
            DataLoader(
                Reader(
                    self.sources, self.processor, self.max_length, *budgets, self.data.draft, self.features
                ),
                batch_size=None,
                sampler=Recipes(self.plan, self.position, self.steps, rank, ranks, self.accumulate),
                num_workers=self.workers,
                # Its own generator: the loader must not draw from the one that training is seeded with.
                generator=torch.Generator().manual_seed(self.seed),
                pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            ),
            by_step=self.stage.loss_mean == "sources",
        )

    def took(self, batch: PreparedBatch) -> None:
        """Counts a batch that was trained on; the run then stands behind it."""
        self.consumption.take(batch, self.position.batches + 1)
        if batch.position is not None:
            self.position = Position(*batch.position)

    def identity(self) -> dict[str, str]:
        """What decides which documents come in which batch, by the names under which a refusal speaks of it."""
        configs = source_configs(self.data)
        mixture = {
            name: (config.weight, config.samples, config.loss_weight) for name, config in configs.items()
        }
        packing = self.packing
        found = {
            "seed": str(self.seed),
            "stage.batch_size": str(self.stage.batch_size),
            "mixture (data.sources: names, weights, samples)": sha256_of_json(mixture)[:16],
            "data.shuffle_shards": str(self.data.shuffle_shards),
            "stage.epochs": str(self.stage.epochs),
            "packing (window, tokens and images of a row)": "none"
            if packing is None
            else f"{packing.window}, {packing.tokens}, {packing.images}",
        }
        for source in self.sources:
            found[f"set of shards of source {source.name}"] = shards_sha256(source.shards.manifest)[:16]
            measure = Measure(self.processor, source.template, self.max_length)
            found[f"tokenizer, template or length of source {source.name}"] = measure.key
        return found

    def state_dict(self) -> dict[str, Any]:
        """The same on all ranks, and all of them must ask for it: what they counted is added up."""
        self.consumption.gather()
        state = {"position": list(self.position), "identity": self.identity()}
        return state | {"consumption": self.consumption.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Errors: `FlamingoError` naming what differs from the run that the state is of."""
        check_same_data(state_dict["identity"], self.identity())
        self.position = Position(*(int(value) for value in state_dict["position"]))
        self.consumption.load_state_dict(state_dict["consumption"])

    def _packing(self, progress: Progress | None) -> Packing:
        stage = self.stage
        if (row_length := stage.row_length or self.max_length) is None:
            raise FlamingoError(
                "stage.pack needs the length of a row, and the language model has no context that says one; "
                "set stage.row_length"
            )
        lengths = [
            index_lengths(
                source.shards,
                Measure(self.processor, source.template, self.max_length),
                elsewhere=None if self.data.cache.directory is None else Path(self.data.cache.directory),
                workers=self.data.workers or available_cores(),
                progress=progress,
            )
            for source in self.sources
        ]
        return Packing(stage.pack_window, row_length, stage.images_per_row, measured(lengths))


class Recipes:
    """One rank's recipes from a position on, to the last step: the sampler of a DataLoader."""

    def __init__(
        self, plan: Plan, position: Position, steps: int, rank: int, ranks: int, accumulate: int
    ) -> None:
        self.plan, self.position, self.steps = plan, position, steps
        self.rank, self.ranks, self.accumulate = rank, ranks, accumulate
        self.micro = rows_each(plan.batch_size, ranks, accumulate)

    def __iter__(self) -> Iterator[Recipe]:
        if self.position.batches >= self.steps:
            return
        for rows, position in self.plan.batches(self.position):
            yield from share(rows, self.micro, self.rank, self.ranks, self.accumulate, position)
            if position.batches == self.steps:
                return


class Batches:
    """A loader's batches; a message in place of one is raised here, in the main process.

    `by_step`: those of a step are read before the first of them is given, and say what all of them train on.
    """

    def __init__(self, loader: DataLoader[PreparedBatch | str], by_step: bool = False) -> None:
        self.loader, self.by_step = loader, by_step

    def __iter__(self) -> Iterator[PreparedBatch]:
        step: list[PreparedBatch] = []
        for batch in self.loader:
            if isinstance(batch, str):
                raise FlamingoError(batch)
            step.append(batch)
            if self.by_step and batch.position is None:  # others of this step follow
                continue
            by_source = zip(*(part.trained for part in step), strict=True)
            trained: tuple[int, ...] = tuple(int(sum(counts)) for counts in by_source)
            for part in step:
                yield replace(part, step_trained=trained) if self.by_step else part
            step = []


class Counting(lightning.Callback):
    """Tells the data module what was trained on. Ranks are added up every `every` steps; one alone, at each."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        data = trainer.datamodule  # pyrefly: ignore[missing-attribute]
        assert isinstance(data, ShardDataModule)
        if trainer.is_global_zero and data.consumption.file is not None:
            drop_lines_after(data.consumption.file.path, data.position.batches)
        # No rank writes before what is there has been sorted out.
        trainer.strategy.barrier()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        data = trainer.datamodule  # pyrefly: ignore[missing-attribute]
        assert isinstance(data, ShardDataModule)
        data.took(batch)
        is_due = data.position.batches % self.every == 0 or data.position.batches == data.steps
        if batch.position is not None and (is_due or trainer.world_size == 1):
            data.consumption.gather()


def source_sizes(shards: Shards, config: SourceConfig, name: str) -> list[int]:
    """The samples of each shard that are used. Errors: `FlamingoError` when there are fewer than `config.samples`."""
    sizes = [shard.samples for shard in shards.manifest.shards]
    if config.samples is None:
        return sizes
    if config.samples > sum(sizes):
        raise FlamingoError(
            f"data.sources.{name}.samples is {config.samples:,}, but there are {sum(sizes):,}; expected at most that"
        )
    ends = np.minimum(np.cumsum(sizes), config.samples)
    return np.diff(ends, prepend=0).tolist()


def documents_of(stage: StageConfig, mixture: Mixture) -> int | None:
    """The documents after which the run ends; None where its steps are counted.

    Errors: `FlamingoError` for epochs of a mixture with weights, which has none.
    """
    if stage.epochs is None:
        return None
    if mixture.counts is not None:
        raise FlamingoError(
            f"stage.epochs is {stage.epochs}, but data.sources have weights ({', '.join(mixture.names)}), so that no "
            "epoch ends; use stage.steps, or take the weights out"
        )
    return stage.epochs * mixture.samples


def measured(lengths: list[Lengths]) -> Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]:
    """The lengths of documents of several sources, by (source, number)."""

    def of(sources: Numbers, numbers: Numbers) -> tuple[Numbers, Numbers]:
        tokens, images = np.zeros_like(numbers), np.zeros_like(numbers)
        for source in np.unique(sources).tolist():
            mine = sources == source
            tokens[mine], images[mine] = lengths[source].take(numbers[mine])
        return tokens, images

    return of


def check_same_data(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Errors: `FlamingoError` that names what decides the order and differs."""
    for name in [*before, *(name for name in now if name not in before)]:
        if before.get(name) != now.get(name):
            raise FlamingoError(
                f"the checkpoint stands in other data: the {name} was {before.get(name, 'absent')}, now it is "
                f"{now.get(name, 'absent')}; bring it back, or start over with resume=never"
            )
