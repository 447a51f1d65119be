"""ANLS, exact match, relaxed accuracy and ROC-AUC against lmms-eval's and scikit-learn's, and published examples."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from flamingo_lite.evaluation.metrics.numbers import extract_value, number_match, relaxed_accuracy
from flamingo_lite.evaluation.metrics.ranking import roc_auc
from flamingo_lite.evaluation.metrics.strings import anls, edit_distance, exact_match
from tests.parity.metric_references import ANSWERS, their_functions, their_module

TARGETS = [
    ["3"],
    ["yes", "Yes."],
    ["dog", "a dog", "the dog"],
    ["I'm sorry"],
    ["8/11", "B"],
    ["the answer is b", ""],
]
CASES = [(text, targets) for text in ANSWERS for targets in [*TARGETS, [text], [f"{text}x", text.upper()]]]


@cache
def lmms_metrics() -> Any:
    names = {"anls", "levenshtein_distance", "exact_match_hf_evaluate"}
    return their_functions("lmms_eval", "api/metrics.py", names, "import re, string\nimport numpy as np")


def test_anls_is_that_of_lmms_eval_to_the_last_digit() -> None:
    theirs = lmms_metrics().anls
    cases = CASES[::3]  # coprime to the eight sets of targets
    assert len(cases) >= 300
    different = [
        (text, targets)
        for text, targets in cases
        if anls(text, targets).score != theirs(references=targets, predictions=[text])["anls"]
    ]
    assert different == []


@settings(max_examples=100, deadline=None)
@given(st.text("abc ", max_size=9), st.text("abc ", max_size=9))
def test_the_edit_distance_is_that_of_lmms_eval(first: str, second: str) -> None:
    assert edit_distance(first, second) == lmms_metrics().levenshtein_distance(first, second)


@pytest.mark.parametrize(
    "text, targets, score",
    [
        # One slip in "coca cola" of nine letters; a wrong answer; half of the letters right, and fewer.
        ("coca cole", ["coca cola"], 1 - 1 / 9), ("pepsi", ["coca cola"], 0.0), ("ab", ["abcd"], 0.5),
        ("a", ["abcd"], 0.0), ("COCA  COLA", ["coca cola"], 1.0), ("coca", ["coca cola", "coka"], 0.75),
        ("", [""], 1.0), ("", ["a"], 0.0),
    ],
)  # fmt: skip
def test_anls_by_hand(text: str, targets: list[str], score: float) -> None:
    assert anls(text, targets).score == pytest.approx(score)


@pytest.mark.parametrize(
    "ignored", [{}, {"ignore_case": True}, {"ignore_punctuation": True, "ignore_numbers": True}]
)
def test_exact_match_ignores_what_hugging_face_ignores(ignored: dict[str, bool]) -> None:
    theirs = lmms_metrics().exact_match_hf_evaluate
    assert len(CASES) > 1000
    for text, targets in CASES:
        # numpy strings lose zeros at their end, and ours strips the space around both sides.
        stripped = [[text.strip()] * len(targets), [target.strip() for target in targets]]
        matches = [theirs([p], [r], **ignored)["exact_match"] for p, r in zip(*stripped, strict=True)]
        assert exact_match(text, targets, **ignored).score == max(matches), (text, targets)


def test_relaxed_accuracy_is_that_of_chartqa() -> None:
    theirs = their_module("lmms_eval", "tasks/chartqa/utils.py").relaxed_correctness
    numbers = [
        "3",
        "-3",
        "0",
        "0.03",
        "3%",
        "300%",
        "3.15",
        "2.85",
        "2.84",
        "1e3",
        "1000",
        "yes",
        "1,000",
        "nan",
        "inf",
    ]
    cases = [(text, target) for text in [*ANSWERS, *numbers] for target in [*numbers, text]]
    for text, target in cases:
        assert relaxed_accuracy(text, target).score == float(theirs(text, target)), (text, target)


NUMBERS = {
    "3": 3, " 3 ": 3, "-3": -3, "- 3": -3, "\u22123": -3, "\u2013 3": -3, "+3": 3, "3.": 3, "3.0": 3, "-0.5": -0.5,
    ".5": 0.5, "-.5": -0.5, "0": 0, "-0": 0, "007": 7, "1e3": 1000, "1.5e-2": 0.015, "2E\u22121": 0.2, "1,000": 1000,
    "-1,234.5": -1234.5, "1,234,567": 1234567, "$4.00": 4, "-$4": -4, "40%": 0.4, "5.5 %": 0.055, "-5%": -0.05,
    "\u0663": 3, "-\u0663\u0664": -34, "\uff11\uff12": 12, "\u096a.\u0968": 4.2, "3 ? 5 = 8": 8, "3 - 5 = -2": -2,
    "x = 1 = 2": 2, "2 + 2 =4.": 4, "It is 3 apples.": 3, "It is -3 degrees": -3, "There are 1,000 of them.": 1000,
    "about 2.5, I think": 2.5, "3 apples": 3, "8\n3 ? 5 = 9": 8, "\n\n7\n": 7, "Answer: 7": 7, "Answer:7": 7,
    "at 3:30": None, "the 7.": 7,
    "": None, " ": None, "\n": None, "-": None, "three": None, "3 or 4": None, "3-5": None, "1/2": None, "--3": None,
    "3 8": None, "1,,000": None, "12,34": None, "v1.2.3": None, "I cannot answer that.": None, "x3": None, "3x": None,
    "0x10": None, "nan": None, "inf": None, "\u00b2": None, "=": None, "3 =": None, "N/A": None, "1_000": None,
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_the_number_of_a_text_is_the_one_a_reader_takes(text: str) -> None:
    assert extract_value(text) == NUMBERS[text]


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e9, 1e9, allow_nan=False).map(lambda x: round(x, 3)))
def test_a_written_number_is_read_back(value: float) -> None:
    assert extract_value(f" {value!r}\nnext") == value
    assert extract_value(f"a ? b = {value!r}.") == value
    assert extract_value(f"{value:,}") == value


@pytest.mark.parametrize(
    "text, target, absolute, relative, score",
    [
        ("3", -3, 0, 0, 0), ("-3", -3, 0, 0, 1), ("-3", 3, 0, 0.05, 0), ("3.14", 3.14159, 0.01, 0, 1),
        ("3.1", 3.14159, 0.01, 0, 0), ("105", 100, 0, 0.05, 1), ("105.1", 100, 0, 0.05, 0), ("-95", -100, 0, 0.05, 1),
        ("0.30000000000000004", 0.3, 0, 0, 1), ("0", 0, 0, 0.05, 1), ("0.01", 0, 0, 0.05, 0), ("0.01", 0, 0.02, 0, 1),
    ],
)  # fmt: skip
def test_a_number_matches_within_its_tolerance_and_with_its_sign(
    text: str, target: float, absolute: float, relative: float, score: float
) -> None:
    assert number_match(text, target, absolute, relative).score == score


def test_a_text_without_a_number_is_wrong_and_unparsed() -> None:
    found = number_match("I cannot answer that.", 3)
    assert (found.score, found.status) == (0.0, "unparsed")


def test_roc_auc_is_that_of_scikit_learn() -> None:
    generator = random.Random(0)
    for case in range(60):
        size = generator.randrange(2, 40)
        labels = [0, 1, *(generator.randrange(2) for _ in range(size - 2))]
        # Few distinct scores make many ties; a constant is chance.
        scores = [
            generator.choice([0.0, 0.5, -1e9, 1e-9, generator.random()]) if case else 0.5 for _ in labels
        ]
        assert roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_roc_auc_by_counting_pairs() -> None:
    assert roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert roc_auc([1, 1], [0.1, 0.2]) is None
    assert roc_auc([], []) is None


@pytest.mark.parametrize("scores, message", [([0.1], "1 scores for 2 labels"), ([np.nan, 1.0], "not finite")])
def test_roc_auc_refuses_what_cannot_be_ranked(scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        roc_auc([0, 1], scores)
