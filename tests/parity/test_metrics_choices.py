"""MathVista and ScienceQA against lmms-eval's and LLaVA's rules, POPE against its own script's rules, by hand too."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from flamingo_lite.evaluation.metrics.choices import science_qa
from flamingo_lite.evaluation.metrics.mathvista import (
    MathVistaQuestion,
    mathvista,
    mathvista_extract,
    mathvista_normalise,
)
from flamingo_lite.evaluation.metrics.yes_no import PopeFigures, pope, pope_figures
from tests.parity.metric_references import ANSWERS, their_functions, their_module

QUESTIONS = [
    MathVistaQuestion("multi_choice", "text", ["3/11", "8/11", "6/11", "3/5"]),
    MathVistaQuestion("multi_choice", "text", ["Yes", "No"]),
    MathVistaQuestion("multi_choice", "integer", ["3", "-3", "30"]),
    MathVistaQuestion("free_form", "integer"),
    MathVistaQuestion("free_form", "float", precision=1),
    MathVistaQuestion("free_form", "float", precision=2),
    MathVistaQuestion("free_form", "list"),
]


@pytest.fixture(scope="module")
def their_mathvista() -> Any:
    names = {"extract_answer", "normalize_extracted_answer", "get_most_similar", "safe_equal"}
    module = their_functions("lmms_eval", "tasks/mathvista/mathvista_evals.py", names, "import re")
    metrics = their_functions("lmms_eval", "api/metrics.py", {"levenshtein_distance"})

    class Log:
        def info(self, message: str) -> None: ...
        def error(self, message: str) -> None: ...

    class Evaluator:
        """Their methods on a class whose language model is not there, as under their `quick_extract`."""

        def create_test_prompt(self, *given: Any) -> str:
            return ""

        def get_chat_response(self, *given: Any, **named: Any) -> str:
            return ""

    module.eval_logger, module.distance, module.DEMO_PROMPT = Log(), metrics.levenshtein_distance, ""
    for name in names:
        setattr(Evaluator, name, getattr(module, name))
    return Evaluator()


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_mathvista_extracts_what_the_published_rules_extract(
    question: MathVistaQuestion, their_mathvista: Any
) -> None:
    problem = {
        "question_type": question.question_type, "answer_type": question.answer_type, "query": "",
        "choices": question.choices,
    }  # fmt: skip
    for response in [*ANSWERS, *question.choices]:
        wanted = their_mathvista.extract_answer(response, problem, quick_extract=True)
        assert (mathvista_extract(response, question) or "") == wanted, response


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_mathvista_normalises_as_published(question: MathVistaQuestion, their_mathvista: Any) -> None:
    for extraction in [*ANSWERS, *question.choices]:
        wanted = their_mathvista.normalize_extracted_answer(
            extraction, question.choices, question.question_type, question.answer_type, question.precision
        )
        assert mathvista_normalise(extraction, question) == wanted, extraction


@pytest.mark.parametrize(
    "response, question, extracted",
    [
        ("8/11", 0, "8/11"), ("B", 0, "8/11"), ("b", 0, "8/11"), ("(B)", 0, "8/11"), ("(b) 8/11", 0, "8/11"),
        ("B. 8/11", 0, "8/11"), ("B)", 0, "8/11"), ('The answer is "B".', 0, "8/11"), ('The answer is "8/12".', 0, "8/11"),
        ("E", 0, None), ("(E) none", 0, None), ("Blue", 0, None), ("", 0, None), ("I cannot answer that.", 0, None),
        ("No", 1, "No"), ("14", 3, "14"), ("-14", 3, "-14"), ("14.0", 3, None), ('The answer is "14.9".', 3, "14"),
        ("fourteen", 3, None), ("\u0661\u0664", 3, "14"), ("0.25", 4, "0.2"), ("0.26", 4, "0.3"), ("3", 5, "3.0"),
        ("1e-3", 5, "0.0"), ("0.6, which means", 4, None), ("[2007, 2008]", 6, None),
        ('The answer is "[2007, 2008]".', 6, "[2007, 2008]"),
    ],
)  # fmt: skip
def test_mathvista_by_hand(response: str, question: int, extracted: str | None) -> None:
    found = mathvista(response, "8/11", QUESTIONS[question])
    assert found.extracted == extracted
    assert found.status == ("unparsed" if extracted is None else "ok")
    assert found.score == float(extracted == "8/11")


def llava_science_qa(text: str, choices: int) -> str:
    """The rules of LLaVA's script, from their description: a letter of A to E, or FAILED, or out of range."""
    options = ["A", "B", "C", "D", "E"]
    if text in options:
        answer = text
    elif len(text) >= 3 and text[0] in options and text[1:3] == ". ":
        answer = text[0]
    else:
        stated = re.compile(r"The answer is ([A-Z]).").findall(text)
        answer = stated[0] if len(stated) == 1 else "FAILED"
    return answer if answer in options[:choices] else "-1"


@pytest.mark.parametrize("choices", [2, 3, 5])
def test_science_qa_scores_as_llava_does(choices: int) -> None:
    assert len(ANSWERS) >= 50
    for text in ANSWERS:
        for target in range(choices):
            wanted = float(llava_science_qa(text.strip(), choices) == chr(ord("A") + target))
            assert science_qa(text, target, choices).score == wanted, text


@pytest.mark.parametrize("choices", [2, 3, 5])
def test_science_qa_scores_as_lmms_eval_does(choices: int) -> None:
    theirs = their_module("lmms_eval", "tasks/scienceqa/utils.py").sqa_process_results
    for text in ANSWERS:
        for target in range(choices):
            wanted = theirs({"choices": ["x"] * choices, "answer": target}, [text])["exact_match"]
            assert science_qa(text, target, choices, "lmms").score == wanted, text


def test_a_letter_that_no_choice_has_is_wrong_and_a_text_without_one_is_unparsed() -> None:
    assert (science_qa("E", 0, 2).score, science_qa("E", 0, 2).status) == (0.0, "ok")
    assert science_qa("I cannot answer that.", 0, 2).status == "unparsed"
    assert science_qa("The answer is B", 1, 2).status == "unparsed"


def pope_script(text: str) -> str:
    """The rules of POPE's evaluate.py, from their description."""
    sentence = text.split(".")[0] if "." in text else text
    words = sentence.replace(",", "").split(" ")
    return "no" if "No" in words or "not" in words or "no" in words else "yes"


def test_pope_reads_answers_as_its_script_does() -> None:
    for text in ANSWERS:
        assert pope(text, "yes").extracted == pope_script(text), text
        assert pope(text, "no").score == float(pope_script(text) == "no"), text


@pytest.mark.parametrize(
    "text, extracted, status",
    [
        ("Yes", "yes", "ok"), ("yes, there is", "yes", "ok"), ("No, there is not.", "no", "ok"), ("no", "no", "ok"),
        ("There is not a dog", "no", "ok"), ("", "yes", "unparsed"), ("NO", "yes", "unparsed"),
        ("I cannot tell", "yes", "unparsed"), ("A dog. No cat.", "yes", "unparsed"), ("Yes\nNo", "yes", "unparsed"),
    ],
)  # fmt: skip
def test_pope_by_hand(text: str, extracted: str, status: str) -> None:
    assert (pope(text, "yes").extracted, pope(text, "yes").status) == (extracted, status)


def test_popes_five_figures_are_those_of_scikit_learn() -> None:
    for shift in range(0, 60, 6):
        pairs = [
            (pope_script(text), "yes" if (i * 7 + shift) % 60 < shift else "no")
            for i, text in enumerate(ANSWERS)
        ]
        said, wanted = ([int(pair[side] == "yes") for pair in pairs] for side in (0, 1))
        found = pope_figures(pairs)
        assert found.accuracy == accuracy_score(wanted, said)
        assert found.precision == precision_score(wanted, said)
        assert found.recall == (recall_score(wanted, said) if any(wanted) else None)
        assert found.f1 == pytest.approx(f1_score(wanted, said), abs=1e-15)
        assert found.yes_ratio == Counter(said)[1] / len(said)


def test_popes_figures_by_hand() -> None:
    """Three hits, one false alarm, two misses, four right rejections."""
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 4
    assert pope_figures(pairs) == PopeFigures(0.7, 0.75, 0.6, 2 * 3 / 9, 0.4)


def test_popes_figures_without_a_yes_or_without_answers_are_unknown() -> None:
    assert pope_figures([("no", "yes")]) == PopeFigures(0.0, None, 0.0, 0.0, 0.0)
    assert pope_figures([]) == PopeFigures(None, None, None, None, None)
