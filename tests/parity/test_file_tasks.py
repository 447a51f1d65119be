"""Prompts and scores of tasks from files against lmms-eval's code."""

from __future__ import annotations

from typing import Any

import pytest

from flamingo_lite.document import Text
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics.mathvista import MathVistaQuestion
from flamingo_lite.evaluation.tasks import TASKS
from tests.parity.metric_references import ANSWERS, their_functions

QUESTIONS = [
    ("multi_choice", "text", None, ["97", "102", "107"]),
    ("free_form", "integer", None, []),
    ("free_form", "float", 1, []),
    ("free_form", "float", 2, []),
    ("free_form", "list", None, []),
]


@pytest.mark.parametrize("unit", [None, "cm"])
@pytest.mark.parametrize(("question_type", "answer_type", "precision", "choices"), QUESTIONS)
def test_mathvista_is_asked_directly_as_lmms_eval_asks_it(
    unit: str | None, question_type: str, answer_type: str, precision: int | None, choices: list[str]
) -> None:
    theirs = their_functions(
        "lmms_eval", "tasks/mathvista/mathvista_evals.py", {"create_one_query"}, "shot_examples = []"
    ).create_one_query
    problem: dict[str, Any] = {
        "question": "How long is it?", "unit": unit, "choices": choices, "caption": "", "ocr": "",
        "precision": precision, "question_type": question_type, "answer_type": answer_type,
    }  # fmt: skip
    question = MathVistaQuestion(question_type, answer_type, choices, precision)
    facts = {"question": question, "unit": unit, "metadata": {}}
    example = Example("1", (), "How long is it?", "107", choices=tuple(choices), facts=facts)
    (asked,) = TASKS["mathvista"].write(example, "direct", False)
    assert isinstance(asked, Text)
    assert asked.text == theirs(None, problem, "format-prompt")
    # The dataset's own words are the same elements with the hint first.
    (published,) = TASKS["mathvista"].write(example, "query", False)
    assert isinstance(published, Text)
    lines = theirs(None, problem, "step-by-step").split("\n")
    assert published.text == "\n".join([lines[-1], *lines[:-1]])


@pytest.mark.parametrize("dataset", ["IIIT5K", "HME100k"])
@pytest.mark.parametrize("answers", [["CENTRE"], ["x ^ { 2 }", "x^2"], ["dog"], ["3", "three"], ["U.S.A."]])
def test_ocrbench_scores_as_lmms_eval_does(dataset: str, answers: list[str]) -> None:
    names = {"ocrbench_process_results", "_fold_fullwidth_ascii"}
    theirs = their_functions("lmms_eval", "tasks/ocrbench/utils.py", names).ocrbench_process_results
    example = Example("1", (), "", answers[0], tuple(answers), facts={"dataset": dataset})
    texts = [*ANSWERS, "the CENTRE of it", "centre", "x^{2}", "x ^ { 2 } + 1", "X^2", "a\ndog", "u.s.a."]
    for text in texts:
        # Their code also folds wide digits, which OCRBench's own does not.
        if not text.isascii():
            continue
        document = {"answer": answers, "dataset": dataset, "question_type": "x"}
        wanted = theirs(document, [text])["ocrbench_accuracy"]["score"]
        assert TASKS["ocrbench"].styles["plain"].score(text, example).score == wanted, text


@pytest.mark.parametrize(
    ("task", "name", "after"),
    [
        ("textvqa", "textvqa", "\nAnswer the question using a single word or phrase."),
        ("vizwiz", "vizwiz_vqa", "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
         "\nAnswer the question using a single word or phrase."),
        ("gqa", "gqa", "\nAnswer the question using a single word or phrase."),
        ("pope", "pope", "\nAnswer the question using a single word or phrase."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("question", ["what does the USA sign say?", "Is it red?", "who"])
def test_short_answers_are_asked_for_as_lmms_eval_does(
    task: str, name: str, after: str, question: str
) -> None:
    function = f"{name}_doc_to_text"
    theirs = getattr(their_functions("lmms_eval", f"tasks/{name}/utils.py", {function}), function)
    (asked,) = TASKS[task].write(Example("1", (), question, "x"), "instruction", False)
    assert isinstance(asked, Text)
    assert asked.text == theirs({"question": question}, {"pre_prompt": "", "post_prompt": after})
