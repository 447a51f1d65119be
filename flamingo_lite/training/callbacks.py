"""What happens beside the steps: a row of figures every few of them, handed to sinks, and a checkpoint.

A sink is a callable that takes a row; the CSV file, W&B and the terminal are three of them.
"""

import contextlib
import csv
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.training.display import ProgressDisplay
from flamingo_lite.training.module import TrainingModule

Row = dict[str, float]
Sink = Callable[[Row], None]


class Monitor(lightning.Callback):
    """Every `every` optimizer steps, and at the last, hands a row to each sink.

    Columns: step, loss, learning_rate, gradient_norm, samples_per_second, tokens_per_second, seconds, and
    gate/<layer>/<branch>: tanh of the gate, the share with which the branch is added. Speeds are those since
    the row before. `more`: further columns, asked for at each row. Errors: `FlamingoError` when the loss is no number.
    """

    def __init__(self, every: int, sinks: Sequence[Sink], more: Callable[[], Row] = dict) -> None:
        self.every = every
        self.sinks = list(sinks)
        self.more = more
        self.rows: list[Row] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = self._since = time.perf_counter()
        self._samples = self._tokens = 0
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step == self._step or pl_module.report is None:  # a batch of an unfinished step
            return
        self._step = trainer.global_step
        report = pl_module.report
        self._samples += report.samples
        self._tokens += report.tokens
        if self._step % self.every and self._step != trainer.max_steps:
            return
        now = time.perf_counter()
        row = {
            "step": self._step,
            "loss": report.loss.item(),
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm.item(),
            "samples_per_second": self._samples / (now - self._since),
            "tokens_per_second": self._tokens / (now - self._since),
            "seconds": now - self._start,
            **gate_columns(pl_module.model),
            **self.more(),
        }
        if not math.isfinite(row["loss"]):
            raise FlamingoError(
                f"the loss is {row['loss']} at step {self._step}; "
                "lower stage.optimizer.learning_rate, or check the data"
            )
        self._since, self._samples, self._tokens = now, 0, 0
        self.rows.append(row)
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink(row)


class Checkpoint(lightning.Callback):
    """Writes `path` every `every` optimizer steps and at the last: whole or not at all."""

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self._saved = 0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        is_due = step % self.every == 0 or step == trainer.max_steps
        if step != self._saved and is_due:
            self._saved = step
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(self.path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


class StepDisplay(lightning.Callback):
    """Moves a display at every optimizer step; as a sink it takes the loss and the speed from a row."""

    def __init__(self, display: ProgressDisplay) -> None:
        self.display = display
        self._note = ""

    def __call__(self, row: dict[str, float]) -> None:
        self._note = f"loss {row['loss']:.3f} · {row['samples_per_second']:.0f} samples/s"
        self.display.update(int(row["step"]), self._note)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.is_global_zero and trainer.global_step != self.display.done:
            self.display.update(trainer.global_step)


class MetricsFile:
    """A sink: a CSV file with one line per row, appended as training goes, so that it can be read meanwhile.

    `resume_at`: rows after that step are dropped (training had gone on after the checkpoint it resumes from).
    A row with a column that none had before (a new reason of rejects) has the file written anew.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        self._columns: list[str] = []
        kept = [row for row in read_metrics(path) if row["step"] <= resume_at] if resume_at else []
        path.unlink(missing_ok=True)
        for row in kept:
            self(row)

    def __call__(self, row: Row) -> None:
        if added := [name for name in row if name not in self._columns]:
            before = read_metrics(self.path)
            self._columns += added
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            with temporary.open("w", newline="") as file:
                csv.writer(file).writerow(self._columns)
                for past in before:
                    csv.writer(file).writerow(self._written(past))
            temporary.replace(self.path)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(self._written(row))

    def _written(self, row: Row) -> list[str | float]:
        values = (row.get(name, "") for name in self._columns)
        return [f"{value:.9g}" if isinstance(value, float) else value for value in values]


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics file; none if there is no such file. A row lacks the columns that it has no value for."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def gate_columns(model: VisionLanguageModel) -> Row:
    """{"gate/<layer>/attention": tanh of the gate, "gate/<layer>/feed_forward": ...}."""
    columns: Row = {}
    with torch.no_grad():
        gates = model.gate_values()
    for layer, (attention, feed_forward) in gates.items():
        columns[f"gate/{layer}/attention"] = attention
        columns[f"gate/{layer}/feed_forward"] = feed_forward
    return columns
