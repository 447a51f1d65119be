"""Writes `report.html`, `plots/` and `tables/` from an evaluation's files: one page that needs no network and no script.

Everything that came from a model or a file is escaped by the template; the page forbids itself to load
anything.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation import plots, tables
from flamingo_lite.evaluation.comparison_report import (
    PLOTS,
    REPORT,
    TABLES,
    found_tables,
    headlines,
    power_line,
    write_comparison,
)
from flamingo_lite.evaluation.conditions import CONDITIONS
from flamingo_lite.evaluation.contamination import contamination_table
from flamingo_lite.evaluation.curves import Series, read_curves
from flamingo_lite.evaluation.exclusion import CONTAMINATION, load_contamination
from flamingo_lite.evaluation.findings import Finding, findings
from flamingo_lite.evaluation.gallery import Shown, gallery
from flamingo_lite.evaluation.pages import page_environment, saved
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.evaluation.side_by_side import Answers, worst_mistakes
from flamingo_lite.evaluation.systems import System, read_runs
from flamingo_lite.evaluation.tables import skills_table, write_tables


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
    mistakes: list[Answers]
    skills: tables.Table | None
    figures: dict[str, str]


def write_report(
    run_directory: str | Path, metrics: str | Path | None = None, config: str | Path | None = None
) -> Path:
    """The path of the report. `metrics` and `config` default to `metrics.csv` and `config.yaml` in the run's
    folder or its `flamingo` folder, and may be missing there. Errors: `FlamingoError` for results that are
    missing, of another schema or without cells.
    """
    directory = Path(run_directory)
    systems = read_runs([directory])
    if len(systems) > 1:
        return write_comparison(systems, directory)
    return _write_one(systems[0], directory, metrics, config)


def _write_one(
    system: System, directory: Path, metrics: str | Path | None, config: str | Path | None
) -> Path:
    """The report of one model."""
    results, samples = system.results[0], system.samples
    curves = read_curves(found) if (found := _find(directory, "metrics.csv", metrics)) else {}
    run_config = _find(directory, "config.yaml", config)
    tasks = plots.distinct(system.cells, "task")
    sections = [_section(system, task, directory / PLOTS, alone=len(tasks) == 1) for task in tasks]
    write_tables(found_tables([system], []).values(), directory / TABLES)
    training = {
        name: saved(figure, directory / PLOTS / f"{name}.png")
        for name, figure in training_figures(curves).items()
    }
    page = (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            sections=sections,
            training=training,
            results=results,
            power=power_line(samples),
            failures=headlines([system]),
            contamination=_contamination(directory),
            conditions=CONDITIONS,
            run_config=_text(run_config) if run_config else None,
            evaluation_config=json.dumps(results.get("config"), indent=2) if results.get("config") else None,
        )
    )
    return write_atomically(directory / REPORT, page.encode("utf-8", "replace"))


def _contamination(directory: Path) -> tables.Table | None:
    """What was met in training, where it was looked for."""
    path = _find(directory, CONTAMINATION, None)
    return contamination_table(load_contamination(path)) if path else None


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


def _section(system: System, task: str, folder: Path, alone: bool) -> Section:
    model = system.name
    cells = [cell for cell in system.cells if cell["task"] == task]
    samples = [sample for sample in system.samples if sample["task"] == task]
    results = {"cells": cells}
    files = (system.results[0].get("config") or {}).get("files")
    scored = plots.select(results)
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
    suffix = "" if alone else f"-{_slug(task)}"
    return Section(
        task=task,
        model=model,
        tiles=_tiles(standard),
        findings=findings(scored),
        table=_table(standard),
        shots=sorted(plots.distinct(standard, "shots")),
        cells=cells,
        shown=gallery(samples, files),
        mistakes=worst_mistakes(samples, files),
        skills=skills_table([replace(system, cells=cells)]),
        figures={n: saved(figure, folder / f"{n}{suffix}.png") for n, figure in figures.items()},
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
