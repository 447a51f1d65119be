"""Where rows of figures go: a sink is a callable that takes a row. Here the CSV file and the terminal; W&B is a third."""

import contextlib
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning

from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.training.beside import Beside
from flamingo_lite.training.display import ProgressDisplay

Row = dict[str, float]


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

    def __init__(self, path: Path, resume_at: int = 0, beside: Beside | None = None) -> None:
        self.path = path
        self.beside = beside or Beside()
        self._columns: list[str] = []
        self._waiting: list[Row] = []
        kept = [row for row in read_metrics(path) if row["step"] <= resume_at] if resume_at else []
        if kept:
            self._write_anew(kept)
        else:
            path.unlink(missing_ok=True)

    def __call__(self, row: Row) -> None:
        self._waiting.append(row)
        with self.beside.writing(str(self.path)):
            self._write()

    def _write(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            if any(name not in self._columns for row in self._waiting for name in row):
                self._write_anew([*read_metrics(self.path), *self._waiting])
            else:
                with self.path.open("a", newline="") as file:
                    file.write(_lines(self._waiting, self._columns))
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # half a line would be joined to the next
            raise
        self._waiting.clear()

    def _write_anew(self, rows: Sequence[Row]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        header = {name: name for name in columns}
        write_atomically(self.path, _lines([header, *rows], columns).encode())
        self._columns = columns


def _lines(rows: Sequence[Mapping[str, float | str]], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        values = (row.get(name, "") for name in columns)
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
