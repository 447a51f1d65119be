"""ScienceQA's table: accuracy by subject, by what a question comes with, and by grade (Lu et al. 2022, table 4).

The parser of a single answer is `science_qa` in choices.py.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flamingo_lite.errors import FlamingoError

GRADES = tuple(f"grade{number}" for number in range(1, 13))


@dataclass(frozen=True)
class ScienceQaPart:
    """Where a question belongs, as problems.json has it: "natural science", "grade2". `has_text`: it has a hint."""

    subject: str
    grade: str
    has_text: bool
    has_image: bool

    def __post_init__(self) -> None:
        if self.grade not in GRADES:
            raise FlamingoError(f"ScienceQA: a problem of grade {self.grade!r}; expected grade1 to grade12")


PARTS: Mapping[str, Callable[[ScienceQaPart], bool]] = {
    "NAT": lambda part: part.subject == "natural science",
    "SOC": lambda part: part.subject == "social science",
    "LAN": lambda part: part.subject == "language science",
    "TXT": lambda part: part.has_text,
    "IMG": lambda part: part.has_image,
    "NO": lambda part: not part.has_text and not part.has_image,
    "G1-6": lambda part: part.grade in GRADES[:6],
    "G7-12": lambda part: part.grade in GRADES[6:],
    "Avg": lambda part: True,
}
"""The columns of the table. A question with a hint and an image counts under both."""


def science_qa_figures(answers: Iterable[tuple[ScienceQaPart, float]]) -> dict[str, float | None]:
    """The mean score of each column over (part, score) pairs; None where no question belongs to it."""
    listed = list(answers)
    figures: dict[str, float | None] = {}
    for name, belongs in PARTS.items():
        scores = [score for part, score in listed if belongs(part)]
        figures[name] = sum(scores) / len(scores) if scores else None
    return figures
