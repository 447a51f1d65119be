"""What happens beside the steps: a row of figures every few of them, handed to sinks.

A sink is a callable that takes a row; the CSV file, W&B and the terminal are three of them.
"""

import contextlib
import csv
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.training.display import ProgressDisplay
from flamingo_lite.training.module import TrainingModule

Row = dict[str, float]
Sink = Callable[[Row], None]


class Monitor(lightning.Callback):
    """Every `every` optimizer steps, and at the last, hands a row to each sink.

    Columns: step, loss, learning_rate, gradient_norm, samples_per_second, tokens_per_second, seconds, and
    gate/<layer>/<branch>: tanh of the gate, the share with which the branch is added; skipped_steps: how many were,
    so far. Speeds are those since the row before. `more`: further columns, asked for at each row.
    """

    def __init__(self, every: int, sinks: Sequence[Sink], more: Callable[[], Row] = dict) -> None:
        self.every = every
        self.sinks = list(sinks)
        self.more = more
        self.rows: list[Row] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = self._since = time.perf_counter()
        self._samples = self._tokens = 0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        report, step = pl_module.report, trainer.global_step
        if report is None:
            return
        self._samples += report.samples
        self._tokens += report.tokens
        if step % self.every and step != trainer.max_steps:
            return
        now = time.perf_counter()
        row = {
            "step": step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "samples_per_second": self._samples / (now - self._since),
            "tokens_per_second": self._tokens / (now - self._since),
            "seconds": now - self._start,
            "skipped_steps": pl_module.skipped.count,
            **gate_columns(pl_module.model),
            **self.more(),
        }
        self._since, self._samples, self._tokens = now, 0, 0
        self.rows.append(row)
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink(row)


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
    Where the disk refuses, rows wait for the next one.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        self._columns: list[str] = []
        self._waiting: list[Row] = []
        kept = [row for row in read_metrics(path) if row["step"] <= resume_at] if resume_at else []
        if kept:
            self._write_anew(kept)
        else:
            path.unlink(missing_ok=True)

    def __call__(self, row: Row) -> None:
        self._waiting.append(row)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            if any(name not in self._columns for name in row):
                self._write_anew([*read_metrics(self.path), *self._waiting])
            else:
                with self.path.open("a", newline="") as file:
                    file.write(self._lines(self._waiting))
            self._waiting.clear()
        except (OSError, FlamingoError):
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # half a line would be joined to the next

    def _write_anew(self, rows: Sequence[Row]) -> None:
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        header = {name: name for name in self._columns}
        write_atomically(self.path, self._lines([header, *rows]).encode())

    def _lines(self, rows: Sequence[Mapping[str, float | str]]) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        for row in rows:
            values = (row.get(name, "") for name in self._columns)
            writer.writerow(f"{value:.9g}" if isinstance(value, float) else value for value in values)
        return buffer.getvalue()


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics file, without one that was cut short when its run was killed; none without a file.

    A row lacks the columns that it has no value for.
    """
    if not path.exists():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]


def gate_columns(model: VisionLanguageModel) -> Row:
    """{"gate/<layer>/attention": tanh of the gate, "gate/<layer>/feed_forward": ...}."""
    columns: Row = {}
    with torch.no_grad():
        gates = model.gate_values()
    for layer, (attention, feed_forward) in gates.items():
        columns[f"gate/{layer}/attention"] = attention
        columns[f"gate/{layer}/feed_forward"] = feed_forward
    return columns
