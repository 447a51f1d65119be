"""Writes `report.html` and `plots/` from an evaluation's files: one page that needs no network and no script.

Everything that came from a model or a file is escaped by the template; the page forbids itself to load
anything.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
from matplotlib.figure import Figure

from flamingo_lite.data.pages import data_uri
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation import plots
from flamingo_lite.evaluation.conditions import CONDITIONS
from flamingo_lite.evaluation.curves import Series, read_curves
from flamingo_lite.evaluation.findings import Finding, findings, interval, percent
from flamingo_lite.evaluation.gallery import Shown, gallery
from flamingo_lite.evaluation.results import load_results, load_samples, write_atomically
from flamingo_lite.evaluation.tasks import describe_split, spoken

REPORT = "report.html"
PLOTS = "plots"


@dataclass(frozen=True)
class Section:
    """All that a report says of one task and one model."""

    task: str
    model: str
    tiles: list[dict[str, Any]]
    findings: list[Finding]
    table: list[dict[str, Any]]
    shots: list[int]
    cells: list[dict[str, Any]]
    shown: list[Shown]
    figures: dict[str, str]


def write_report(
    run_directory: str | Path, metrics: str | Path | None = None, config: str | Path | None = None
) -> Path:
    """The path of the report. `metrics` and `config` default to `metrics.csv` and `config.yaml` in the run's
    folder or its `flamingo` folder, and may be missing there. Errors: `FlamingoError` for results that are
    missing, of another schema or without cells.
    """
    directory = Path(run_directory)
    results, samples = load_results(directory), load_samples(directory)
    curves = read_curves(found) if (found := _find(directory, "metrics.csv", metrics)) else {}
    run_config = _find(directory, "config.yaml", config)
    subjects = list(dict.fromkeys((cell["task"], cell["model"]) for cell in results["cells"]))
    if not subjects:
        raise FlamingoError(f"{directory} holds results without cells; run the evaluation again")
    sections = [
        _section(results, samples, task, model, directory / PLOTS, alone=len(subjects) == 1)
        for task, model in subjects
    ]
    training = {
        name: _saved(figure, directory / PLOTS / f"{name}.png")
        for name, figure in training_figures(curves).items()
    }
    page = (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            sections=sections,
            training=training,
            results=results,
            conditions=CONDITIONS,
            run_config=_text(run_config) if run_config else None,
            evaluation_config=json.dumps(results.get("config"), indent=2) if results.get("config") else None,
        )
    )
    return write_atomically(directory / REPORT, page.encode("utf-8", "replace"))


def evaluation_figures(
    results: Mapping[str, Any], task: str | None = None, model: str | None = None
) -> dict[str, Figure]:
    """Name to figure, as they stand in a report and can be logged elsewhere."""
    return {
        "accuracy_over_shots": plots.accuracy_over_shots(results, task=task, model=model),
        "controls": plots.controls(results, task=task, model=model),
    }


def training_figures(curves: Mapping[str, Series]) -> dict[str, Figure]:
    """Name to figure; none for what was not logged."""
    figures = {}
    if any(name in curves for name in ("loss", "learning_rate", "samples_per_second")):
        figures["training"] = plots.training_curves(curves)
    if any(name.startswith("gate/") for name in curves):
        figures["gates"] = plots.gate_curves(curves)
    return figures


def _section(
    results: Mapping[str, Any],
    samples: list[dict[str, Any]],
    task: str,
    model: str,
    folder: Path,
    alone: bool,
) -> Section:
    cells = [c for c in results["cells"] if (c["task"], c["model"]) == (task, model)]
    scored = plots.select({"cells": cells})
    if not scored:
        raise FlamingoError(f"every prediction of {model} on {task} failed; see the errors in samples.jsonl")
    standard = [cell for cell in scored if cell["condition"] == "standard"]
    figures = (
        {"accuracy_over_shots": plots.accuracy_over_shots(results, task=task, model=model)}
        if standard
        else {}
    )
    if len(standard) < len(scored):
        figures["controls"] = plots.controls(results, task=task, model=model)
    suffix = "" if alone else f"-{_slug(task)}-{_slug(model)}"
    return Section(
        task=task,
        model=model,
        tiles=_tiles(standard),
        findings=findings(scored),
        table=_table(standard),
        shots=sorted(plots.distinct(standard, "shots")),
        cells=cells,
        shown=gallery(
            (s for s in samples if (s["task"], s["model"]) == (task, model)),
            (results.get("config") or {}).get("files"),
        ),
        figures={n: _saved(figure, folder / f"{n}{suffix}.png") for n, figure in figures.items()},
    )


def _tiles(standard: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A tile per split: the best style at the most shots, and the same style at the fewest."""
    tiles = []
    for split in plots.distinct(standard, "split"):
        cells = [cell for cell in standard if cell["split"] == split]
        most, fewest = max(c["shots"] for c in cells), min(c["shots"] for c in cells)
        best = max((c for c in cells if c["shots"] == most), key=lambda cell: cell["value"])
        first = [c for c in cells if c["shots"] == fewest and c.get("style") == best.get("style")]
        tiles.append({"best": best, "first": first[0] if fewest < most and first else None})
    return tiles


def _table(standard: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per split and style: shots to cell."""
    rows: dict[tuple[str, str | None], dict[int, dict[str, Any]]] = {}
    for cell in standard:
        rows.setdefault((cell["split"], cell.get("style")), {})[cell["shots"]] = cell
    return [{"split": split, "style": style, "by_shots": row} for (split, style), row in rows.items()]


def _saved(figure: Figure, path: Path) -> str:
    """Writes the figure and returns it as a data URI: what is on the page is what is in the folder."""
    data = plots.png(figure)
    write_atomically(path, data)
    return data_uri(data)


def page_environment() -> jinja2.Environment:
    """Templates of pages: everything that comes from a model or a file is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flamingo_lite.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["words"] = lambda name: spoken(str(name))
    names = cast(dict[str, Any], environment.globals)  # typed as what jinja puts there
    names.update(interval=interval, describe_split=describe_split)
    return environment


def _find(directory: Path, name: str, given: str | Path | None) -> Path | None:
    if given is not None:
        return Path(given)
    places = (directory / name, directory / "flamingo" / name)
    return next((path for path in places if path.is_file()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FlamingoError(f"{path} cannot be read ({error})") from error


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
