"""The figures of a comparison: a colour for each system, the same in all of them."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from flamingo_lite.evaluation.plots import SPARE_COLOURS, distinct, metric_axis, save
from flamingo_lite.evaluation.systems import Cell, System, cell_key, is_share
from flamingo_lite.evaluation.tasks import spoken
from flamingo_lite.figures import BLUE, LOOK, MUTED, VERMILION

COLOURS = (BLUE, VERMILION, *SPARE_COLOURS)
MOST_PANELS_A_ROW = 4


def colour_of(systems: Sequence[System], name: str) -> str:
    return COLOURS[[system.name for system in systems].index(name) % len(COLOURS)]


def over_shots(systems: Sequence[System], task: str, path: Path | None = None) -> Figure:
    """A panel for each split and style of the task: scores over shots with 95% intervals, a line for each system; thin
    lines for each seed of its training, where there are several."""
    cells = [cell for system in systems for cell in _scored(system, task) if cell["condition"] == "standard"]
    asked = list(dict.fromkeys((cell["split"], cell.get("style")) for cell in cells))
    shots = sorted(distinct(cells, "shots"))
    columns = min(MOST_PANELS_A_ROW, len(asked))
    rows = -(-len(asked) // columns)
    with mpl.rc_context(LOOK):
        figure = Figure(
            figsize=(max(8.6, 2.95 * columns + 0.5), 3.5 * rows + 0.5),
            layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06),
        )
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for panel, (split, style) in zip(panels, asked, strict=False):
            panel.set_title(spoken(split) + (f", {spoken(style)}" if style else ""), pad=8)
            for system in systems:
                line = [
                    c
                    for c in cells
                    if (c["model"], c["split"], c.get("style")) == (system.name, split, style)
                ]
                _line(
                    panel,
                    system,
                    sorted(line, key=lambda c: c["shots"]),
                    shots,
                    colour_of(systems, system.name),
                )
            panel.set_xticks(range(len(shots)), [str(count) for count in shots])
            panel.set_xlim(-0.25, max(0.25, len(shots) - 0.75))
            panel.grid(axis="x", visible=False)
        for panel in panels[len(asked) :]:
            panel.set_visible(False)
        metric_axis(panels[0], cells)
        figure.supxlabel("demonstrations in the prompt", fontsize=10, color=MUTED)
        _name_systems(figure, systems)
    return save(figure, path)


def control_dots(systems: Sequence[System], task: str, path: Path | None = None) -> Figure | None:
    """For each condition that was asked at one number of shots, a dot with its interval for each system; None where no
    controls were run."""
    cells = [cell for system in systems for cell in _scored(system, task)]
    control = [cell for cell in cells if cell["condition"] != "standard"]
    if not control:
        return None
    last = max(control, key=lambda cell: (cell["shots"], cell["condition"]))
    shape = (last["split"], last.get("style"), last["shots"])
    alike = [cell for cell in cells if (cell["split"], cell.get("style"), cell["shots"]) == shape]
    conditions = distinct(alike, "condition")
    with mpl.rc_context(LOOK):
        figure = Figure(
            figsize=(8.6, 0.28 * (len(systems) + 1) * len(conditions) + 1.3), layout="constrained"
        )
        panel = figure.subplots()
        step = 0.7 / max(1, len(systems))
        for cell in alike:
            place = [system.name for system in systems].index(cell["model"])
            y = conditions.index(cell["condition"]) + (place - (len(systems) - 1) / 2) * step
            _dot(panel, cell, y, colour_of(systems, cell["model"]))
        panel.set_yticks(range(len(conditions)), [spoken(condition) for condition in conditions])
        panel.set_ylim(len(conditions) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        panel.set_xlim(left=0)
        panel.set_xlabel(f"{spoken(last['metric'])} at {last['shots']} shots on {spoken(last['split'])}")
        if is_share(last):
            panel.set_xlim(0, 1.08)
            panel.set_xticks(np.arange(0, 1.01, 0.25))
            panel.xaxis.set_major_formatter(lambda value, position: f"{value:.0%}")
        _name_systems(figure, systems)
    return save(figure, path)


def _scored(system: System, task: str) -> list[Cell]:
    return [cell for cell in system.cells if cell["task"] == task and cell["value"] is not None]


def _line(panel: Axes, system: System, line: Sequence[Cell], shots: Sequence[int], colour: str) -> None:
    if not line:
        return
    x = [shots.index(cell["shots"]) for cell in line]
    low, high = zip(*(cell["ci95"] or (cell["value"],) * 2 for cell in line), strict=True)
    panel.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    for number in range(len(system.training_seeds) if len(system.training_seeds) > 1 else 0):
        values = [system.by_training_seed[cell_key(cell)][number] for cell in line]
        panel.plot(x, [np.nan if v is None else v for v in values], color=colour, linewidth=0.8, alpha=0.5)
    panel.plot(
        x, [cell["value"] for cell in line], color=colour, linewidth=2, marker="o", markersize=5,
        markeredgecolor="white", clip_on=False,
    )  # fmt: skip


def _dot(panel: Axes, cell: Cell, y: float, colour: str) -> None:
    low, high = cell["ci95"] or (cell["value"],) * 2
    panel.plot([low, high], [y, y], color=colour, linewidth=3, alpha=0.45, clip_on=False)
    panel.plot([cell["value"]], [y], "o", color=colour, markersize=7, markeredgecolor="white", clip_on=False)


def _name_systems(figure: Figure, systems: Sequence[System]) -> None:
    # Lines of several systems end anywhere: here a legend above all panels is the only place that is always free.
    handles = [
        Line2D([], [], color=colour_of(systems, system.name), linewidth=2, marker="o", label=system.name)
        for system in systems
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=10)
