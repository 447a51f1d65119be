"""ScienceQA's prompts: question, context and options in one order, then answer, lecture and explanation in another.

Lu et al. 2022; equal to `create_one_example` of the authors' repository, whose names "QCM-ALE" say the two orders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flamingo_lite.names import check_choice

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class ScienceQaProblem:
    """What a prompt may say of a problem. `answer` counts the choices from 0."""

    question: str
    choices: Sequence[str]
    answer: int
    hint: str = ""
    lecture: str = ""
    solution: str = ""
    caption: str = ""


QUESTION, CONTEXT = "Question: {question}\n", "Context: {context}\n"
OPTIONS, BECAUSE = "Options: {options}\n", "BECAUSE: {because}\n"

ASKED: Mapping[str, str] = {
    "CQM": CONTEXT + QUESTION + OPTIONS,
    "QCM": QUESTION + CONTEXT + OPTIONS,
    **{f"QCM{why}": QUESTION + CONTEXT + OPTIONS + BECAUSE for why in ("L", "E", "LE")},
    **{f"QC{why}M": QUESTION + CONTEXT + BECAUSE + OPTIONS for why in ("L", "E", "LE")},
}
"""The questions by their orders: C context, Q question, M choices; L and E are lecture and explanation, given away."""

ANSWERED: Mapping[str, str] = {
    "A": " The answer is {answer}.",
    # Their code has these two the other way round from their names; results are compared under its names.
    "AL": " The answer is {answer}. BECAUSE: {solution}",
    "AE": " The answer is {answer}. BECAUSE: {lecture}",
    "ALE": " The answer is {answer}. BECAUSE: {lecture} {solution}",
    "AEL": " The answer is {answer}. BECAUSE: {solution} {lecture}",
    "LA": " {lecture} The answer is {answer}.",
    "EA": " {solution} The answer is {answer}.",
    "LEA": " {lecture} {solution} The answer is {answer}.",
    "ELA": " {solution} {lecture} The answer is {answer}.",
}
"""The answers by their orders: A answer, L lecture, E explanation."""

FORMS = tuple(f"{asked}-{answered}" for asked in ASKED for answered in ANSWERED)


def science_qa_question(problem: ScienceQaProblem, form: str = "QCM-A") -> str:
    """What is asked of a model, up to "Answer:". Errors: `FlamingoError` for a form that is not among `FORMS`."""
    return _squeezed(_asked(problem, form))


def science_qa_example(problem: ScienceQaProblem, form: str = "QCM-A") -> tuple[str, str]:
    """What a demonstration asks, and what it answers with the blank before it. Errors: as `science_qa_question`."""
    said = {**_said(problem), "answer": LETTERS[problem.answer]}
    asked = _asked(problem, form)
    whole = _squeezed(asked + ANSWERED[form.partition("-")[2]].format_map(said))
    asked = _squeezed(asked)
    if whole.endswith("BECAUSE:"):
        # Nothing was said for a reason, and every such word goes, that of the question too.
        asked, whole = (text.replace("BECAUSE:", "").strip() for text in (asked, whole))
    return asked, whole.removeprefix(asked)


def _asked(problem: ScienceQaProblem, form: str) -> str:
    check_choice("form of ScienceQA", form, FORMS)
    said = _said(problem)
    order = form.partition("-")[0]
    because = {"L": said["lecture"], "E": said["solution"], "LE": f"{said['lecture']} {said['solution']}"}
    why = order.removeprefix("QC").replace("M", "")
    return ASKED[order].format_map({**said, "because": because.get(why, "")}) + "Answer:"


def _said(problem: ScienceQaProblem) -> dict[str, str]:
    # As in their prompts: a line break within a lecture would end a completion.
    lecture, solution = (text.replace("\n", "\\n") for text in (problem.lecture, problem.solution))
    return {
        "question": problem.question,
        "context": " ".join((problem.hint, problem.caption)).strip() or "N/A",
        "options": shown_options(problem.choices),
        "lecture": lecture,
        "solution": solution,
    }


def shown_options(choices: Sequence[str]) -> str:
    """(A) ball (B) box"""
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _squeezed(text: str) -> str:
    return text.replace("  ", " ").strip()
