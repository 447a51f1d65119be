"""ScienceQA's table by hand."""

from __future__ import annotations

import random

import pytest

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.metrics.science_qa import PARTS, ScienceQaPart, science_qa_figures


def part(subject: str, grade: int, text: bool, image: bool) -> ScienceQaPart:
    return ScienceQaPart(f"{subject} science", f"grade{grade}", text, image)


def test_the_table_by_hand() -> None:
    answers = [
        (part("natural", 1, True, True), 1.0),
        (part("natural", 6, True, False), 0.0),
        (part("natural", 7, False, True), 1.0),
        (part("social", 12, False, True), 0.0),
        (part("social", 2, False, False), 1.0),
        (part("language", 9, False, False), 0.0),
        (part("language", 3, True, False), 1.0),
        (part("language", 3, False, False), 1.0),
    ]
    assert science_qa_figures(answers) == {
        "NAT": 2 / 3, "SOC": 1 / 2, "LAN": 2 / 3, "TXT": 2 / 3, "IMG": 2 / 3, "NO": 2 / 3,
        "G1-6": 4 / 5, "G7-12": 1 / 3, "Avg": 5 / 8,
    }  # fmt: skip


def test_the_columns_are_in_the_order_of_the_published_table() -> None:
    assert list(PARTS) == ["NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg"]


def test_a_column_without_questions_is_unknown_and_not_zero() -> None:
    figures = science_qa_figures([(part("natural", 1, True, False), 1.0)])
    assert figures["NAT"] == figures["TXT"] == figures["G1-6"] == figures["Avg"] == 1.0
    assert {figures[name] for name in ("SOC", "LAN", "IMG", "NO", "G7-12")} == {None}


def test_the_columns_of_each_kind_hold_every_question_once() -> None:
    draw = random.Random(0)
    for _ in range(200):
        found = part(
            draw.choice(["natural", "social", "language"]), draw.randint(1, 12),
            draw.random() < 0.5, draw.random() < 0.5,
        )  # fmt: skip
        belongs = {name: holds(found) for name, holds in PARTS.items()}
        assert belongs["NAT"] + belongs["SOC"] + belongs["LAN"] == 1
        assert belongs["G1-6"] + belongs["G7-12"] == 1
        assert belongs["NO"] == (not belongs["TXT"] and not belongs["IMG"])


def test_an_unknown_grade_is_refused() -> None:
    with pytest.raises(FlamingoError, match="grade 'grade13'; expected grade1 to grade12"):
        part("natural", 13, True, True)
