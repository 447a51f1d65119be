"""MathVerse: one problem of geometry or functions in six versions, from all in words to all in the picture.

Zhang et al. 2024. Published scores have a language model extract and compare answers; here the letter, or the answer
word for word, must be what is written (`rules`), and what has no letter is counted as unparsed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.scored import matched
from flamingo_lite.evaluation.tasks.files import (
    CONTROLS,
    ONE_SPLIT,
    image_at,
    known_choice,
    load_by,
    records,
)
from flamingo_lite.evaluation.tasks.task import Answer, Segments, Style, Task, segments

STYLES = {"query_wo": 64, "query_cot": 512}
"""The file's two ways of asking, directly and with reasoning first, and the longest answer to each."""

REQUIRED: Mapping[str, Any] = {
    "sample_index": str, "problem_version": str, "image": str, "answer": str, "question_type": str,
    "query_wo": str, "query_cot": str,
}  # fmt: skip
KINDS = ("multi-choice", "free-form")
_ALONE = re.compile(r"\(?([A-Z])\)?[.:]?")
_STATED = re.compile(r"(?:answer|option|choice)\b[^A-Za-z0-9]*(?:is|:)?[^A-Za-z0-9]*([A-Z])\b", re.IGNORECASE)


def _examples(path: str, images: str) -> list[Example]:
    found = []
    for record in records(path, REQUIRED):
        problem = record.fields
        known_choice(problem["question_type"], KINDS, f"{record.where}: question_type")
        if not problem["answer"]:
            raise FlamingoError(
                f"{record.where}: has no answer; expected testmini, whose answers are published"
            )
        # The version in words alone has no picture.
        shown = (image_at(images, problem["image"], record.where),) if problem["image"] else ()
        facts = {
            name: problem[name] for name in ("query_wo", "query_cot", "question_type", "problem_version")
        }
        found.append(
            Example(problem["sample_index"], shown, problem["query_wo"], problem["answer"], facts=facts)
        )
    return found


def write(example: Example, style: str, is_answered: bool) -> Segments:
    return segments(example, example.facts[style], f"\n{example.answer}" if is_answered else None)


def said(text: str, example: Example) -> Scored:
    if example.facts["question_type"] == "multi-choice":
        return matched(_letter(text.strip()), example.answer.strip())
    given = _plain(text)
    found = matched(given or None, _plain(example.answer))
    return Scored(text.strip() or None, found.score, found.status)


def _letter(text: str) -> str | None:
    """A letter alone, the one before the first choice's text ("B: 60"), or the last that is said to be the answer."""
    if alone := _ALONE.fullmatch(text):
        return alone.group(1)
    if headed := re.match(r"\(?([A-Z])[).:]\s*\S", text):
        return headed.group(1)
    stated = _STATED.findall(text)
    return stated[-1].upper() if stated else None


def _plain(text: str) -> str:
    return text.strip().strip("$").rstrip(".").replace(" ", "").lower()


def figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    """Accuracy by version of the problem: how much of it is in the picture."""
    groups: dict[str, list[float]] = {}
    for answer in answers:
        groups.setdefault(answer.example.facts["problem_version"], []).append(answer.scored.score or 0.0)
    return {name: sum(scores) / len(scores) for name, scores in sorted(groups.items())}


MATHVERSE = Task(
    name="mathverse",
    asks="a problem of mathematics, more or less of which is in the picture (MathVerse)",
    splits=ONE_SPLIT,
    styles={
        name: Style(said, "rules", max_new_tokens=longest, figures=figures)
        for name, longest in STYLES.items()
    },
    write=write,
    load=load_by(_examples, "annotations"),
    files={
        "annotations": "testmini.json",
        "images": "the folder of its images",
        "support": "problems of the same layout, for demonstrations",
    },
    optional=frozenset({"support"}),
    controls=CONTROLS,
    instruction="Solve the problem and give the answer alone.",
)
