"""Reads `metrics.csv`, the training's log: one series per column, with the steps at which it was logged.

A column may be empty on some rows (a gate is logged seldom, the loss often); those rows are no zeros.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from flamingo_lite.errors import FlamingoError


@dataclass(frozen=True)
class Series:
    """`values[i]` was logged at `steps[i]`; steps ascend."""

    steps: list[int]
    values: list[float]


def read_curves(path: Path) -> dict[str, Series]:
    """Column to series, without `step` itself. Errors: `FlamingoError` for a file that is no such log."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlamingoError(f"{path} cannot be read as a training log ({error})") from error
    if rows and "step" not in rows[0]:
        raise FlamingoError(
            f"{path} has no column 'step' (found: {', '.join(map(str, rows[0]))}); expected a training log"
        )
    found: dict[str, dict[int, float]] = {}
    for number, row in enumerate(rows, start=2):
        for column, text in row.items():
            if column in (None, "step") or not isinstance(text, str) or not text.strip():
                continue
            step, value = _number(row["step"]), _number(text)
            if step is None or value is None:
                raise FlamingoError(f"{path}: line {number}: {column} is {text!r} at step {row['step']!r}")
            # A resumed run logs some steps again: the later row is the one that led to the final weights.
            found.setdefault(column, {})[int(step)] = value
    series = {}
    for column, points in found.items():
        finite = [(step, value) for step, value in sorted(points.items()) if math.isfinite(value)]
        series[column] = Series([step for step, _ in finite], [value for _, value in finite])
    return series


def gates(curves: dict[str, Series], branch: str) -> dict[int, Series]:
    """Layer to the values of its gate, from the columns `gate/<layer>/<branch>`, layers ascending."""
    found: dict[int, Series] = {}
    for column, series in curves.items():
        match column.split("/"):
            case ["gate", layer, name] if name == branch and layer.isdecimal():
                found[int(layer)] = series
    return dict(sorted(found.items()))


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
