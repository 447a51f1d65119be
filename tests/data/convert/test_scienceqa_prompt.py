"""ScienceQA's prompts, written out by hand from the published forms, with what their code does to odd texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite.data.convert.scienceqa_prompt import (
    ANSWERED,
    ASKED,
    FORMS,
    ScienceQaProblem,
    science_qa_example,
    science_qa_question,
)
from flamingo_lite.errors import FlamingoError

PROBLEM = ScienceQaProblem(
    "Which is heavier?", ["a ball", "a box"], 1, "Look.", "Mass is\nmatter.", "The box has more."
)
ASKED_BY_HAND = {
    "CQM": "Context: Look.\nQuestion: Which is heavier?\nOptions: (A) a ball (B) a box\nAnswer:",
    "QCM": "Question: Which is heavier?\nContext: Look.\nOptions: (A) a ball (B) a box\nAnswer:",
    "QCML": "Question: Which is heavier?\nContext: Look.\nOptions: (A) a ball (B) a box\n"
    "BECAUSE: Mass is\\nmatter.\nAnswer:",
    "QCME": "Question: Which is heavier?\nContext: Look.\nOptions: (A) a ball (B) a box\n"
    "BECAUSE: The box has more.\nAnswer:",
    "QCMLE": "Question: Which is heavier?\nContext: Look.\nOptions: (A) a ball (B) a box\n"
    "BECAUSE: Mass is\\nmatter. The box has more.\nAnswer:",
    "QCLM": "Question: Which is heavier?\nContext: Look.\nBECAUSE: Mass is\\nmatter.\n"
    "Options: (A) a ball (B) a box\nAnswer:",
    "QCEM": "Question: Which is heavier?\nContext: Look.\nBECAUSE: The box has more.\n"
    "Options: (A) a ball (B) a box\nAnswer:",
    "QCLEM": "Question: Which is heavier?\nContext: Look.\nBECAUSE: Mass is\\nmatter. The box has more.\n"
    "Options: (A) a ball (B) a box\nAnswer:",
}
ANSWERED_BY_HAND = {
    "A": " The answer is B.",
    "AL": " The answer is B. BECAUSE: The box has more.",
    "AE": " The answer is B. BECAUSE: Mass is\\nmatter.",
    "ALE": " The answer is B. BECAUSE: Mass is\\nmatter. The box has more.",
    "AEL": " The answer is B. BECAUSE: The box has more. Mass is\\nmatter.",
    "LA": " Mass is\\nmatter. The answer is B.",
    "EA": " The box has more. The answer is B.",
    "LEA": " Mass is\\nmatter. The box has more. The answer is B.",
    "ELA": " The box has more. Mass is\\nmatter. The answer is B.",
}


def test_every_order_has_been_written_by_hand() -> None:
    assert (ASKED_BY_HAND.keys(), ANSWERED_BY_HAND.keys()) == (ASKED.keys(), ANSWERED.keys())


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_written_as_published(form: str) -> None:
    asked, answered = form.split("-")
    assert science_qa_question(PROBLEM, form) == ASKED_BY_HAND[asked]
    assert science_qa_example(PROBLEM, form) == (ASKED_BY_HAND[asked], ANSWERED_BY_HAND[answered])


@pytest.mark.parametrize(
    ("hint", "caption", "context"),
    [
        ("", "", "N/A"),
        ("", "a ball", "a ball"),
        (" Look. ", "", "Look."),
        ("Look.", "a ball", "Look. a ball"),
    ],
)
def test_the_context_is_hint_and_caption(hint: str, caption: str, context: str) -> None:
    problem = ScienceQaProblem("Which?", ["x", "y"], 0, hint, caption=caption)
    assert (
        science_qa_question(problem) == f"Question: Which?\nContext: {context}\nOptions: (A) x (B) y\nAnswer:"
    )


def test_without_a_reason_the_word_that_announces_it_goes_in_the_question_too() -> None:
    """Their code drops every "BECAUSE:" of a demonstration that would end in one, and none of a question."""
    problem = ScienceQaProblem("Which?", ["x", "y"], 0, lecture="Long ago.")
    question = "Question: Which?\nContext: N/A\nOptions: (A) x (B) y\n"
    assert science_qa_question(problem, "QCML-AL") == f"{question}BECAUSE: Long ago.\nAnswer:"
    assert science_qa_example(problem, "QCML-AL") == (
        f"{question} Long ago.\nAnswer:",
        " The answer is A.",
    )


def test_two_blanks_become_one_everywhere() -> None:
    problem = ScienceQaProblem("Which  one?", ["a  b", "c"], 0, solution=" Since  then.")
    asked, answered = science_qa_example(problem, "QCM-EA")
    assert asked == "Question: Which one?\nContext: N/A\nOptions: (A) a b (B) c\nAnswer:"
    assert answered == " Since then. The answer is A."


def test_an_unknown_form_names_the_nearest() -> None:
    with pytest.raises(FlamingoError, match="did you mean 'QCM-LEA'?"):
        science_qa_question(PROBLEM, "QCM-LEAD")


def test_a_conversion_writes_the_form_that_is_asked_for(tmp_path: Path) -> None:
    problem = json.loads((FIXTURES / "scienceqa" / "problems.json").read_bytes())["2"]
    converted = convert(tmp_path, "scienceqa", FIXTURES / "scienceqa", "form=CQM-LEA").documents[1]
    assert converted[0].text.startswith("Context: N/A\nQuestion: Which word rhymes")
    reasons = f" {problem['lecture']} {problem['solution']}"
    assert converted[1].text == f"{reasons} The answer is B.".replace("  ", " ")


def test_a_conversion_refuses_an_unknown_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refused(capsys, tmp_path, "scienceqa", FIXTURES / "scienceqa", "form=QCM-LEAD")
    assert "did you mean 'QCM-LEA'?" in shown
