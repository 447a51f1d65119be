"""The list of examples that were met in training, and what an evaluation leaves out by it."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flamingo_lite.errors import FlamingoError

CONTAMINATION = "contamination.json"
VERSION = 1

Excluded = Mapping[tuple[str, str, str], frozenset[str]]
"""The ids that are left out, by task, split and role ("query", "support")."""


def load_contamination(path: str | Path) -> dict[str, Any]:
    """Errors: `FlamingoError` for a file that cannot be read or is no such list."""
    again = "make it with `flamingo-lite eval contamination`"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FlamingoError(
            f"{path}: the list of contaminated examples cannot be read ({reason}); {again}"
        ) from error
    if not isinstance(found, dict) or found.get("schema_version") != VERSION:
        raise FlamingoError(f"{path} has no schema_version {VERSION}; {again}")
    for kind, fields in {
        "found": ("task", "split", "role", "id"),
        "tasks": ("task", "split", "role"),
    }.items():
        entries = found.get(kind)
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in fields)
            for entry in entries
        ):
            raise FlamingoError(f"{path}: '{kind}' is no list of {', '.join(fields)}; {again}")
    return found


def excluded(path: str | None) -> Excluded:
    """What the list at `path` leaves out; nothing without one. Errors: as `load_contamination`."""
    return {} if path is None else _listed(path)[0]


def looked_for(path: str | None) -> Mapping[tuple[str, str, str], int]:
    """How many examples the list at `path` was made of, by task, split and role. Errors: as `load_contamination`."""
    return {} if path is None else _listed(path)[1]


def _listed(path: str) -> tuple[Excluded, Mapping[tuple[str, str, str], int]]:
    try:
        status = Path(path).stat()
    except OSError:
        load_contamination(path)
        raise
    return _read(path, status.st_size, status.st_mtime_ns)


# The size and the time of the last change are here for the cache: a list that has changed is read anew.
@lru_cache(maxsize=4)
def _read(path: str, size: int, changed: int) -> tuple[Excluded, Mapping[tuple[str, str, str], int]]:
    found = load_contamination(path)
    ids: dict[tuple[str, str, str], set[str]] = {}
    for entry in found["found"]:
        ids.setdefault((entry["task"], entry["split"], entry["role"]), set()).add(entry["id"])
    counts = {(entry["task"], entry["split"], entry["role"]): entry.get("n", 0) for entry in found["tasks"]}
    return {group: frozenset(each) for group, each in ids.items()}, counts


def exclusion_lines(results: Mapping[str, Any]) -> list[str]:
    """What a run's headline says of what was left out, and of what the list says nothing about."""
    lines = []
    for entry in results.get("excluded") or ():
        where = f"{entry['task']}, {entry['split']}"
        if entry["queries"] or entry["support"]:
            lines.append(
                f"{where}: {entry['queries']:,} of {entry['of']:,} queries and {entry['support']:,} demonstrations were "
                "left out, because they were met in training"
            )
        if unknown := entry.get("not_looked_for", 0):
            lines.append(
                f"{where}: {unknown:,} of {entry['of']:,} queries were never looked for in training; make the list with "
                "the tasks, splits and eval.queries of this evaluation"
            )
    return lines
