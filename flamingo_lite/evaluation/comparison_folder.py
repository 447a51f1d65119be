"""The folder of a comparison: the runs of each system, and `systems.json`, which says what they are and cost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.comparison_report import write_comparison
from flamingo_lite.evaluation.systems import read_system

SYSTEMS = "systems.json"


def report_systems(output: Path) -> Path:
    """Writes the report of what lies in a comparison's folder; its path. Errors: `FlamingoError`."""
    described = read_systems(output)
    systems = [
        read_system(
            name if len(facts["renderings"]) == 1 else f"{name}, {rendering.replace('_', ' ')}",
            [output / run / rendering for run in facts["runs"]],
            facts["seeds"],
            facts,
        )
        for name, facts in described["systems"].items()
        for rendering in facts["renderings"]
    ]
    return write_comparison(
        systems, output, title=" against ".join(described["systems"]), about=[budget_line(described)]
    )


def read_systems(output: Path) -> dict[str, Any]:
    """What a comparison has written about its systems. Errors: `FlamingoError`."""
    path = output / SYSTEMS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"budget": dict(found["budget"]), "systems": dict(found["systems"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlamingoError(
            f"{path} cannot be read ({error}); expected what flamingo-lite compare wrote: run it again"
        ) from error


def budget_line(described: Mapping[str, Any]) -> str:
    """The budget and the seeds, in words."""
    budget, systems = described["budget"], described["systems"]
    seeds = len(next(iter(systems.values()))["seeds"])
    of_each = (
        f"{budget['samples']:,} documents"
        if budget["flops"] is None
        else f"{budget['flops'] / 1e12:,.1f} TFLOPs of training"
    )
    return (
        f"{of_each} for each of {len(systems)} systems, under {seeds} training seed{'s' if seeds > 1 else ''}"
    )
