"""`training.html`: the curves and the samples of a training on one page, which loads nothing and runs no script.

It is written from files alone, so also while the training goes on, and on another machine.
"""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from flamingo_lite.data.pages import data_uri
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.curves import Series, read_curves
from flamingo_lite.evaluation.pages import page_environment
from flamingo_lite.evaluation.panels import SECTIONS, Panel
from flamingo_lite.evaluation.plots import png
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.evaluation.training_plots import section_figure
from flamingo_lite.training.samples import GENERATIONS, Sample, picture_path, read_samples

PAGE = "training.html"
MOST_SHOWN = 12
"""Steps at which a prompt's text is shown; of more, evenly chosen ones, the first and the last among them."""


@dataclass(frozen=True)
class Section:
    """Panels with at least one curve, as one picture."""

    name: str
    panels: list[Panel]
    figure: str


@dataclass(frozen=True)
class Shown:
    """A prompt, its images as one picture, and what was written for it over time."""

    prompt: str
    target: str
    picture: str | None
    samples: list[Sample]


def write_page(directory: Path) -> Path:
    """The path of the page. Errors: `FlamingoError` for a metrics.csv that is missing or no training log."""
    metrics = directory / "metrics.csv"
    curves = read_curves(metrics)
    if not curves:
        raise FlamingoError(f"{metrics} has no rows yet; expected those of a training")
    config = directory / "config.yaml"
    page = (
        page_environment()
        .get_template("training.html.jinja")
        .render(
            run=directory.resolve().name,
            tiles=tiles(curves),
            sections=sections(curves),
            shown=shown(directory),
            config=config.read_text("utf-8") if config.exists() else None,
        )
    )
    return write_atomically(directory / PAGE, page.encode("utf-8", "replace"))


def tiles(curves: dict[str, Series]) -> list[tuple[str, str]]:
    """The last figures, name and value."""
    wanted = {
        "loss": "{:.3f}",
        "samples_per_second": "{:,.1f}",
        "tokens_per_second": "{:,.0f}",
        "mfu": "{:.1%}",
        "skipped_steps": "{:.0f}",
    }
    steps = max((series.steps[-1] for series in curves.values() if series.steps), default=0)
    found = [("step", f"{steps:,}")]
    for name, form in wanted.items():
        if name in curves and curves[name].values:
            found.append((name.replace("_", " "), form.format(curves[name].values[-1])))
    return found


def sections(curves: dict[str, Series]) -> list[Section]:
    found = []
    for name, panels in SECTIONS.items():
        figure = section_figure(panels, curves)
        if figure is not None:
            drawn = [panel for panel in panels if any(curves[c].steps for c in panel.found(curves))]
            found.append(Section(name, drawn, data_uri(png(figure, dpi=130))))
    return found


def shown(directory: Path) -> list[Shown]:
    """The prompts in their order, each with its samples."""
    samples = sorted(read_samples(directory / GENERATIONS), key=lambda s: (s.number, s.step))
    found = []
    for number, group in groupby(samples, key=lambda sample: sample.number):
        own = list(group)
        path = picture_path(directory, number)
        picture = data_uri(path.read_bytes()) if path.exists() else None
        found.append(Shown(own[0].prompt, own[0].target, picture, evenly(own, MOST_SHOWN)))
    return found


def evenly(samples: list[Sample], most: int) -> list[Sample]:
    """At most `most` of the samples, the first and the last among them."""
    if len(samples) <= most:
        return samples
    return [samples[round(i * (len(samples) - 1) / (most - 1))] for i in range(most)]
