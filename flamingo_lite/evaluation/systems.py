"""What is compared: a model as it is shown prompts in one way, with its predictions under every seed of its training.

Runs that answer for one name (a system under several training seeds) are pooled; their intervals are over queries and
training seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.comparison import (
    CELL_KEYS,
    Comparison,
    compare,
    sample_clusters,
    sample_sets,
)
from flamingo_lite.evaluation.results import load_results, load_samples
from flamingo_lite.evaluation.statistics import clustered_bootstrap
from flamingo_lite.evaluation.tasks import TASKS

Cell = dict[str, Any]
Sample = dict[str, Any]

RESAMPLES = 2000


@dataclass(frozen=True)
class System:
    """`cells`: as in `results.json`, of all training seeds together; `by_training_seed`: a cell's values under each, by
    its `cell_key`. `facts`: what else is known of the system. `results`: of its runs."""

    name: str
    samples: list[Sample]
    cells: list[Cell]
    results: Sequence[Mapping[str, Any]]
    training_seeds: tuple[int | None, ...] = (None,)
    by_training_seed: Mapping[tuple[Any, ...], list[float | None]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def cell_key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell.get(key) for key in CELL_KEYS)


def read_system(
    name: str,
    directories: Sequence[Path],
    training_seeds: Sequence[int | None] = (None,),
    facts: Mapping[str, Any] | None = None,
) -> System:
    """The system whose runs lie in `directories`, one for each training seed. Errors: `FlamingoError`."""
    results = [load_results(directory) for directory in directories]
    samples = [
        {**sample, "model": name, "training_seed": seed}
        for directory, seed in zip(directories, training_seeds, strict=True)
        for sample in load_samples(directory)
    ]
    return _system(name, samples, results, tuple(training_seeds), facts or {})


def read_runs(directories: Sequence[Path]) -> list[System]:
    """A system for each model and rendering in each run's folder, under names that tell them apart.

    Errors: `FlamingoError` for a folder that is given twice, and for results without cells.
    """
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise FlamingoError("a run is given twice; give each folder once")
    found: list[tuple[str, str, str, Path, Mapping[str, Any], list[Sample]]] = []
    for directory in directories:
        results, samples = load_results(directory), load_samples(directory)
        if not results["cells"]:
            raise FlamingoError(f"{directory} holds results without cells; run the evaluation again")
        groups: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            groups.setdefault((sample["model"], rendering_of(sample)), []).append(sample)
        found += [(*key, _folder_name(directory), directory, results, its) for key, its in groups.items()]
    models = [model for model, *_ in found]
    shown = {rendering for _, rendering, *_ in found}
    systems = []
    for model, rendering, folder, _, results, samples in found:
        name = model if models.count(model) == 1 else folder
        name = name if len(shown) == 1 else f"{name}, {rendering.replace('_', ' ')}"
        cells = [c for c in results["cells"] if (c["model"], rendering_of(c)) == (model, rendering)]
        named = [{**sample, "model": name} for sample in samples]
        systems.append(System(name, named, [{**cell, "model": name} for cell in cells], [results]))
    if len({system.name for system in systems}) < len(systems):
        raise FlamingoError(
            f"two runs go by one name ({', '.join(s.name for s in systems)}); rename the folder of one of them"
        )
    return systems


def rendering_of(sample: Mapping[str, Any]) -> str:
    return sample.get("rendering", "interleaved")


def paired(systems: Sequence[System], resamples: int = RESAMPLES) -> list[tuple[str, str, list[Comparison]]]:
    """(first, second, differences second - first) of every two systems. Errors: `FlamingoError`, as `compare`."""
    return [
        (first.name, second.name, compare(first.samples, second.samples, resamples))
        for first, second in combinations(systems, 2)
    ]


def _system(
    name: str,
    samples: list[Sample],
    results: Sequence[Mapping[str, Any]],
    training_seeds: tuple[int | None, ...],
    facts: Mapping[str, Any],
) -> System:
    known: dict[tuple[Any, ...], Cell] = {}
    values: dict[tuple[Any, ...], list[float | None]] = {}
    for its in results:
        for cell in its["cells"]:
            known.setdefault(cell_key(cell), cell)
            values.setdefault(cell_key(cell), []).append(cell["value"])
    if len(results) == 1:
        cells = [{**cell, "model": name} for cell in results[0]["cells"]]
    else:
        by_cell: dict[tuple[Any, ...], list[Sample]] = {}
        for sample in samples:
            by_cell.setdefault(cell_key(sample), []).append(sample)
        cells = [_pooled(cell, name, by_cell.get(key, [])) for key, cell in known.items()]
    return System(name, samples, cells, results, training_seeds, values, facts)


def _pooled(cell: Cell, name: str, samples: Sequence[Sample]) -> Cell:
    """The cell over all training seeds."""
    answered = [sample for sample in samples if sample["score"] is not None]
    estimate = clustered_bootstrap(
        [sample["score"] for sample in answered],
        sample_clusters(answered),
        RESAMPLES,
        sets=sample_sets(answered),
        bounds=_bounds(cell),
    )
    return {
        **{key: cell.get(key) for key in (*CELL_KEYS, "metric", "rendering")},
        "model": name,
        "value": estimate.value,
        "se": estimate.se,
        "ci95": None if estimate.ci95 is None else list(estimate.ci95),
        "n": len(answered),
        "n_failed": len(samples) - len(answered),
        "seeds": cell["seeds"],
        "clustered_by": estimate.clustered_by.replace("demonstration set", "training seed"),
        **{key: cell.get(key) for key in BASELINES},
    }


BASELINES = ("random_baseline", "majority_baseline", "answers_alone")
"""Of a cell; they are of its prompts, and the same whatever answers them."""


def is_share(cell: Mapping[str, Any]) -> bool:
    """Is the cell's figure a share, from 0 to 1, to be written in percent?"""
    return _bounds(cell) == (0.0, 1.0)


def _bounds(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Between what the cell's interval stays; of a task that is not one of ours, a share."""
    task = TASKS.get(cell["task"])
    style = task.styles.get(cell.get("style") or "") if task else None
    return style.bounds if style else (0.0, 1.0)


def _folder_name(directory: Path) -> str:
    return directory.resolve().name
