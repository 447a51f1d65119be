"""A stage: one run of training. Data, policy and steps in; a saved model, metrics and checkpoints out."""

import dataclasses
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import lightning.pytorch as lightning
import torch
from rich.console import Console

from flamingo_lite.checkpoints import io as checkpoints
from flamingo_lite.data.batches import rows_each
from flamingo_lite.data.features import FeatureCache
from flamingo_lite.data.lengths import Progress
from flamingo_lite.data.make import available_cores
from flamingo_lite.data.shards import Shards
from flamingo_lite.document import Document
from flamingo_lite.errors import SampleError
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy, frozen_sha256, policy_table
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.asides import Aside, Asides, continued, few_shot
from flamingo_lite.training.beginning import (
    METRICS,
    Beginning,
    as_yaml,
    begin,
    identity,
    make_ready,
    write_summary,
)
from flamingo_lite.training.beside import Beside, Say
from flamingo_lite.training.callbacks import MetricsFile, StepDisplay
from flamingo_lite.training.checkpointing import (
    FOLDER,
    CheckpointKeeper,
    VerifiedCheckpointIO,
)
from flamingo_lite.training.claim import claimed
from flamingo_lite.training.datamodule import Counting, ShardDataModule, open_sources, shards_sha256
from flamingo_lite.training.display import ProgressDisplay
from flamingo_lite.training.features import open_features
from flamingo_lite.training.interrupts import StopOnSignal, ending_on_signal
from flamingo_lite.training.launch import is_supervised, launch, leave_with_supervisor
from flamingo_lite.training.lineage import CheckpointLineage, made_model, used_data
from flamingo_lite.training.measuring import measuring, use_stage
from flamingo_lite.training.module import TrainingModule
from flamingo_lite.training.monitor import Monitor, Sink
from flamingo_lite.training.parallel import build_trainer, one_line_failures
from flamingo_lite.training.precision import as_saved, prepare
from flamingo_lite.training.ranks import Ranks, join, started_ranks
from flamingo_lite.training.samples import SampleHistory
from flamingo_lite.training.settings import MODEL, TrainingConfig, torch_device
from flamingo_lite.training.sharding import ShardedStrategy
from flamingo_lite.training.skipping import FILE as SKIPPED_FILE
from flamingo_lite.training.skipping import SkippedSteps
from flamingo_lite.training.tracking import WANDB_RUN, Tracker, WandbConfig
from flamingo_lite.training.utilization import utilization


def run_stage(
    config: TrainingConfig, console: Console | None = None, callbacks: Sequence[lightning.Callback] = ()
) -> Path:
    """Trains, and returns the directory of the saved model.

    Writes into `config.output`: flamingo/ (the model), checkpoints/ (to continue from), metrics.csv, config.yaml,
    wandb/, and training.json, which says at the very end that the run is finished. With several devices this process
    starts one for each and waits for them, unless torchrun or srun has started it. `callbacks`: of Lightning, called
    after ours. Errors: `FlamingoError` for shards, a checkpoint or settings that do not fit.
    """
    ranks = started_ranks(config.trainer)
    # Refuses a batch that does not divide, before processes start and before anything of an earlier run is gone.
    rows_each(
        config.stage.batch_size, ranks.number if ranks else config.trainer.devices, config.trainer.accumulate
    )
    if ranks is None:
        launch(as_yaml(config), config.trainer.devices)
        return Path(config.output) / MODEL
    if is_supervised():
        leave_with_supervisor()
    console = (console or Console()) if ranks.is_first else Console(quiet=True)
    with ending_on_signal(ranks.is_first):
        join(ranks, config.trainer)
        with claimed(Path(config.output)) if ranks.is_first else nullcontext():
            return _run(config, ranks, console, callbacks)


def _run(
    config: TrainingConfig, ranks: Ranks, console: Console, callbacks: Sequence[lightning.Callback]
) -> Path:
    output = Path(config.output)
    shards = open_sources(config.data)
    defining = identity(config, {name: shards_sha256(s.manifest) for name, s in shards.items()})
    # One rank looks, so that all see the same.
    beginning = ranks.broadcast(begin(config, defining, _saying(console)) if ranks.is_first else Beginning())
    if beginning.finished:
        _saying(console)(f"{output / MODEL} is trained already; resume=never trains it anew")
        return output / MODEL
    started = time.perf_counter()
    _prepare(config, ranks)
    model, processor = _start(config)
    trains = apply_policy(model, model.config.policy)
    console.print(policy_table(trains, config.stage.optimizer.learning_rate))
    features = open_features(
        config.data.features, model, processor, config.trainer.precision, config.data.draft
    )
    beside = Beside(_saying(console))
    data = _data(config, shards, model, processor, ranks, console, features, beside)
    if ranks.is_first:
        make_ready(config, defining, beginning)
    module = _module(config, model, data, ranks, beside)
    with _tracker(config, ranks, console) as tracker:
        used_data(tracker, {name: its.manifest for name, its in shards.items()})
        module.notes[WANDB_RUN] = tracker.run_id
        rows, model = _fit(config, module, data, tracker, beginning, console, callbacks, beside)
        if frozen_sha256(module.model) != module.frozen_hashes:
            raise RuntimeError("training has changed parameters that the policy freezes: this is a bug")
        if not ranks.is_first:
            return output / MODEL
        checkpoints.save(as_saved(model), processor, output / MODEL)
        figures: dict[str, float] = {"steps": data.steps, "seconds": time.perf_counter() - started}
        figures |= {"loss": rows[-1]["loss"], "skipped_steps": module.skipped.count} if rows else {}
        tracker.summarize(figures)
        with beside.writing("what W&B is told of the model"):
            made_model(tracker, output / MODEL, figures)
    done = {"finished": True, "identity": defining, "frozen_sha256": module.frozen_hashes, **figures}
    write_summary(output, done)
    return output / MODEL


def readable(shards: Shards) -> Iterator[Document]:
    """The documents that can be read, in the order in which they lie."""
    for index in range(len(shards)):
        try:
            yield shards[index][1]
        except SampleError:
            continue


def _data(
    config: TrainingConfig,
    shards: Mapping[str, Shards],
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    ranks: Ranks,
    console: Console,
    features: FeatureCache | None,
    beside: Beside,
) -> ShardDataModule:
    def opened(progress: Progress) -> ShardDataModule:
        return ShardDataModule(
            shards,
            config.data,
            config.stage,
            processor,
            config.seed,
            max_length=config.stage.max_length or context_length(model.language.config),
            accumulate=config.trainer.accumulate,
            workers=config.trainer.workers,
            output=Path(config.output),
            features=features,
            progress=progress,
            beside=beside,
        )

    made: list[ShardDataModule] = []

    def first(is_alive: Callable[[], None]) -> None:
        shown = measuring(console)

        def progress(done: int, total: int) -> None:
            shown(done, total)
            is_alive()

        made.append(opened(progress))

    # The first rank writes the lengths of documents, which the others read.
    ranks.first_alone(first)
    return made[0] if made else opened(measuring(console))


def _module(
    config: TrainingConfig,
    model: VisionLanguageModel,
    data: ShardDataModule,
    ranks: Ranks,
    beside: Beside,
) -> TrainingModule:
    weights = [source.loss_weight for source in data.sources]
    skipped = SkippedSteps(Path(config.output) / SKIPPED_FILE, config.stage.max_skipped_steps, ranks, beside)
    return TrainingModule(
        model,
        config.stage.optimizer,
        data.steps,
        config.trainer.accumulate,
        data.features,
        ranks=ranks,
        skipped=skipped,
        notes={"config": as_yaml(config)},
        source_loss_weights=None if config.stage.loss_mean == "tokens" else weights,
    )


def _fit(
    config: TrainingConfig,
    module: TrainingModule,
    data: ShardDataModule,
    tracker: Tracker,
    beginning: Beginning,
    console: Console,
    callbacks: Sequence[lightning.Callback],
    beside: Beside,
) -> tuple[list[dict[str, float]], VisionLanguageModel]:
    """The rows of figures, and the trained model: whole, on the first rank."""
    output, stage, steps, done = Path(config.output), config.stage, data.steps, beginning.step
    if beginning.checkpoint:
        _saying(console)(f"resuming {output} at step {done} of {steps}")
    display = ProgressDisplay("training", steps, console, done)
    step_display = StepDisplay(display)
    sinks: list[Sink] = (
        [MetricsFile(output / METRICS, done, beside), tracker.log, step_display]
        if module.ranks.is_first
        else []
    )
    monitor = _monitor(config, module, data, sinks)
    asides = _asides(config, module, data, monitor, tracker, done, beside)
    # A row is due wherever an aside is, to take what it found.
    monitor.periods += asides.periods
    monitor.more += [asides.columns]
    files = VerifiedCheckpointIO()
    keeper = CheckpointKeeper(output / FOLDER, stage.checkpoint_every, stage.keep, files, _saying(console))
    # Counting comes first: a row, and a checkpoint, are to know of the batch that has just been trained on.
    ours = [Counting(stage.log_every), asides, monitor, step_display]
    lineage = CheckpointLineage(tracker, output / FOLDER, files, beside)
    trainer = build_trainer(
        config.trainer,
        module.ranks,
        max_steps=steps,
        callbacks=[*ours, *callbacks, keeper, lineage, StopOnSignal(keeper)],
        plugins=[files],
        default_root_dir=output,
    )
    with display, one_line_failures(), _interrupts_kept():
        # weights_only: a checkpoint is never unpickled.
        trainer.fit(module, datamodule=data, ckpt_path=beginning.checkpoint, weights_only=True)
    strategy = trainer.strategy
    return monitor.rows, strategy.assembled() if isinstance(strategy, ShardedStrategy) else module.model


def _tracker(config: TrainingConfig, ranks: Ranks, console: Console) -> Tracker:
    """The first rank's; the others log nothing."""
    tracking = config.wandb if ranks.is_first else WandbConfig(mode="disabled")
    settings = dataclasses.asdict(config)
    return Tracker(tracking, Path(config.output), settings, group=config.name, say=_saying(console))


def _monitor(
    config: TrainingConfig, module: TrainingModule, data: ShardDataModule, sinks: list[Sink]
) -> Monitor:
    trainer = config.trainer
    device = torch_device(trainer.accelerator)
    return Monitor(
        [config.stage.log_every],
        sinks,
        [source.name for source in data.sources],
        [data.consumption.columns],
        utilization(module.model, trainer.precision, device, trainer.peak_flops, module.ranks.number),
    )


def _asides(
    config: TrainingConfig,
    module: TrainingModule,
    data: ShardDataModule,
    monitor: Monitor,
    tracker: Tracker,
    done: int,
    beside: Beside,
) -> Asides:
    """What is done beside training; on the first rank it leaves files."""
    output, stage, is_first = Path(config.output), config.stage, module.ranks.is_first
    asides: list[tuple[int, Aside]] = []
    if stage.samples:
        shards = data.sources[0].shards
        history = SampleHistory(output, done, beside) if is_first else None
        look = continued(data.processor, lambda: readable(shards), stage.samples, history, tracker, beside)
        asides.append((stage.samples_every, look))
    if stage.evaluate_every:
        evaluation = few_shot(data.processor, stage.evaluation, output if is_first else None, beside)
        asides.append((stage.evaluate_every, evaluation))
    return Asides(asides, module.ranks, monitor.paused)


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Ctrl-C stays what it is: Lightning turns it into an exit, and leaves it switched off."""
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)


def _prepare(config: TrainingConfig, ranks: Ranks) -> None:
    """Seeds and thread counts, and silence where Lightning would advertise itself."""
    torch_device(config.trainer.accelerator)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    torch.set_num_threads(config.trainer.threads or max(1, available_cores() // ranks.devices))


def _start(config: TrainingConfig) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    if config.stage.start is not None:
        model, processor = checkpoints.load(config.stage.start)
    else:
        model, processor = build(config.model), build_processor(config.model)
    use_stage(processor, config.stage)
    model.config.policy = config.stage.policy or model.config.policy
    apply_policy(model, model.config.policy)
    prepare(model, config.trainer)
    return model.train(), processor


def _saying(console: Console) -> Say:
    """Prints a line, however long, without colours."""
    return partial(console.print, highlight=False, soft_wrap=True)
