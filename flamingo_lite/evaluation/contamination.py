"""Which examples of an evaluation were trained on: found in shards, and written down by id."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_lite.data.overlap import REASONS, WORDS, Looked, Met, Overlap, OverlapIndex, meet_shards
from flamingo_lite.data.shards import Shards
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.exclusion import CONTAMINATION, VERSION
from flamingo_lite.evaluation.grid import EvaluationConfig, query_count, settings
from flamingo_lite.evaluation.results import sha256_of_json, write_atomically
from flamingo_lite.evaluation.tables import Table
from flamingo_lite.evaluation.tasks import items_of, spoken


@dataclass(frozen=True)
class Named:
    """An example, and what it is in an evaluation."""

    task: str
    split: str
    role: str
    example: Example

    @property
    def group(self) -> tuple[str, str, str]:
        return self.task, self.split, self.role

    @property
    def looked(self) -> Looked:
        return Looked(self.example.images, (self.example.question, *self.example.right_answers))


def examples_of(config: EvaluationConfig) -> list[Named]:
    """Every query that the evaluation asks, and every example of their supports, each once."""
    found: dict[tuple[str, str, str, str], Named] = {}
    seen: set[tuple[str, str, str]] = set()

    def add(task: str, split: str, role: str, example: Example) -> None:
        found.setdefault((task, split, role, example.id), Named(task, split, role, example))

    asked = {(setting.task, setting.split): setting for setting in settings(config)}
    for (task, split), setting in asked.items():
        items = items_of(task, config.files)
        for query_id in range(query_count(setting, config)):
            add(task, split, "query", items.query(split, query_id))
            support = items.support(split, query_id)
            if (task, split, support.key) not in seen:
                seen.add((task, split, support.key))
                for example in support.examples:
                    add(task, split, "support", example)
    # All queries of a split, then its support.
    order = {place: number for number, place in enumerate(asked)}
    return sorted(found.values(), key=lambda each: (order[each.task, each.split], each.role))


def find_contamination(
    named: Sequence[Named], sets: Sequence[Shards], distance: int, workers: int = 0
) -> Iterable[tuple[int, Met]]:
    """After each shard, how many documents were read, and what was met in all so far."""
    index = OverlapIndex([each.looked for each in named], distance)
    met = Met(unreadable=index.unreadable)
    for part in meet_shards(sets, index, workers):
        met.add(part)
        yield met.documents + met.rejects.total(), met


def contamination_of(
    named: Sequence[Named], met: Met, sets: Sequence[Shards], distance: int
) -> dict[str, Any]:
    """What `contamination.json` says."""
    by_example: dict[int, dict[str, Overlap]] = {}
    for (number, reason), overlap in met.overlaps.items():
        by_example.setdefault(number, {})[reason] = overlap
    groups: dict[tuple[str, str, str], list[int]] = {}
    for number, each in enumerate(named):
        groups.setdefault(each.group, []).append(number)
    return {
        "schema_version": VERSION,
        "shards": [
            {
                "location": shards.store.location,
                "samples": len(shards),
                "sha256": sha256_of_json([shard.sha256 for shard in shards.manifest.shards]),
            }
            for shards in sets
        ],
        "words": WORDS,
        "distance": distance,
        "documents": met.documents,
        "rejects": dict(sorted(met.rejects.items())),
        "tasks": [_counts(group, numbers, named, by_example) for group, numbers in groups.items()],
        "found": [_found(named[number], by_example[number]) for number in sorted(by_example)],
        "unreadable": [
            {**_identity(named[number]), "why": why} for number, why in sorted(met.unreadable.items())
        ],
    }


def _identity(each: Named) -> dict[str, str]:
    return {"task": each.task, "split": each.split, "role": each.role, "id": each.example.id}


def _counts(
    group: tuple[str, str, str],
    numbers: Sequence[int],
    named: Sequence[Named],
    by_example: Mapping[int, Mapping[str, Overlap]],
) -> dict[str, Any]:
    task, split, role = group
    reasons = [by_example.get(number, {}) for number in numbers]
    return {
        "task": task,
        "split": split,
        "role": role,
        "n": len(numbers),
        **{f"n_{reason}": sum(reason in found for found in reasons) for reason in REASONS},
        "n_any": sum(map(bool, reasons)),
        "n_short": sum(named[number].looked.is_short for number in numbers),
    }


def _found(each: Named, overlaps: Mapping[str, Overlap]) -> dict[str, Any]:
    return {
        **_identity(each),
        "why": {
            reason: {
                "where": overlaps[reason].where,
                "documents": overlaps[reason].documents,
                "detail": overlaps[reason].detail,
            }
            for reason in REASONS
            if reason in overlaps
        },
    }


def write_contamination(found: Mapping[str, Any], directory: Path) -> Path:
    return write_atomically(directory / CONTAMINATION, (json.dumps(found, indent=1) + "\n").encode())


def contamination_table(found: Mapping[str, Any]) -> Table:
    """A row for each task, split and role."""
    header = ["task", "split", "examples", "in all", *REASONS, "any", "too short to tell by text"]
    rows = [
        [
            spoken(entry["task"]),
            spoken(entry["split"]),
            "queries" if entry["role"] == "query" else "support",
            *(f"{entry.get(name, 0):,}" for name in ("n", *(f"n_{reason}" for reason in REASONS))),
            *(f"{entry.get(name, 0):,}" for name in ("n_any", "n_short")),
        ]
        for entry in found["tasks"]
    ]
    note = "; ".join(f"{reason}: {says}" for reason, says in REASONS.items())
    documents = f"{found.get('documents', 0):,} training documents"
    return Table("contamination", f"Met in {documents}", header, rows, 3, f"{note}.")
