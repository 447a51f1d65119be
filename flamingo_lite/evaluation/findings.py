"""What the figures say, in sentences: every one is decided by intervals, and says so when they do not
decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flamingo_lite.evaluation.tasks import describe_split, spoken

Cell = Mapping[str, Any]

# A control that should lower the score, and what the score's fall, or its lack, says of the model.
LOWERING = {
    "shuffled_labels": ("the demonstrations' answers permuted", "the answers in the prompt"),
    "blank_demonstrations": ("the demonstrations' images blanked", "the demonstrations' images"),
    "mismatched_images": ("another query's image", "the query's image"),
    "blank_images": ("every image blanked", "images"),
    "no_query_image": ("the query without its image", "the query's image"),
}


@dataclass(frozen=True)
class Finding:
    """`kind`: "yes" where the figures bear out learning from the prompt, "no" where they do not, "unsure"
    between."""

    kind: str
    text: str


def percent(value: float | None) -> str:
    """One decimal, except where it would say nothing: 97.3%, 100%."""
    return "–" if value is None else f"{100 * value:.1f}".removesuffix(".0") + "%"


def interval(cell: Cell) -> str:
    ci95 = cell["ci95"]
    return "no interval" if ci95 is None else f"95% interval {100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}"


def findings(cells: Sequence[Cell]) -> list[Finding]:
    """Of the cells of one task and model: learning from demonstrations per split, then the controls."""
    found: list[Finding] = []
    standard = [cell for cell in cells if cell["condition"] == "standard"]
    for split in dict.fromkeys(cell["split"] for cell in standard):
        best = _best_style([cell for cell in standard if cell["split"] == split])
        found += _learning(best)
    for cell in cells:
        match = [
            other
            for other in standard
            if all(other.get(key) == cell.get(key) for key in ("split", "style", "shots"))
        ]
        if cell["condition"] != "standard" and match:
            found += _control(cell, match[0])
    if failed := sum(cell["n_failed"] for cell in cells):
        found.append(
            Finding("unsure", f"{failed} generations failed; they are counted apart and not scored.")
        )
    return found


def _best_style(cells: Sequence[Cell]) -> list[Cell]:
    """The style that scores best at the most shots, by ascending shots."""
    most = max(cell["shots"] for cell in cells)
    best = max((cell for cell in cells if cell["shots"] == most), key=lambda cell: cell["value"])
    return sorted((c for c in cells if c.get("style") == best.get("style")), key=lambda cell: cell["shots"])


def _learning(line: Sequence[Cell]) -> list[Finding]:
    first, last = line[0], line[-1]
    where = f"{spoken(last['split'])} ({describe_split(last['task'], last['split'])})"
    style = f", {last['style']} answers" if last.get("style") else ""
    figure = f"{percent(last['value'])} at {last['shots']} shots{style} ({interval(last)})"
    if len(line) < 2:
        return [Finding("unsure", f"On {where}: {figure}.")]
    against = f"against {percent(first['value'])} at {first['shots']}"
    kind, verb = _compare(last, first)
    said = {
        "higher": ("yes", "demonstrations help"),
        "lower": ("no", "demonstrations do harm"),
        "alike": ("unsure", "the intervals overlap: no sign that demonstrations help"),
    }[verb if kind else "alike"]
    return [Finding(said[0], f"On {where}: {figure}, {against}: {said[1]}.")]


def _control(cell: Cell, standard: Cell) -> list[Finding]:
    differs, direction = _compare(cell, standard)
    figures = f"{percent(cell['value'])} against {percent(standard['value'])}"
    if cell["condition"] == "text_twin":
        kind = "no" if differs and direction == "higher" else "yes"
        tail = (
            "the images still cost something" if kind == "no" else "images cost nothing that can be measured"
        )
        return [Finding(kind, f"With words for images (text twin) {figures}: {tail}.")]
    if cell["condition"] not in LOWERING:
        return []
    change, used = LOWERING[cell["condition"]]
    if differs and direction == "lower":
        return [Finding("yes", f"With {change} {figures}: the model uses {used}.")]
    return [Finding("no", f"With {change} {figures}: no sign that the model uses {used}.")]


def _compare(cell: Cell, other: Cell) -> tuple[bool, str]:
    """Whether the intervals lie apart, and on which side `cell` is."""
    direction = "higher" if cell["value"] > other["value"] else "lower"
    if cell["ci95"] is None or other["ci95"] is None:
        return False, direction
    apart = cell["ci95"][0] > other["ci95"][1] or cell["ci95"][1] < other["ci95"][0]
    return apart, direction
