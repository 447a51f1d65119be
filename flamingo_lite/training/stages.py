"""A stage: one run of training. Data, policy and steps in; a saved model, metrics and a checkpoint out.

A run is defined by what changes its numbers (`identity`). A checkpoint is continued only by the same run, and
the message says which setting differs.
"""

import dataclasses
import json
import logging
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from flamingo_lite.checkpoints import io as checkpoints
from flamingo_lite.data.make import available_cores
from flamingo_lite.data.shards import Manifest, load_manifest, read_shards
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.results import sha256_of_json, write_atomically
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy, frozen_sha256, policy_table
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.callbacks import MetricsFile, Monitor, StepDisplay
from flamingo_lite.training.checkpointing import (
    FOLDER,
    CheckpointKeeper,
    Say,
    VerifiedCheckpointIO,
    latest_checkpoint,
    read_record,
)
from flamingo_lite.training.claim import claimed
from flamingo_lite.training.datamodule import ShardDataModule
from flamingo_lite.training.display import ProgressDisplay
from flamingo_lite.training.interrupts import StopOnSignal
from flamingo_lite.training.launch import is_supervised, launch, leave_with_supervisor
from flamingo_lite.training.module import TrainingModule
from flamingo_lite.training.parallel import build_trainer, one_line_failures
from flamingo_lite.training.ranks import Ranks, join, started_ranks
from flamingo_lite.training.samples import draw_samples
from flamingo_lite.training.settings import MODEL, TrainingConfig, torch_device
from flamingo_lite.training.sharding import ShardedStrategy
from flamingo_lite.training.skipping import FILE as SKIPPED_FILE
from flamingo_lite.training.skipping import SkippedSteps
from flamingo_lite.training.tracking import Tracker, WandbConfig, forget_run

METRICS = "metrics.csv"
CONFIG = "config.yaml"
SUMMARY = "training.json"


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
    if ranks is None:
        launch(_as_yaml(config), config.trainer.devices)
        return Path(config.output) / MODEL
    if is_supervised():
        leave_with_supervisor()
    console = (console or Console()) if ranks.is_first else Console(quiet=True)
    join(ranks, config.trainer)
    with claimed(Path(config.output)) if ranks.is_first else nullcontext():
        return _run(config, ranks, console, callbacks)


@dataclass(frozen=True)
class Beginning:
    """Where a run starts: `checkpoint` to continue from, if any; `finished`: nothing is left to do."""

    finished: bool
    checkpoint: Path | None
    step: int


def _run(
    config: TrainingConfig, ranks: Ranks, console: Console, callbacks: Sequence[lightning.Callback]
) -> Path:
    output = Path(config.output)
    manifest = load_manifest(config.data.directory)
    defining = identity(config, shards_sha256(manifest))
    # One rank looks, so that all see the same.
    beginning = ranks.broadcast(_begin(config, defining, _saying(console)) if ranks.is_first else None)
    assert beginning is not None
    if beginning.finished:
        console.print(f"{output / MODEL} is trained already; resume=never trains it anew")
        return output / MODEL
    started = time.perf_counter()
    _prepare(config, ranks)
    model, processor = _start(config)
    console.print(policy_table(apply_policy(model, model.config.policy)))
    module = _module(config, model, ranks)
    tracking = config.wandb if ranks.is_first else WandbConfig(mode="disabled")
    with Tracker(tracking, output, dataclasses.asdict(config)) as tracker:
        rows, model = _fit(config, module, processor, tracker, beginning, console, callbacks)
        if frozen_sha256(module.model) != module.frozen_hashes:
            raise RuntimeError("training has changed parameters that the policy freezes: this is a bug")
        if not ranks.is_first:
            return output / MODEL
        model.eval()
        checkpoints.save(model, processor, output / MODEL)
        documents = read_shards(config.data.directory)
        if model is module.model:  # a model that had to be sharded may not fit on one device
            nn.Module.to(model, torch_device(config.trainer.accelerator))
        samples = draw_samples(model, processor, documents, config.stage.samples)
        tracker.log_samples(samples, config.stage.steps + 1)
        figures: dict[str, float] = {"steps": config.stage.steps, "seconds": time.perf_counter() - started}
        figures |= {"loss": rows[-1]["loss"], "skipped_steps": module.skipped.count} if rows else {}
        tracker.summarize(figures)
    done = {"finished": True, "identity": defining, "frozen_sha256": module.frozen_hashes, **figures}
    _write_json(output / SUMMARY, done)
    return output / MODEL


def shards_sha256(manifest: Manifest) -> str:
    """Identifies the data of a run: its shards' contents, in order."""
    return sha256_of_json([shard.sha256 for shard in manifest.shards])


def identity(config: TrainingConfig, manifest_sha256: str) -> dict[str, Any]:
    """What changes the numbers of a run, as plain JSON: its model, stage, seed, precision and data."""
    stage = dataclasses.asdict(config.stage)
    silent = ("log_every", "checkpoint_every", "samples", "keep", "max_skipped_steps")
    return {
        "model": dataclasses.asdict(config.model),
        "stage": {name: value for name, value in stage.items() if name not in silent},
        "seed": config.seed,
        "trainer": {name: getattr(config.trainer, name) for name in ("precision", "accumulate")},
        "shards": manifest_sha256,
    }


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Errors: `FlamingoError` that names the first setting in which the two identities differ."""
    old, new = _flat(before), _flat(now)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise FlamingoError(
                f"{output} was trained with {name}={old.get(name)}, now it is {new.get(name)}; "
                "choose another output=, or start over with resume=never"
            )


def _begin(config: TrainingConfig, defining: Mapping[str, Any], say: Say) -> Beginning:
    """Looks at what lies in the output, and makes it ready for the run."""
    output = Path(config.output)
    previous = _previous_run(output) if config.resume == "auto" else {}
    if previous:
        check_same_run(previous["identity"], defining, output)
        if previous["finished"]:
            return Beginning(True, None, config.stage.steps)
    checkpoint = latest_checkpoint(output / FOLDER, say) if previous else None
    if checkpoint is None:
        _clear(output)
    _write_json(output / SUMMARY, {"finished": False, "identity": defining})
    write_atomically(output / CONFIG, _as_yaml(config).encode())
    return Beginning(False, checkpoint, _step_of(checkpoint) if checkpoint else 0)


def _module(config: TrainingConfig, model: VisionLanguageModel, ranks: Ranks) -> TrainingModule:
    output = Path(config.output)
    return TrainingModule(
        model,
        config.stage.optimizer,
        config.stage.steps,
        config.trainer.accumulate,
        ranks=ranks,
        skipped=SkippedSteps(output / SKIPPED_FILE, config.stage.max_skipped_steps, ranks),
        notes={"config": _as_yaml(config)},
    )


def _fit(
    config: TrainingConfig,
    module: TrainingModule,
    processor: VisionLanguageProcessor,
    tracker: Tracker,
    beginning: Beginning,
    console: Console,
    callbacks: Sequence[lightning.Callback],
) -> tuple[list[dict[str, float]], VisionLanguageModel]:
    """The rows of figures, and the trained model: whole, on the first rank."""
    output, stage, done = Path(config.output), config.stage, beginning.step
    if beginning.checkpoint:
        console.print(f"resuming {output} at step {done} of {stage.steps}")
    display = ProgressDisplay("training", stage.steps, console, done)
    step_display = StepDisplay(display)
    sinks = [MetricsFile(output / METRICS, done), tracker.log, step_display] if module.ranks.is_first else []
    monitor = Monitor(stage.log_every, sinks)
    files, say = VerifiedCheckpointIO(), _saying(console)
    keeper = CheckpointKeeper(output / FOLDER, stage.checkpoint_every, stage.keep, files, say)
    trainer = build_trainer(
        config.trainer,
        module.ranks,
        max_steps=stage.steps,
        callbacks=[monitor, step_display, *callbacks, keeper, StopOnSignal(keeper)],
        plugins=[files],
        default_root_dir=output,
    )
    data = ShardDataModule(
        config.data.directory,
        processor,
        batch_size=stage.batch_size,
        seed=config.seed,
        total=stage.steps * config.trainer.accumulate,
        workers=config.trainer.workers,
        max_length=stage.max_length or context_length(module.model.language.config),
        pack=stage.pack,
        skip=done * config.trainer.accumulate,
    )
    with display, one_line_failures(), _interrupts_kept():
        # weights_only: a checkpoint is never unpickled.
        trainer.fit(module, datamodule=data, ckpt_path=beginning.checkpoint, weights_only=True)
    strategy = trainer.strategy
    return monitor.rows, strategy.assembled() if isinstance(strategy, ShardedStrategy) else module.model


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
        return model.train(), processor
    return build(config.model).train(), build_processor(config.model)


def _previous_run(output: Path) -> dict[str, Any]:
    path = output / SUMMARY
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {"finished": bool(found["finished"]), "identity": dict(found["identity"])}
    except (ValueError, KeyError, TypeError) as error:
        raise FlamingoError(f"{path} is damaged ({error}); start over with resume=never") from error


def _step_of(checkpoint: Path) -> int:
    record = read_record(checkpoint)
    assert record is not None  # `latest_checkpoint` has read it
    return record.step


def _clear(output: Path) -> None:
    """Removes what an earlier run left under names that this one will write."""
    for name in (MODEL, FOLDER):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in (METRICS, SUMMARY, CONFIG, SKIPPED_FILE):
        (output / name).unlink(missing_ok=True)
    forget_run(output)


def _as_yaml(config: TrainingConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _saying(console: Console) -> Say:
    """Prints a line, however long, without colours."""
    return partial(console.print, highlight=False, soft_wrap=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(item) if isinstance(item, tuple) else item
    return flat
