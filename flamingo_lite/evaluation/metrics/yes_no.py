"""POPE's yes and no: its parser and its five figures over a whole evaluation (Li et al. 2023)."""

from collections.abc import Iterable
from dataclasses import dataclass

from flamingo_lite.evaluation.metrics.scored import Scored, matched

_NO = {"No", "not", "no"}
_KNOWN = _NO | {"Yes", "yes"}


@dataclass(frozen=True)
class PopeFigures:
    """Shares in 0..1; `yes_ratio` is over predictions. None where a figure would divide by zero."""

    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    yes_ratio: float | None


def pope(text: str, target: str) -> Scored:
    """Whether the first sentence of `text` answers `target` ("yes" or "no"), as POPE's evaluate.py reads it.

    "No", "no" or "not" among its words is a no and everything else a yes, an empty text and "NO!" included.
    Where the sentence has neither word the answer counts as published, and its status is "unparsed".
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    answer = matched("no" if _NO.intersection(words) else "yes", target)
    status = "ok" if _KNOWN.intersection(words) else "unparsed"
    return Scored(answer.extracted, answer.score, status)


def pope_figures(answers: Iterable[tuple[str, str]]) -> PopeFigures:
    """The five figures of (answer, target) pairs of "yes" and "no"; "yes" is the positive class."""
    pairs = list(answers)
    right = sum(answer == target for answer, target in pairs)
    hits = sum(answer == target == "yes" for answer, target in pairs)
    said = sum(answer == "yes" for answer, _ in pairs)
    present = sum(target == "yes" for _, target in pairs)
    return PopeFigures(
        accuracy=_share(right, len(pairs)),
        precision=_share(hits, said),
        recall=_share(hits, present),
        f1=_share(2 * hits, said + present),
        yes_ratio=_share(said, len(pairs)),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
