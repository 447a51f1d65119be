"""Where a run begins: anew, at its last whole checkpoint, or at its end; and what makes it the same run.

A run is defined by what changes its numbers (`identity`). A checkpoint is continued only by the same run, and
the message says which setting differs.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.results import flat, write_atomically
from flamingo_lite.training.asides import FEW_SHOT
from flamingo_lite.training.beside import Say, drop_lines_after
from flamingo_lite.training.checkpointing import (
    FOLDER,
    VerifiedCheckpointIO,
    latest_checkpoint,
    read_record,
)
from flamingo_lite.training.rejects import REJECTS
from flamingo_lite.training.samples import GENERATIONS, PICTURES
from flamingo_lite.training.settings import MODEL, TrainingConfig
from flamingo_lite.training.skipping import FILE as SKIPPED_FILE
from flamingo_lite.training.tracking import WANDB_RUN, forget_run, remember_run

METRICS = "metrics.csv"
CONFIG = "config.yaml"
SUMMARY = "training.json"
DEFINING = ("precision", "frozen_dtype", "compile")
"""What of the trainer changes the numbers."""


@dataclass(frozen=True)
class Beginning:
    """Where a run starts: `checkpoint` to continue from, if any; `finished`: nothing is left to do."""

    finished: bool = False
    checkpoint: Path | None = None
    step: int = 0


def begin(config: TrainingConfig, defining: Mapping[str, Any], say: Say) -> Beginning:
    """Looks at what lies in the output. All that it changes there is to put aside a checkpoint that is not whole, when one
    before it is; `say` gets a line for that.

    Errors: `FlamingoError` when another run lies there.
    """
    output = Path(config.output)
    previous = _previous_run(output) if config.resume == "auto" else {}
    if previous:
        check_same_run(previous["identity"], defining, output)
        if previous["finished"]:
            return Beginning(finished=True)
    checkpoint = latest_checkpoint(output / FOLDER, say) if previous else None
    record = read_record(checkpoint) if checkpoint else None
    return Beginning(checkpoint=checkpoint, step=record.step if record else 0)


def make_ready(config: TrainingConfig, defining: Mapping[str, Any], beginning: Beginning) -> None:
    """Makes the output ready for the run. What an earlier run left goes only now, when all settings were found good."""
    output = Path(config.output)
    if beginning.checkpoint is None:
        _clear(output)
    else:
        for name in (REJECTS, SKIPPED_FILE):
            drop_lines_after(output / name, beginning.step)
        remember_run(output, VerifiedCheckpointIO().load_checkpoint(beginning.checkpoint).get(WANDB_RUN))
    write_summary(output, {"finished": False, "identity": defining})
    write_atomically(output / CONFIG, as_yaml(config).encode())


def write_summary(output: Path, value: Mapping[str, Any]) -> None:
    """What says whether the run in `output` is finished, and which one it is."""
    write_atomically(output / SUMMARY, (json.dumps(value, indent=1) + "\n").encode())


def as_yaml(config: TrainingConfig) -> str:
    """All settings; `flamingo-lite train --config` reads them."""
    # Not OmegaConf.structured, which looks the types up once more, and takes twice as long: they are checked already.
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def identity(config: TrainingConfig, shards: Mapping[str, str]) -> dict[str, Any]:
    """What changes the numbers of a run, as plain JSON: its model, stage, seed, precision and data.

    `shards`: what identifies the shards of each source. On how many devices and in how many parts a step is taken, and
    by how many workers it is read, changes nothing.
    """
    stage = dataclasses.asdict(config.stage)
    silent = ["log_every", "checkpoint_every", "keep", "max_skipped_steps"]
    silent += ["samples", "samples_every", "evaluate_every", "evaluation"]
    # Epochs decide the steps.
    silent += ["steps"] if config.stage.epochs is not None else []
    return {
        "model": dataclasses.asdict(config.model),
        "stage": {name: value for name, value in stage.items() if name not in silent},
        "seed": config.seed,
        "trainer": {name: getattr(config.trainer, name) for name in DEFINING},
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


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Errors: `FlamingoError` that names the first setting in which the two identities differ."""
    old, new = flat(before), flat(now)
    # A setting that came with a later version had its default's effect before.
    defaults = flat(identity(TrainingConfig(), {}))
    old = {**{name: value for name, value in defaults.items() if name in new}, **old}
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise FlamingoError(
                f"{output} was trained with {name}={old.get(name)}, now it is {new.get(name)}; "
                "choose another output=, or start over with resume=never"
            )


def _previous_run(output: Path) -> dict[str, Any]:
    path = output / SUMMARY
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {"finished": bool(found["finished"]), "identity": dict(found["identity"])}
    except (ValueError, KeyError, TypeError) as error:
        raise FlamingoError(f"{path} is damaged ({error}); start over with resume=never") from error


def _clear(output: Path) -> None:
    """Removes what an earlier run left under names that this one will write."""
    for name in (MODEL, FOLDER, FEW_SHOT, PICTURES):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in (METRICS, SUMMARY, CONFIG, SKIPPED_FILE, REJECTS, GENERATIONS):
        (output / name).unlink(missing_ok=True)
    forget_run(output)
