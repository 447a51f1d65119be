"""A teacher that settles ScienceQA: what it is shown, whose answer then stands, and how a small budget ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from file_tasks import make_files
from test_ensemble import outcome, sample

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.science_qa_judge import judge_science_qa
from flamingo_lite.evaluation.tasks import items_of
from flamingo_lite.evaluation.tasks.task import Items
from flamingo_lite.teacher import Asker, Message, Rule


@pytest.fixture
def items(tmp_path: Path) -> Items:
    return items_of("science_qa", {"science_qa": make_files("science_qa", tmp_path)})


def pair(items: Items, first: list[str], second: list[str]) -> list[list[dict[str, Any]]]:
    """Both models' samples of problem 5, whose choice 1 is right, and of problem 6, whose choice 0 is."""
    numbers = sorted(range(2), key=lambda i: items.query("test", i).id)
    return [
        [sample(i, raw, items.query("test", i).answer, model) for i, raw in zip(numbers, raws, strict=True)]
        for model, raws in (("ours", first), ("text", second))
    ]


def test_the_teacher_sees_the_question_and_both_answers_and_decides(items: Items) -> None:
    shown: list[Sequence[Message]] = []

    def decide(messages: Sequence[Message]) -> str:
        shown.append(messages)
        return "A box is heavy. The answer is B."

    ours, second = pair(items, ["A", "The answer is A."], ["The answer is B.", ""])
    decided = judge_science_qa(ours, second, items, Asker(Rule("judge", decide), concurrency=1))
    assert outcome(decided) == [("judge", "B", 1.0), ("judge", "B", 0.0)]
    assert [message.role for message in shown[0]] == ["system", "user"]
    assert shown[0][1].text == (
        "Question: Which is it, 5?\nContext: N/A\nOptions: (A) a ball (B) a box (C) a wall\n\n"
        "First answer: A\n\nSecond answer: The answer is B."
    )
    assert shown[1][1].text.endswith("First answer: The answer is A.\n\nSecond answer: (no answer)")


def test_where_they_agree_the_teacher_costs_nothing(items: Items) -> None:
    asker = Asker(Rule("judge", lambda messages: "The answer is A."))
    ours, second = pair(items, ["B", "A"], ["B", "B"])
    decided = judge_science_qa(ours, second, items, asker)
    assert outcome(decided) == [("both", "B", 1.0), ("judge", "A", 1.0)]
    assert asker.tally.answers == 1


def test_a_budget_that_ends_too_early_is_one_line(items: Items) -> None:
    asker = Asker(Rule("judge", lambda messages: "The answer is A."), budget=10)
    ours, second = pair(items, ["A", "A"], ["B", "B"])
    with pytest.raises(FlamingoError, match="budget ended after 0 of 2 questions"):
        judge_science_qa(ours, second, items, asker)
