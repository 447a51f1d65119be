"""One page on several models that answered the same prompts: curves, paired differences, controls, costs, answers side
by side; with its figures in plots/ and its tables in tables/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation import comparison_plots, tables
from flamingo_lite.evaluation.comparison import Comparison
from flamingo_lite.evaluation.conditions import CONDITIONS
from flamingo_lite.evaluation.exclusion import exclusion_lines
from flamingo_lite.evaluation.findings import Finding
from flamingo_lite.evaluation.pages import page_environment, saved
from flamingo_lite.evaluation.power import resolution
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.evaluation.side_by_side import side_by_side, worst_mistakes
from flamingo_lite.evaluation.systems import RESAMPLES, System, is_share, paired
from flamingo_lite.evaluation.tables import Table, difference_text, is_significant
from flamingo_lite.evaluation.tasks import spoken

REPORT = "report.html"
PLOTS = "plots"
TABLES = "tables"


@dataclass(frozen=True)
class TaskSection:
    """What the page shows of one task: figures by their name, as data URIs."""

    task: str
    curves: str | None
    controls: str | None


def write_comparison(
    systems: Sequence[System],
    directory: Path,
    title: str = "",
    about: Sequence[str] = (),
    resamples: int = RESAMPLES,
) -> Path:
    """The path of the page. `about`: lines on what was compared, for its head.

    Errors: `FlamingoError` for fewer than two systems, and for runs that share no cell or whose prompts differ.
    """
    if len(systems) < 2:
        raise FlamingoError(f"a comparison needs two models, got {len(systems)}; give another run")
    pairs = paired(systems, resamples)
    written = found_tables(systems, pairs)
    tables.write_tables(written.values(), directory / TABLES)
    files = next((found for s in systems for r in s.results if (found := _files(r))), None)
    tasks = list(dict.fromkeys(cell["task"] for system in systems for cell in system.cells))
    page = (
        page_environment()
        .get_template("comparison.html.jinja")
        .render(
            title=title or " and ".join(system.name for system in systems),
            about=[*about, power_line(systems[0].samples)],
            failures=headlines(systems),
            systems=systems,
            colours={s.name: comparison_plots.colour_of(systems, s.name) for s in systems},
            findings=comparison_findings(pairs),
            sections=[_section(systems, task, directory / PLOTS) for task in tasks],
            tables=written,
            shown=side_by_side(systems, files),
            mistakes={system.name: worst_mistakes(system.samples, files, most=3) for system in systems},
            conditions=CONDITIONS,
        )
    )
    return write_atomically(directory / REPORT, page.encode("utf-8", "replace"))


def found_tables(
    systems: Sequence[System], pairs: Sequence[tuple[str, str, Sequence[Comparison]]]
) -> dict[str, Table]:
    """The tables by name; those without content are left out."""
    made = (
        tables.accuracy_table(systems),
        tables.differences_table(pairs),
        tables.controls_table(systems),
        tables.skills_table(systems),
        tables.systems_table(systems),
    )
    return {table.name: table for table in made if table is not None and table.rows}


def comparison_findings(pairs: Sequence[tuple[str, str, Sequence[Comparison]]]) -> list[Finding]:
    """For each pair and each task, split and style: who is better at the most shots, and at which others."""
    found = []
    for first, second, comparisons in pairs:
        groups: dict[tuple[Any, ...], list[Comparison]] = {}
        for comparison in comparisons:
            cell = comparison.cell
            if cell["condition"] == "standard" and comparison.result.difference is not None:
                groups.setdefault((cell["task"], cell["split"], cell["style"]), []).append(comparison)
        found += [_finding(first, second, group) for group in groups.values()]
    return found


def _finding(first: str, second: str, group: Sequence[Comparison]) -> Finding:
    ordered = sorted(group, key=lambda comparison: comparison.cell["shots"])
    last = ordered[-1]
    where = ", ".join(spoken(last.cell[key]) for key in ("task", "split", "style") if last.cell[key])
    unit = "points" if is_share(last.cell) else "CIDEr-D" if last.cell["task"] == "captioning" else ""
    shots = last.cell["shots"]
    figures = f"{difference_text(last).removesuffix(tables.STAR)} {unit} at {shots} shots".replace("  ", " ")
    if not is_significant(last):
        rest = [c.cell["shots"] for c in ordered[:-1] if is_significant(c)]
        elsewhere = f"; there is one at {_listed(rest)} shots" if rest else ""
        return Finding(
            "unsure", f"{where}: no difference was found between {first} and {second} ({figures}){elsewhere}."
        )
    assert last.result.difference is not None
    better, worse = (second, first) if last.result.difference > 0 else (first, second)
    size = difference_text(last if better == second else turned_round(last)).removesuffix(tables.STAR)
    agrees = {
        c.cell["shots"]: ((c.result.difference or 0) > 0) == (last.result.difference > 0)
        for c in ordered[:-1]
        if is_significant(c)
    }
    same = [shots for shots, is_same in agrees.items() if is_same]
    turned = [shots for shots, is_same in agrees.items() if not is_same]
    also = f"; likewise at {_listed(same)}" if same else ""
    but = f"; the other way round at {_listed(turned)}" if turned else ""
    p = last.result.p_holm
    said = "p < 0.001" if p is not None and p < 0.001 else f"p = {p:.3f}"
    return Finding(
        "yes",
        f"{where}: {better} is better than {worse} ({size} {unit} at {shots} shots, {said} after "
        f"Holm{also}{but}).",
    )


def turned_round(found: Comparison) -> Comparison:
    """The same difference as first - second."""
    result = found.result
    assert result.difference is not None
    ci95 = None if result.ci95 is None else (-result.ci95[1], -result.ci95[0])
    return replace(found, result=replace(result, difference=-result.difference, ci95=ci95))


def _listed(shots: Sequence[int]) -> str:
    return ", ".join(map(str, shots))


def _section(systems: Sequence[System], task: str, folder: Path) -> TaskSection:
    has_standard = any(
        cell["condition"] == "standard" and cell["value"] is not None and cell["task"] == task
        for system in systems
        for cell in system.cells
    )
    curves = comparison_plots.over_shots(systems, task) if has_standard else None
    controls = comparison_plots.control_dots(systems, task)
    return TaskSection(
        task,
        saved(curves, folder / f"scores_over_shots-{task}.png") if curves else None,
        saved(controls, folder / f"controls-{task}.png") if controls else None,
    )


def power_line(samples: Sequence[Mapping[str, Any]]) -> str:
    """What difference so many queries and seeds would find."""
    standard = [sample for sample in samples if sample["condition"] == "standard"] or list(samples)
    queries = {(sample["task"], sample["split"], sample["query_id"]) for sample in standard}
    groups = {(task, split) for task, split, _ in queries}
    return resolution(max(1, len(queries) // max(1, len(groups))), sorted({s["seed"] for s in standard}))


def _files(results: Mapping[str, Any]) -> Mapping[str, Mapping[str, str]] | None:
    return (results.get("config") or {}).get("files") or None


def headlines(systems: Sequence[System]) -> list[str]:
    """What was left out, and a line for each system of which more than 1% of the generations failed."""
    lines = list(
        dict.fromkeys(line for s in systems for found in s.results for line in exclusion_lines(found))
    )
    for system in systems:
        failed = sum(sample["status"] == "failed" for sample in system.samples)
        if failed > 0.01 * len(system.samples):
            lines.append(f"{system.name}: {failed:,} of {len(system.samples):,} generations failed")
    return lines
