"""The figures of `data stats`: one distribution each, drawn from `Stats`."""

from collections import Counter
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flamingo_lite.data.stats import Stats
from flamingo_lite.figures import BLUE, GREEN, LOOK, MUTED, VERMILION

MOST_BARS = 12  # images per document beyond this share the last bar


def figures(stats: Stats) -> dict[str, Figure]:
    """Name to figure; none for what the documents do not have."""
    drawn: dict[str, Figure] = {}
    with mpl.rc_context(LOOK):
        if stats.documents:
            drawn["images_per_document"] = _images_per_document(stats)
            drawn["lengths"] = _histogram(
                stats.lengths, f"Length of a document in {stats.unit}", BLUE, log=True
            )
        if stats.widths:
            drawn["image_sizes"] = _sizes(stats)
            sides = np.asarray(stats.widths, float) / np.asarray(stats.heights, float)
            drawn["aspect_ratios"] = _histogram(sides, "Width over height", GREEN, log=True)
        if stats.similarities:
            drawn["similarity"] = _histogram(stats.similarities, "Similarity of image and text", VERMILION)
        for name, title, counts in (
            ("roles", "Texts by role", stats.roles),
            ("rejects", "Rejects by reason", stats.rejects + stats.left_out),
        ):
            if counts:
                drawn[name] = _bars(counts, title)
    return drawn


def _panel(title: str, subtitle: str, height: float = 2.9) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, height), layout="constrained")
    panel = figure.subplots()
    panel.set_title(title)
    panel.annotate(subtitle, (0, 1), (0, 8), "axes fraction", "offset points", color=MUTED, fontsize=9)
    panel.grid(axis="x", visible=False)
    return figure, panel


def _images_per_document(stats: Stats) -> Figure:
    images = np.asarray(stats.images)
    figure, panel = _panel("Images per document", f"mean {images.mean():.2f}, at most {images.max():,}")
    most = min(int(images.max()), MOST_BARS)
    heights = np.bincount(np.minimum(images, most), minlength=most + 1) / len(images)
    panel.bar(range(most + 1), heights, color=BLUE, width=0.72)
    labels = [str(count) for count in range(most + 1)]
    if images.max() > most:
        labels[-1] += "+"
    panel.set_xticks(range(most + 1), labels)
    panel.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    return figure


def _histogram(
    values: Sequence[float] | NDArray[np.float64], title: str, colour: str, log: bool = False
) -> Figure:
    found = np.asarray(values, float)
    low, middle, high = np.percentile(found, [5, 50, 95])
    figure, panel = _panel(title, f"median {_number(middle)}, 90% between {_number(low)} and {_number(high)}")
    least, most = max(found.min(), 1e-3) if log else found.min(), max(found.max(), 1e-3)
    if log and most > least:
        panel.set_xscale("log")
        bins = np.geomspace(least, most * 1.0001, 41)
        _in_decades(panel.xaxis)
    else:
        bins = np.linspace(least, most if most > least else least + 1, 41)
    panel.hist(
        np.clip(found, bins[0], bins[-1]),
        bins.tolist(),
        color=colour,
        weights=np.full(len(found), 1 / len(found)),
    )
    panel.axvline(middle, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    panel.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    return figure


def _sizes(stats: Stats) -> Figure:
    widths, heights = np.asarray(stats.widths, float), np.asarray(stats.heights, float)
    middle = f"median {np.median(widths):.0f} x {np.median(heights):.0f} pixels"
    figure, panel = _panel("Image sizes", middle, height=3.6)
    panel.hexbin(
        widths, heights, gridsize=32, xscale="log", yscale="log", mincnt=1, cmap="Blues", norm=LogNorm(),
        linewidths=0.2,
    )  # fmt: skip
    panel.set_xlabel("width")
    panel.set_ylabel("height")
    _in_decades(panel.xaxis)
    _in_decades(panel.yaxis)
    return figure


def _bars(counts: Counter[str], title: str) -> Figure:
    shown = counts.most_common(MOST_BARS)[::-1]
    figure, panel = _panel(title, f"{counts.total():,} in all", height=1.2 + 0.32 * len(shown))
    panel.barh(range(len(shown)), [count for _, count in shown], color=BLUE, height=0.62)
    panel.set_yticks(range(len(shown)), [_label(name) for name, _ in shown])
    for place, (_, count) in enumerate(shown):
        panel.annotate(
            f"{count:,}", (count, place), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    panel.set_xlim(0, max(count for _, count in shown) * 1.15)
    panel.grid(axis="y", visible=False)
    panel.set_xticks([])
    return figure


def _label(name: str) -> str:
    short = name if len(name) <= 20 else f"{name[:19]}…"
    return short.replace("$", r"\$")  # a name comes from the data, and would be read as a formula


def _in_decades(axis: Axis) -> None:
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: _number(value))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
