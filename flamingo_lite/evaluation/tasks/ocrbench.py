"""OCRBench: reading in 29 kinds of pictures; right where the answer stands anywhere in the text (Liu et al. 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.tasks.files import (
    CONTROLS,
    ONE_SPLIT,
    Wording,
    image_at,
    known_choice,
    load_by,
    records,
    worded,
)
from flamingo_lite.evaluation.tasks.short_answers import WORDINGS, given_answers
from flamingo_lite.evaluation.tasks.task import Answer, Style, Task

RECOGNITION = (
    "Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition",
    "Handwriting Recognition", "Digit String Recognition", "Non-Semantic Text Recognition",
)  # fmt: skip
TYPES = (
    *RECOGNITION, "Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)  # fmt: skip
FORMULAS = "HME100k"
REQUIRED: Mapping[str, Any] = {
    "dataset_name": str, "id": (int, str), "image_path": str, "question": str, "answers": (str, list), "type": str,
}  # fmt: skip


def _examples(path: str, images: str) -> list[Example]:
    """Ids are distinct within a dataset and a question only; an image may be asked about twice."""
    found = []
    for record in records(path, REQUIRED):
        item = record.fields
        known_choice(item["type"], TYPES, f"{record.where}: type")
        listed = [item["answers"]] if isinstance(item["answers"], str) else item["answers"]
        answers = given_answers(listed, record.where)
        key = f"{item['dataset_name']}/{item['id']}/{item['question']}"
        image = image_at(images, item["image_path"], record.where)
        facts = {"dataset": item["dataset_name"], "type": item["type"]}
        found.append(Example(key, (image,), item["question"], answers[0], answers, facts=facts))
    return found


def contained(text: str, example: Example) -> Scored:
    """1 where an answer is part of the text; case does not count, in formulas blanks do not and case does."""
    if example.facts["dataset"] == FORMULAS:
        plain = _formula
    else:
        plain = _line
    given = plain(text)
    found = any(plain(answer) in given for answer in example.right_answers)
    return Scored(given, float(found), "ok" if given else "unparsed")


def _line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    """Right answers by type, those of all kinds of recognition, and all: of 1,000 in the whole benchmark."""
    right = dict.fromkeys(TYPES, 0.0)
    for answer in answers:
        right[answer.example.facts["type"]] += answer.scored.score or 0.0
    recognised = sum(right[name] for name in RECOGNITION)
    return {**right, "Text Recognition": recognised, "Final Score": sum(right.values())}


OCRBENCH = Task(
    name="ocrbench",
    asks="what is written in a picture, or a question about it (OCRBench)",
    splits=ONE_SPLIT,
    styles={
        "plain": Style(contained, "contained", max_new_tokens=128, figures=figures),
        "openflamingo": Style(contained, "contained", max_new_tokens=64, figures=figures),
    },
    write=worded({"plain": Wording("{question}"), "openflamingo": WORDINGS["openflamingo"]}),
    load=load_by(_examples, "annotations"),
    files={
        "annotations": "OCRBench.json",
        "images": "the folder OCRBench_Images",
        "support": "questions of the same layout, for demonstrations",
    },
    optional=frozenset({"support"}),
    controls=CONTROLS,
    instruction="Read what is written in the image.",
)
