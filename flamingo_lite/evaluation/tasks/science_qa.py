"""ScienceQA: multiple choice from school lessons, half with an image, in all orders of its prompts (Lu et al. 2022).

A style is a form of the prompt: `QCM-A`, `QCM-ALE`, `QCM-LEA`, ...
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.json_records import section
from flamingo_lite.data.convert.scienceqa_prompt import (
    ANSWERED,
    ASKED,
    LETTERS,
    ScienceQaProblem,
    science_qa_example,
    science_qa_question,
)
from flamingo_lite.data.convert.sources import parse_json
from flamingo_lite.data.convert.values import list_of
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.choices import science_qa
from flamingo_lite.evaluation.metrics.science_qa import ScienceQaPart, science_qa_figures
from flamingo_lite.evaluation.tasks.files import CONTROLS, Record, image_at, mixed, records
from flamingo_lite.evaluation.tasks.task import Answer, Items, Segments, Style, Task, listed, segments

SPLITS = {"test": "4,241 questions", "val": "4,241 questions", "minitest": "1,000 questions of test"}
REQUIRED: Mapping[str, Any] = {
    "question": str, "choices": list, "answer": int, "hint": str, "image": (str, type(None)), "lecture": str,
    "solution": str, "subject": str, "grade": str, "split": str,
}  # fmt: skip


def load(files: Mapping[str, str]) -> Items:
    """Errors: `FlamingoError` for a folder of another kind, a split without problems, and a missing image."""
    folder = Path(files["folder"])
    images = files.get("images", str(folder / "images"))
    splits = _splits(folder / "pid_splits.json")
    wanted = {pid for name in (*SPLITS, "train") for pid in splits.get(name, ())}
    problems = {
        str(record.key): _example(record, images)
        for record in records(str(folder / "problems.json"), REQUIRED, dict)
        if record.key in wanted
    }
    if missing := [pid for pid in sorted(wanted) if pid not in problems]:
        raise FlamingoError(
            f"{folder / 'problems.json'}: has no problem {missing[0]}, which pid_splits.json names"
        )
    queries = {name: mixed([problems[pid] for pid in splits[name]]) for name in SPLITS if name in splits}
    support = [problems[pid] for pid in splits.get("train", ())]
    return listed(queries, dict.fromkeys(queries, support))


def _splits(path: Path) -> dict[str, list[str]]:
    found = {}
    for _, name, data in section(path, dict).items():
        pids = parse_json(data, f"{path}: {name}")
        if not isinstance(pids, list):
            raise FlamingoError(f"{path}: {name} is a {type(pids).__name__}; expected a list of ids")
        found[str(name)] = list_of(str, pids, f"{path}: {name}")
    return found


def _example(record: Record, images: str) -> Example:
    problem = record.fields
    choices = list_of(str, problem["choices"], f"{record.where}: choices")
    if not 0 <= problem["answer"] < len(choices) <= len(LETTERS):
        raise FlamingoError(
            f"{record.where}: answer {problem['answer']} of {len(choices)} choices; expected one of up to {len(LETTERS)}"
        )
    name = problem["image"]
    shown = (
        () if name is None else (image_at(images, f"{problem['split']}/{record.key}/{name}", record.where),)
    )
    return Example(
        id=str(record.key),
        images=shown,
        question=problem["question"],
        answer=LETTERS[problem["answer"]],
        choices=tuple(LETTERS[: len(choices)]),
        facts={
            "problem": ScienceQaProblem(
                problem["question"],
                choices,
                problem["answer"],
                problem["hint"],
                problem["lecture"],
                problem["solution"],
            ),
            "part": ScienceQaPart(
                problem["subject"], problem["grade"], bool(problem["hint"]), name is not None
            ),
        },
    )


def write(example: Example, style: str, is_answered: bool) -> Segments:
    problem: ScienceQaProblem = example.facts["problem"]
    if not is_answered:
        return segments(example, science_qa_question(problem, style), None)
    # The answer is the example's: a control may have changed it.
    shown = replace(problem, answer=LETTERS.index(example.answer))
    return segments(example, *science_qa_example(shown, style))


def said(text: str, example: Example) -> Scored:
    return science_qa(text, LETTERS.index(example.answer), len(example.choices))


def figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    return science_qa_figures((a.example.facts["part"], a.scored.score or 0.0) for a in answers)


SCIENCE_QA = Task(
    name="science_qa",
    asks="which choice answers a question from a school lesson (ScienceQA)",
    splits=SPLITS,
    styles={
        f"{asked}-{answered}": Style(
            said, "accuracy", max_new_tokens=16 if answered == "A" else 512, figures=figures
        )
        for asked in ASKED
        for answered in ANSWERED
    },
    write=write,
    load=load,
    files={
        "folder": "the folder of problems.json and pid_splits.json",
        "images": "the folder of train, val and test; images/ beside problems.json by default",
    },
    optional=frozenset({"images"}),
    controls=CONTROLS,
    instruction="Answer with the letter of the right option.",
)
