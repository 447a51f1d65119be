"""The lengths of all documents of a run, measured before it: with a bar, for as many sources as there are."""

from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from flamingo_lite.checkpoints import io as checkpoints
from flamingo_lite.data.encoding import source_template, use_changes, use_image_changes
from flamingo_lite.data.lengths import Lengths, Measure, Progress, index_lengths
from flamingo_lite.data.make import available_cores
from flamingo_lite.data.shards import Shards
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.language import context_length
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.datamodule import open_sources, source_configs
from flamingo_lite.training.display import ProgressDisplay
from flamingo_lite.training.settings import StageConfig, TrainingConfig


def measure_sources(
    config: TrainingConfig, console: Console, fresh: bool = False
) -> Iterator[tuple[str, Shards, Lengths]]:
    """(name, shards, lengths) of each source, as training with this config would measure them.

    fresh: also what was measured already. Errors: `FlamingoError` as in training.
    """
    opened = open_sources(config.data)
    processor, longest = processor_and_context(config)
    cache = config.data.cache.directory
    for name, source in source_configs(config.data).items():
        measure = Measure(processor, source_template(processor, source.template, name), longest)
        yield (
            name,
            opened[name],
            index_lengths(
                opened[name],
                measure,
                elsewhere=None if cache is None else Path(cache),
                workers=config.data.workers or available_cores(),
                progress=measuring(console),
                fresh=fresh,
            ),
        )


def processor_and_context(config: TrainingConfig) -> tuple[VisionLanguageProcessor, int | None]:
    """The processor of the run's model, and where its documents are cut; no weights are read where none need be."""
    stage = config.stage
    is_new = stage.start is None
    processor = build_processor(config.model) if is_new else checkpoints.load_processor(str(stage.start))
    use_stage(processor, stage)
    if stage.max_length is not None:
        return processor, stage.max_length
    if not is_new:
        return processor, context_length(checkpoints.load_model(str(stage.start)).language.config)
    with torch.device("meta"):
        return processor, context_length(build(config.model).language.config)


def use_stage(processor: VisionLanguageProcessor, stage: StageConfig) -> None:
    """Writes and prepares images as the stage does from here on. Errors: `FlamingoError` naming the setting."""
    use_changes(processor, stage.template, "stage.template")
    use_image_changes(processor, stage.image_transform, "stage.image_transform")


def measuring(console: Console) -> Progress:
    """A bar that appears when there is something to measure, and goes with its end."""
    shown: list[ProgressDisplay] = []

    def progress(done: int, total: int) -> None:
        if not shown:
            shown.append(ProgressDisplay("measuring documents", total, console))
            shown[0].__enter__()
        shown[0].update(done)
        if done == total:
            shown.pop().__exit__(None, None, None)

    return progress
