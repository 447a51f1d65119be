"""The figures of a report. Each function returns a matplotlib figure, and writes it where `path` says.

Lines are labelled where they end instead of in a legend.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from flamingo_lite.evaluation.conditions import CONDITIONS
from flamingo_lite.evaluation.curves import Series, gates
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.evaluation.systems import is_share
from flamingo_lite.evaluation.tasks import describe_split, spoken
from flamingo_lite.figures import BLUE, GREEN, LOOK, MUTED, PURPLE, VERMILION, png

STYLE_COLOURS = {"direct": BLUE, "spelled": VERMILION}
SPARE_COLOURS = (GREEN, PURPLE, "#56b4e9", "#e69f00")


def save(figure: Figure, path: Path | None, dpi: int = 200) -> Figure:
    """Writes a PNG whole or not at all. Errors: `FlamingoError` if `path` cannot be written."""
    if path is not None:
        write_atomically(Path(path), png(figure, dpi))
    return figure


def select(results: Mapping[str, Any], **wanted: object) -> list[dict[str, Any]]:
    """The cells that have a value and agree with every key given."""
    return [
        cell
        for cell in results["cells"]
        if cell["value"] is not None and all(cell.get(key) == value for key, value in wanted.items())
    ]


def distinct(cells: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(cell.get(key) for cell in cells))


def accuracy_over_shots(
    results: Mapping[str, Any], path: Path | None = None, task: str | None = None, model: str | None = None
) -> Figure:
    """A panel per split: accuracy over the number of demonstrations, a line per answer style, with 95%
    intervals."""
    cells = _of(results, task, model, condition="standard")
    splits, shots = distinct(cells, "split"), sorted(distinct(cells, "shots"))
    with mpl.rc_context(LOOK):
        figure = Figure(
            figsize=(max(4.2, 2.95 * len(splits) + 0.5), 3.6),
            layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06),
        )
        panels = figure.subplots(1, max(1, len(splits)), sharey=True, squeeze=False)[0]
        for panel, split in zip(panels, splits, strict=False):
            panel.set_title(spoken(split))
            subtitle = describe_split(cells[0]["task"], split)
            panel.annotate(
                subtitle, (0, 1), (0, 8), "axes fraction", "offset points", color=MUTED, fontsize=9
            )
            _split_panel(panel, [cell for cell in cells if cell["split"] == split], shots)
        metric_axis(panels[0], cells)
        figure.supxlabel("demonstrations in the prompt", fontsize=10, color=MUTED)
    return save(figure, path)


def _split_panel(panel: Axes, cells: Sequence[Mapping[str, Any]], shots: Sequence[int]) -> None:
    ends: list[tuple[str, str]] = []
    lowest_end = 1.0
    for style in distinct(cells, "style"):
        line = sorted((c for c in cells if c.get("style") == style), key=lambda cell: cell["shots"])
        x = [shots.index(cell["shots"]) for cell in line]
        y = [cell["value"] for cell in line]
        colour = _colour(style)
        low, high = zip(*(cell["ci95"] or (cell["value"],) * 2 for cell in line), strict=True)
        panel.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        panel.plot(
            x, y, color=colour, linewidth=2, marker="o", markersize=5, markeredgecolor="white", clip_on=False
        )
        ends.append((f"{style or spoken(line[-1]['metric'])} {rounded(y[-1], line[-1])}", colour))
        lowest_end = min(lowest_end, low[-1])
    # Shots double, so equal distances between them are the honest scale, and 0 has its place.
    panel.set_xticks(range(len(shots)), [str(count) for count in shots])
    panel.set_xlim(-0.25, len(shots) - 0.75)
    panel.grid(axis="x", visible=False)
    # Lines often end close together, so their names stand in whichever right-hand corner is free.
    bottom = 0.05 if lowest_end > 0.3 else 0.86
    for rank, (label, colour) in enumerate(reversed(ends)):
        panel.text(
            0.97,
            bottom + 0.085 * rank,
            label,
            transform=panel.transAxes,
            color=colour,
            fontweight="bold",
            ha="right",
        )


def controls(
    results: Mapping[str, Any], path: Path | None = None, task: str | None = None, model: str | None = None
) -> Figure:
    """A dot with its interval per condition, at the controls' shots, split and style, beside zero-shot."""
    cells = _of(results, task, model)
    control = [cell for cell in cells if cell["condition"] != "standard"]
    with mpl.rc_context(LOOK):
        if not control:
            return save(_empty("no controls were run"), path)
        last = max(control, key=lambda cell: (cell["shots"], cell["condition"]))
        shape = {key: last.get(key) for key in ("split", "style")}
        alike = [cell for cell in cells if all(cell.get(k) == v for k, v in shape.items())]
        rows = [
            c for name in CONDITIONS for c in alike if c["condition"] == name and c["shots"] == last["shots"]
        ]
        zero = next((c for c in alike if c["condition"] == "standard" and c["shots"] == 0), None)
        figure = Figure(figsize=(8.6, 0.62 * len(rows) + 1.15), layout="constrained")
        panel = figure.subplots()
        for y, cell in enumerate(rows):
            _control_row(panel, y, cell)
        if zero is not None:
            panel.axvline(zero["value"], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
            panel.annotate(
                f"no demonstrations {rounded(zero['value'], zero)}", (zero["value"], 1), (4, 4),
                ("data", "axes fraction"), "offset points", color=MUTED, fontsize=9,
            )  # fmt: skip
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        panel.set_xlim(left=0)
        if is_share(last):
            panel.set_xlim(0, 1.08)
            panel.set_xticks(np.arange(0, 1.01, 0.25))
            panel.xaxis.set_major_formatter(lambda value, position: f"{value:.0%}")
        style = f", {last['style']} answers" if last.get("style") else ""
        panel.set_xlabel(
            f"{spoken(last['metric'])} at {last['shots']} shots on {spoken(last['split'])}{style}"
        )
    return save(figure, path)


def _control_row(panel: Axes, y: int, cell: Mapping[str, Any]) -> None:
    standard = cell["condition"] == "standard"
    colour = BLUE if standard else GREEN if cell["condition"] == "text_twin" else VERMILION
    low, high = cell["ci95"] or (cell["value"],) * 2
    panel.plot([low, high], [y, y], color=colour, linewidth=3, alpha=0.45, clip_on=False)
    panel.plot([cell["value"]], [y], "o", color=colour, markersize=8, markeredgecolor="white", clip_on=False)
    panel.annotate(
        rounded(cell["value"], cell), (cell["value"], y), (0, 8), "data", "offset points",
        color=colour, fontsize=9.5, fontweight="bold", ha="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip
    name = spoken(cell["condition"])
    left = ("axes fraction", "data")
    panel.annotate(name, (0, y), (-12, 2), left, "offset points", ha="right", fontweight="bold", fontsize=10)
    asks = CONDITIONS[cell["condition"]].asks if cell["condition"] in CONDITIONS else ""
    panel.annotate(
        asks, (0, y), (-12, -4), left, "offset points", ha="right", va="top", fontsize=8, color=MUTED
    )


def training_curves(curves: Mapping[str, Series], path: Path | None = None) -> Figure:
    """Loss, learning rate and throughput over the steps; what was not logged is left out."""
    names = {"loss": "loss", "learning_rate": "learning rate", "samples_per_second": "samples per second"}
    present = [name for name in names if name in curves and curves[name].steps]
    with mpl.rc_context(LOOK):
        if not present:
            return save(_empty("no training was logged"), path)
        figure = Figure(figsize=(11.4, 3.1), layout=ConstrainedLayoutEngine(w_pad=0.12))
        widths = [2 if name == "loss" else 1 for name in present]
        panels = figure.subplots(1, len(present), squeeze=False, width_ratios=widths)[0]
        for panel, name in zip(panels, present, strict=True):
            panel.set_title(names[name], pad=8)
            panel.set_xlabel("step")
            _training_line(panel, curves[name], smooth=name != "learning_rate")
            if name == "loss" and min(curves[name].values) > 0:
                panel.set_yscale("log")
                plain_log_axis(panel)
            else:
                panel.set_ylim(bottom=0)
    return save(figure, path)


def _training_line(panel: Axes, series: Series, smooth: bool) -> None:
    window = max(1, len(series.values) // 40)
    if not smooth or window < 3:
        panel.plot(series.steps, series.values, color=BLUE, linewidth=1.6)
        return
    panel.plot(series.steps, series.values, color=BLUE, linewidth=0.8, alpha=0.3)
    panel.plot(series.steps, running_mean(series.values, window), color=BLUE, linewidth=2)


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """The mean of each value and up to `window - 1` before it: nothing of the future, no edge to invent."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def gate_curves(curves: Mapping[str, Series], path: Path | None = None) -> Figure:
    """The gates over training, a panel per branch, a line per layer, darker for deeper layers."""
    branches = {"attention": "cross-attention gates", "feed_forward": "feed-forward gates"}
    found = {branch: gates(dict(curves), branch) for branch in branches}
    with mpl.rc_context(LOOK):
        if not any(found.values()):
            return save(_empty("no gates were logged"), path)
        figure = Figure(figsize=(11.4, 3.3), layout=ConstrainedLayoutEngine(w_pad=0.12))
        panels = figure.subplots(1, 2, sharey=True)
        for panel, (branch, layers) in zip(panels, found.items(), strict=True):
            panel.set_title(branches[branch], pad=8)
            panel.set_xlabel("step")
            panel.axhline(0, color=MUTED, linewidth=0.8)
            panel.margins(x=0.005)
            colours = mpl.colormaps["viridis"](np.linspace(0.85, 0.05, max(1, len(layers))))
            for colour, series in zip(colours, layers.values(), strict=False):
                panel.plot(series.steps, series.values, color=colour, linewidth=1.8, clip_on=False)
            _label_layers(panel, layers, colours)
    return save(figure, path)


def _label_layers(panel: Axes, layers: Mapping[int, Series], colours: np.ndarray) -> None:
    drawn = [
        (s.values[-1], f"layer {layer}", c)
        for (layer, s), c in zip(layers.items(), colours, strict=True)
        if s.steps
    ]
    if len(drawn) > 8:
        drawn = [drawn[0], drawn[len(drawn) // 2], drawn[-1]]
    low, high = panel.get_ylim()
    gap, last = (high - low) * 0.075, np.inf
    for value, label, colour in sorted(drawn, key=lambda item: -item[0]):
        last = min(value, last - gap)
        panel.annotate(
            label, (1, last), (4, 0), ("axes fraction", "data"), "offset points",
            color=colour, fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip


def _of(
    results: Mapping[str, Any], task: str | None, model: str | None, **wanted: object
) -> list[dict[str, Any]]:
    """The cells of one task and one model: those named, or the first."""
    cells = select(results, **wanted)
    task = task or (cells[0]["task"] if cells else None)
    model = model or (cells[0]["model"] if cells else None)
    return [cell for cell in cells if cell["task"] == task and cell["model"] == model]


def _colour(style: str | None) -> str:
    if style in STYLE_COLOURS:
        return STYLE_COLOURS[style]
    return BLUE if style is None else SPARE_COLOURS[sum(style.encode()) % len(SPARE_COLOURS)]


def rounded(value: float, cell: Mapping[str, Any]) -> str:
    """In whole percent where it is a share."""
    return f"{value:.0%}" if is_share(cell) else f"{value:.2f}"


def metric_axis(panel: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    """Named by the cells' metric, in percent where it is a share."""
    panel.set_ylabel(", ".join(spoken(metric) for metric in distinct(cells, "metric")))
    if not all(is_share(cell) for cell in cells):
        panel.set_ylim(bottom=0)
        return
    panel.set_ylim(0, 1.02)
    panel.set_yticks(np.arange(0, 1.01, 0.25))
    panel.yaxis.set_major_formatter(lambda value, position: f"{value:.0%}")


def plain_log_axis(panel: Axes) -> None:
    """1-2-5 ticks written as plain numbers: losses span few decades, where "10^0" alone says nothing."""
    low, high = panel.get_ylim()
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [m * 10.0**decade for decade in decades for m in (1, 2, 5)]
    panel.set_yticks([tick for tick in ticks if low <= tick <= high])
    panel.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    panel.yaxis.set_minor_formatter(lambda value, position: "")
    panel.tick_params(axis="y", which="minor", size=0)


def _empty(message: str) -> Figure:
    figure = Figure(figsize=(6, 1.2))
    figure.text(0.5, 0.5, message, ha="center", va="center", color=MUTED)
    return figure
