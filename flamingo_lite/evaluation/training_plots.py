"""The curves of a training, a figure for each section of panels (`panels.py`), drawn from its `metrics.csv`."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from flamingo_lite.evaluation.curves import Series
from flamingo_lite.evaluation.panels import Panel
from flamingo_lite.evaluation.plots import (
    BLUE,
    GREEN,
    LOOK,
    PURPLE,
    SPARE_COLOURS,
    VERMILION,
    plain_log_axis,
    running_mean,
)

COLUMNS = 3
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, *SPARE_COLOURS[2:])
MOST_NAMED = 8
"""Lines that are named one by one; of more, such as the gates of forty layers, the first and the last are."""


def section_figure(panels: Sequence[Panel], curves: Mapping[str, Series]) -> Figure | None:
    """The panels that have a curve, three in a row; None where none has."""
    found = [(panel, names) for panel in panels if (names := _with_values(panel, curves))]
    if not found:
        return None
    rows = -(-len(found) // COLUMNS)
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(11.4, 2.9 * rows), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for axis, (panel, names) in zip(axes, found, strict=False):
            draw_panel(axis, panel, {name: curves[name] for name in names})
        for axis in axes[len(found) :]:
            axis.set_visible(False)
    return figure


def draw_panel(axis: Axes, panel: Panel, curves: Mapping[str, Series]) -> None:
    """One line per curve, each thin and, where it jumps, its running mean on top."""
    axis.set_title(panel.title, pad=8)
    labels = line_names(list(curves))
    named = set(labels) if len(labels) <= MOST_NAMED else {labels[0], labels[-1]}
    for colour, label, series in zip(_colours(len(curves)), labels, curves.values(), strict=True):
        shown = label if label in named else None
        window = len(series.values) // 20 if panel.is_logarithmic else 0
        if window < 3:
            marker = "o" if len(series.steps) < 12 else ""  # few points are seen as such
            axis.plot(
                series.steps, series.values, marker=marker, markersize=3, color=colour, lw=1.6, label=shown
            )
        else:
            axis.plot(series.steps, series.values, color=colour, lw=0.8, alpha=0.3)
            axis.plot(series.steps, running_mean(series.values, window), color=colour, lw=2, label=shown)
    if panel.is_logarithmic and all(min(series.values) > 0 for series in curves.values()):
        axis.set_yscale("log")
        plain_log_axis(axis)
    elif all(value == 0 for series in curves.values() for value in series.values):
        axis.set_ylim(0, 1)
    if len(curves) > 1:
        axis.legend(frameon=False, fontsize=8, loc="best", handlelength=1.2, labelspacing=0.25)


def line_names(columns: Sequence[str]) -> list[str]:
    """What tells the columns apart: their parts without those that all of them begin or end with."""
    parts = [column.split("/") for column in columns]
    while len(parts) > 1 and all(parts_of and parts_of[0] == parts[0][0] for parts_of in parts):
        parts = [parts_of[1:] for parts_of in parts]
    while len(parts) > 1 and all(parts_of and parts_of[-1] == parts[0][-1] for parts_of in parts):
        parts = [parts_of[:-1] for parts_of in parts]
    return [" ".join(parts_of).replace("_", " ") or "all" for parts_of in parts]


def _with_values(panel: Panel, curves: Mapping[str, Series]) -> list[str]:
    return [name for name in panel.found(curves) if curves[name].steps]


def _colours(number: int) -> Sequence[object]:
    if number <= len(COLOURS):
        return COLOURS[:number]
    return list(mpl.colormaps["viridis"](np.linspace(0.05, 0.85, number)))
