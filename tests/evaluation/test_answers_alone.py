from __future__ import annotations

from collections.abc import Sequence

import pytest

from flamingo_lite.evaluation.answers_alone import GUESSES, Asked, answers_alone
from flamingo_lite.evaluation.demonstrations import Example


def example(answer: str, question: str = "what?", choices: tuple[str, ...] = ()) -> Example:
    return Example("", (), question, answer, choices=choices)


def exact(asked: Sequence[Asked], answers: Sequence[str | None]) -> list[float]:
    return [float(of.query.answer == given) for of, given in zip(asked, answers, strict=True)]


def asked(*queries: tuple[Example, str]) -> list[Asked]:
    """(query, its demonstrations' answers as letters)"""
    return [Asked(i, query, [example(a) for a in shown]) for i, (query, shown) in enumerate(queries)]


@pytest.mark.parametrize(
    ("prompts", "value", "name"),
    [
        ([(example("a"), "bbb"), (example("a"), "bcc"), (example("a"), "")], 1.0, "commonest target"),
        ([(example("a"), "abab a"), (example("b"), "babb"), (example("c"), "cca")], 1.0,
         "commonest answer of the demonstrations"),
        ([(example("a"), "bba"), (example("b"), "abaa"), (example("c"), "bbcb")], 1.0,
         "rarest answer of the demonstrations"),
        ([(example("a", choices=("a", "b", "c")), "bc"), (example("b", choices=("a", "b", "c")), "ac")], 1.0,
         "a choice that no demonstration shows"),
        ([(example("a"), "bbcaba"), (example("b"), "aacbab"), (example("b"), "aacab")], 1.0,
         "answer of the last demonstration"),
    ],
)  # fmt: skip
def test_each_leak_is_found_and_named(prompts: list[tuple[Example, str]], value: float, name: str) -> None:
    assert answers_alone(asked(*prompts), exact) == (value, name)


def test_questions_that_betray_their_answer_are_found() -> None:
    queries = [example(answer, f"is it {answer}?") for answer in "aabbcc"]
    found = answers_alone(asked(*((query, "abc") for query in queries)), exact)
    assert found == (1.0, "commonest target of the question")


def test_demonstrations_with_the_querys_question_are_found() -> None:
    prompts = [
        Asked(
            i,
            example(answer, f"{i}?"),
            [*(example(x, "other?") for x in "xxxy"), *[example(answer, f"{i}?")] * 2, example("x")],
        )
        for i, answer in enumerate("abcd")
    ]
    assert answers_alone(prompts, exact) == (1.0, "answer of demonstrations with the question")


def test_the_answer_to_a_question_in_nearly_the_same_words_is_found() -> None:
    prompts = [
        Asked(
            i,
            example(answer, f"what colour is the {i} ?"),
            [example(x, f"what shape is the {j} ?") for j, x in enumerate("xyxxyy")]
            + [example(answer, f"is colour what the {i} has"), example("x"), example("y")],
        )
        for i, answer in enumerate("abcd")
    ]
    found = answers_alone(prompts, exact)
    assert found is not None
    assert found[0] == 1.0


def test_a_querys_own_target_is_no_evidence_for_itself() -> None:
    found = answers_alone(asked(*((example(answer), "") for answer in "abcd")), exact)
    assert found is not None
    assert found[0] == 0.0


def test_a_target_is_known_once_however_many_seeds_ask_the_query() -> None:
    """The query that is asked three times would outvote the two others."""
    queries = [(0, "a"), (0, "a"), (0, "a"), (1, "b"), (2, "b")]
    found = answers_alone([Asked(i, example(answer), []) for i, answer in queries], exact)
    # Of the others, b for queries 0 (wrong); for 1 and 2 a and b are as common, and a comes first.
    assert found == (0.0, next(iter(GUESSES)))


def test_nothing_asked_has_no_value() -> None:
    assert answers_alone([], exact) is None
