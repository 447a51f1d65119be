"""MathVista: mathematics in pictures; asked in the published words, judged by its rules alone (Lu et al. 2024).

The leaderboard has a language model extract what the rules do not find. Such answers are wrong here and counted as
unparsed: a score is not the leaderboard's, and is to be reported with them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_lite.data.convert.values import list_of
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.mathvista import MathVistaQuestion, mathvista
from flamingo_lite.evaluation.tasks.files import (
    CONTROLS,
    ONE_SPLIT,
    Record,
    image_at,
    known_choice,
    load_by,
    records,
)
from flamingo_lite.evaluation.tasks.task import Answer, Segments, Style, Task, segments

Kind = tuple[str, int | None]
"""What an answer is: "multi_choice" or its type, and the places of a float."""

HINTS: Mapping[str, Mapping[Kind, str]] = {
    "query": {
        (
            "multi_choice",
            None,
        ): "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, "
        "D, at the end.",
        (
            "integer",
            None,
        ): "Hint: Please answer the question requiring an integer answer and provide the final value, "
        "e.g., 1, 2, 3, at the end.",
        (
            "float",
            1,
        ): "Hint: Please answer the question requiring a floating-point number with one decimal place and "
        "provide the final value, e.g., 1.2, 1.3, 1.4, at the end.",
        (
            "float",
            2,
        ): "Hint: Please answer the question requiring a floating-point number with two decimal places and "
        "provide the final value, e.g., 1.23, 1.34, 1.45, at the end.",
        (
            "list",
            None,
        ): "Hint: Please answer the question requiring a Python list as an answer and provide the final "
        "list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
    },
    "direct": {
        ("multi_choice", None): "Answer with the option's letter from the given choices directly.",
        ("integer", None): "Answer the question using a single integer number.",
        ("float", 1): "Answer the question using a single floating-point number with one decimal place.",
        ("float", 2): "Answer the question using a single floating-point number with two decimal places.",
        ("list", None): "Answer the question using a Python list.",
    },
}
"""`query`: the dataset's own words, before the question; `direct`: lmms-eval's format-prompt, behind it."""

REQUIRED: Mapping[str, Any] = {
    "question": str, "image": str, "choices": (list, type(None)), "answer": str, "question_type": str,
    "answer_type": str, "precision": (int, float, type(None)), "unit": (str, type(None)),
}  # fmt: skip


def _examples(path: str, images: str) -> list[Example]:
    return [_example(record, images) for record in records(path, REQUIRED, dict)]


def _example(record: Record, images: str) -> Example:
    problem = record.fields
    choices = list_of(str, problem["choices"] or [], f"{record.where}: choices")
    precision = None if problem["precision"] is None else int(problem["precision"])
    question = MathVistaQuestion(problem["question_type"], problem["answer_type"], choices, precision)
    known_choice(_kind(question), list(HINTS["query"]), f"{record.where}: what is to be answered")
    if not problem["answer"]:
        raise FlamingoError(f"{record.where}: has no answer; expected testmini, whose answers are published")
    facts = {"question": question, "unit": problem["unit"], "metadata": problem.get("metadata", {})}
    image = image_at(images, problem["image"], record.where)
    asked, answer = problem["question"], problem["answer"]
    return Example(str(record.key), (image,), asked, answer, choices=tuple(choices), facts=facts)


def _kind(question: MathVistaQuestion) -> Kind:
    if question.question_type == "multi_choice":
        return "multi_choice", None
    return question.answer_type, question.precision if question.answer_type == "float" else None


def write(example: Example, style: str, is_answered: bool) -> Segments:
    """A demonstration of a multiple choice answers with the letter, for which the hint asks."""
    hint = HINTS[style][_kind(example.facts["question"])]
    unit = f" (Unit: {example.facts['unit']})" if example.facts["unit"] else ""
    letters = [chr(ord("A") + i) for i in range(len(example.choices))]
    if style == "query":
        choices = [f"({letter}) {choice}" for letter, choice in zip(letters, example.choices, strict=True)]
        lines = [hint, f"Question: {example.question}{unit}", *(["Choices:"] if choices else []), *choices]
    else:
        choices = [f"{letter}. {choice}" for letter, choice in zip(letters, example.choices, strict=True)]
        lines = [f"{example.question}{unit}", *choices, hint]
    answer = example.answer
    if answer in example.choices:
        answer = letters[example.choices.index(answer)]
    return segments(example, "\n".join(lines), f"\n{answer}" if is_answered else None)


def said(text: str, example: Example) -> Scored:
    """By the rules; a text that is a list and nothing else is taken, which no rule does and a model that is asked for
    a list writes."""
    question: MathVistaQuestion = example.facts["question"]
    text = text.strip()
    if question.answer_type == "list" and text.startswith("[") and text.endswith("]"):
        text = f'The answer is "{text}".'
    return mathvista(text, example.answer, question)


def figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    """Accuracy by task and by skill, where the annotations have them."""
    groups: dict[str, list[float]] = {}
    for answer in answers:
        about = answer.example.facts["metadata"]
        names = [f"task: {about['task']}"] if "task" in about else []
        names += [f"skill: {skill}" for skill in about.get("skills", ())]
        for name in names:
            groups.setdefault(name, []).append(answer.scored.score or 0.0)
    return {name: sum(scores) / len(scores) for name, scores in sorted(groups.items())}


MATHVISTA = Task(
    name="mathvista",
    asks="a question of mathematics about a picture (MathVista)",
    splits=ONE_SPLIT,
    styles={name: Style(said, "accuracy", max_new_tokens=64, figures=figures) for name in HINTS},
    write=write,
    load=load_by(_examples, "annotations"),
    files={
        "annotations": "testmini.json or annot_testmini.json",
        "images": "the folder that holds images/",
        "support": "problems of the same layout, for demonstrations",
    },
    optional=frozenset({"support"}),
    controls=CONTROLS,
    instruction="Solve the problem and give the answer alone.",
)
