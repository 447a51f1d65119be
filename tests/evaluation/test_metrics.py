from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.evaluation.metrics import (
    GenerationFailure,
    Scored,
    Tally,
    copy_rate,
    extract_after_equals,
    extract_number,
    judge,
    majority_baseline,
    score,
    tally,
)
from flamingo_lite.evaluation.metrics.numbers import relaxed_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 8", "8"), ("8", "8"), (" -3", "-3"), (" - 3", "-3"), (" \u22123", "-3"), ("+4", "4"), ("08", "8"),
        ("-0", "0"), ("81.", "81"), (" 8\n3 ? 5 = 8", "8"), ("\n 8", "8"),
        ("", None), ("  ", None), ("eight", None), ("8 apples", None), ("1.5", None), ("3 8", None),
        ("--3", None), ("3 ? 5 = 8", None), ("\u0663", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_a_direct_answer_is_the_number_that_the_text_is(text: str, expected: str | None) -> None:
    assert extract_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 3 ? 5 = 8", "8"), ("3 ? 5 = -2", "-2"), ("3 ? 5 = 1 = 8", "8"), ("= 8", "8"),
        (" 3 ? 5 = 8\n1 ? 1 = 2", "8"), ("8", None), ("3 ? 5 =", None), ("", None), ("3 ? 5 = x", None),
    ],
)  # fmt: skip
def test_a_spelled_answer_follows_the_last_equals_sign(text: str, expected: str | None) -> None:
    assert extract_after_equals(text) == expected


@given(st.integers(-9, 81))
def test_every_answer_of_the_task_is_found_in_both_styles(answer: int) -> None:
    assert extract_number(f" {answer}") == str(answer)
    assert extract_after_equals(f" 3 ? 5 = {answer}") == str(answer)


@settings(max_examples=60)
@given(st.text())
def test_no_text_breaks_the_extraction(text: str) -> None:
    for extract in (extract_number, extract_after_equals):
        found = extract(text)
        assert found is None or found == str(int(found))


def test_a_sign_decides() -> None:
    assert score(" 3", "-3", extract_number) == Scored("3", 0.0, "ok")
    assert score(" -3", "-3", extract_number) == Scored("-3", 1.0, "ok")


def test_an_empty_text_is_wrong_but_a_failure_has_no_score() -> None:
    assert score("", "3", extract_number) == Scored(None, 0.0, "unparsed")
    assert score(GenerationFailure("timed out"), "3", extract_number) == Scored(None, None, "failed")


def test_copying_is_counted_among_wrong_answers_alone() -> None:
    answers = [("4", "4", ["4"]), ("5", "4", ["5", "6"]), ("7", "4", ["5"]), (None, "4", ["5"])]
    assert copy_rate(answers) == 0.5
    assert copy_rate([("4", "4", ["4"])]) is None


def test_the_majority_baseline_gives_the_commonest_target() -> None:
    assert majority_baseline(["1", "2", "2", "3"]) == 0.5
    assert majority_baseline([]) is None


def test_any_metric_leaves_a_failed_generation_without_a_score() -> None:
    assert judge("5%", lambda text: relaxed_accuracy(text, "0.05")).score == 1.0
    assert judge(GenerationFailure("down"), lambda text: relaxed_accuracy(text, "0.05")).status == "failed"


def test_failures_and_unreadable_answers_are_counted_apart() -> None:
    answers = [Scored("3", 1.0, "ok"), Scored(None, 0.0, "unparsed"), Scored(None, None, "failed")]
    assert tally(answers) == Tally(value=0.5, n=2, n_failed=1, n_unparsed=1)
    assert tally([]) == Tally(value=None, n=0, n_failed=0, n_unparsed=0)
