"""A stage: one run of training. Data, policy and steps in; a saved model, metrics and a checkpoint out.

A run is defined by what changes its numbers (`identity`). A checkpoint is continued only by the same run, and
the message says which setting differs.
"""

import dataclasses
import json
import logging
import pickle
import shutil
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as lightning
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from flamingo_lite.checkpoints import io as checkpoints
from flamingo_lite.data.make import available_cores
from flamingo_lite.data.shards import Shards
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy, frozen_sha256, policy_table
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.callbacks import Checkpoint, MetricsFile, Monitor, StepDisplay
from flamingo_lite.training.datamodule import Counting, ShardDataModule, open_sources, shards_sha256
from flamingo_lite.training.display import ProgressDisplay
from flamingo_lite.training.module import TrainingModule
from flamingo_lite.training.samples import draw_samples
from flamingo_lite.training.settings import MODEL, TrainingConfig, torch_device
from flamingo_lite.training.tracking import Tracker, forget_run

CHECKPOINT = "last.ckpt"
METRICS = "metrics.csv"
CONFIG = "config.yaml"
SUMMARY = "training.json"


def run_stage(config: TrainingConfig, console: Console | None = None) -> Path:
    """Trains, and returns the directory of the saved model.

    Writes into `config.output`: flamingo/ (the model), last.ckpt (to continue from), metrics.csv,
    config.yaml, wandb/, and training.json, which says at the very end that the run is finished.
    Errors: `FlamingoError` for shards, a checkpoint or settings that do not fit.
    """
    console = console or Console()
    output = Path(config.output)
    shards = open_sources(config.data)
    defining = identity(config, {name: shards_sha256(s.manifest) for name, s in shards.items()})
    previous = _previous_run(output) if config.resume == "auto" else {}
    if previous:
        check_same_run(previous["identity"], defining, output)
        if previous["finished"]:
            console.print(f"{output / MODEL} is trained already; resume=never trains it anew")
            return output / MODEL
    started = time.perf_counter()
    _prepare(config)
    model, processor = _start(config)
    rows = apply_policy(model, model.config.policy)
    console.print(policy_table(rows, config.stage.optimizer.learning_rate))
    output.mkdir(parents=True, exist_ok=True)
    resume_from = output / CHECKPOINT if previous and (output / CHECKPOINT).exists() else None
    if resume_from is None:
        _clear(output)
    _write_json(output / SUMMARY, {"finished": False, "identity": defining})
    write_atomically(output / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
    data = _data(config, shards, model, processor, console)
    module = TrainingModule(model, config.stage.optimizer, data.steps, config.trainer.accumulate)
    with Tracker(config.wandb, output, dataclasses.asdict(config)) as tracker:
        rows = _fit(config, module, data, tracker, resume_from, console)
        if frozen_sha256(model) != module.frozen_hashes:
            raise RuntimeError("training has changed parameters that the policy freezes: this is a bug")
        model.eval()
        checkpoints.save(model, processor, output / MODEL)
        documents = readable(next(iter(shards.values())))
        nn.Module.to(model, torch_device(config.trainer.accelerator))
        samples = draw_samples(model, processor, documents, config.stage.samples)
        tracker.log_samples(samples, data.steps + 1)
        figures = {"steps": data.steps, "seconds": time.perf_counter() - started}
        figures |= {"loss": rows[-1]["loss"]} if rows else {}
        tracker.summarize(figures)
    done = {"finished": True, "identity": defining, "frozen_sha256": module.frozen_hashes, **figures}
    _write_json(output / SUMMARY, done)
    return output / MODEL


def identity(config: TrainingConfig, shards: Mapping[str, str]) -> dict[str, Any]:
    """What changes the numbers of a run, as plain JSON: its model, stage, seed, precision and data.

    `shards`: what identifies the shards of each source. On how many devices and in how many parts a step is taken, and
    by how many workers it is read, changes nothing.
    """
    stage = dataclasses.asdict(config.stage)
    silent = ["log_every", "checkpoint_every", "samples"]
    # Epochs decide the steps.
    silent += ["steps"] if config.stage.epochs is not None else []
    return {
        "model": dataclasses.asdict(config.model),
        "stage": {name: value for name, value in stage.items() if name not in silent},
        "seed": config.seed,
        "trainer": {"precision": config.trainer.precision},
        "data": {
            "shuffle_shards": config.data.shuffle_shards,
            "draft": config.data.draft,
            "sources": {
                name: {key: value for key, value in dataclasses.asdict(source).items() if key != "directory"}
                for name, source in config.data.sources.items()
            },
        },
        "shards": dict(shards),
    }


def readable(shards: Shards) -> Iterator[Document]:
    """The documents that can be read, in the order in which they lie."""
    for index in range(len(shards)):
        try:
            yield shards[index][1]
        except SampleError:
            continue


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Errors: `FlamingoError` that names the first setting in which the two identities differ."""
    old, new = _flat(before), _flat(now)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise FlamingoError(
                f"{output} was trained with {name}={old.get(name)}, now it is {new.get(name)}; "
                "choose another output=, or start over with resume=never"
            )


def _data(
    config: TrainingConfig,
    shards: Mapping[str, Shards],
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    console: Console,
) -> ShardDataModule:
    display: list[ProgressDisplay] = []

    def measuring(done: int, total: int) -> None:
        if not display:
            display.append(ProgressDisplay("measuring documents", total, console))
            display[0].__enter__()
        display[0].update(done)
        if done == total:
            display.pop().__exit__(None, None, None)

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
        progress=measuring,
    )


def _fit(
    config: TrainingConfig,
    module: TrainingModule,
    data: ShardDataModule,
    tracker: Tracker,
    resume_from: Path | None,
    console: Console,
) -> list[dict[str, float]]:
    output, stage, steps = Path(config.output), config.stage, data.steps
    done = _steps_of(resume_from) if resume_from else 0
    if resume_from:
        console.print(f"resuming {output} at step {done} of {steps}")
    display = ProgressDisplay("training", steps, console, done)
    step_display = StepDisplay(display)
    sinks = [MetricsFile(output / METRICS, done), tracker.log, step_display]
    monitor = Monitor(stage.log_every, sinks, data.consumption.columns)
    # Counting comes first: a row, and a checkpoint, are to know of the batch that has just been trained on.
    callbacks = [Counting(stage.log_every), monitor, step_display]
    trainer = lightning.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=cast("Any", config.trainer.precision),
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=config.trainer.accumulate,
        deterministic=config.trainer.deterministic,
        callbacks=[*callbacks, Checkpoint(output / CHECKPOINT, stage.checkpoint_every)],
        logger=False,
        default_root_dir=output,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    interrupt = signal.getsignal(signal.SIGINT)
    with display:
        try:
            # weights_only: a checkpoint is never unpickled.
            trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from error
        finally:
            signal.signal(signal.SIGINT, interrupt)
    return monitor.rows


def _prepare(config: TrainingConfig) -> None:
    """Seeds and thread counts, and silence where Lightning would advertise itself."""
    torch_device(config.trainer.accelerator)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    torch.set_num_threads(config.trainer.threads or available_cores())


def _start(config: TrainingConfig) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    if config.stage.start is not None:
        model, processor = checkpoints.load(config.stage.start)
    else:
        model, processor = build(config.model), build_processor(config.model)
    model.config.policy = config.stage.policy or model.config.policy
    apply_policy(model, model.config.policy)
    return model.train(), processor


def _previous_run(output: Path) -> dict[str, Any]:
    path = output / SUMMARY
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {"finished": bool(found["finished"]), "identity": dict(found["identity"])}
    except (ValueError, KeyError, TypeError) as error:
        raise FlamingoError(f"{path} is damaged ({error}); start over with resume=never") from error


def _steps_of(checkpoint: Path) -> int:
    try:
        return int(torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)["global_step"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise FlamingoError(
            f"{checkpoint} is damaged, or no checkpoint of training; start over with resume=never"
        ) from error


def _clear(output: Path) -> None:
    """Removes what an earlier run left under names that this one will write."""
    shutil.rmtree(output / MODEL, ignore_errors=True)
    for name in (CHECKPOINT, METRICS, SUMMARY, CONFIG):
        (output / name).unlink(missing_ok=True)
    forget_run(output)


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
