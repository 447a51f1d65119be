"""Scores and figures of tasks from files by hand, where they are more than a metric that is tested by itself."""

from __future__ import annotations

from typing import Any

import pytest

from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.mathvista import MathVistaQuestion
from flamingo_lite.evaluation.metrics.science_qa import ScienceQaPart
from flamingo_lite.evaluation.tasks import TASKS
from flamingo_lite.evaluation.tasks.karpathy import scored_together
from flamingo_lite.evaluation.tasks.short_answers import most_frequent
from flamingo_lite.evaluation.tasks.task import Answer, Style


def style(task: str, name: str | None = None) -> Style:
    return TASKS[task].styles[name or next(iter(TASKS[task].styles))]


def asked(answer: str, **more: Any) -> Example:
    return Example(more.pop("id", "1"), (), "", answer, **more)


def figures(task: str, answers: list[Answer]) -> dict[str, float | None]:
    found = style(task).figures
    assert found is not None
    return dict(found(answers))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("B:", "B"), ("B: 60", "B"), ("(B) 60", "B"), ("The answer is B.", "B"),
        ("Answer: (B)", "B"), ("x = 3, so the correct option is C", "C"), ("The answer is A. No, the answer is B", "B"),
        ("60", None), ("", None), ("because of that", None), ("BC is 4", None), ("Before all", None), ("b", None),
    ],
)  # fmt: skip
def test_mathverse_reads_the_letter(text: str, letter: str | None) -> None:
    found = style("mathverse").score(text, asked("B", facts={"question_type": "multi-choice"}))
    assert (found.extracted, found.score) == (letter, float(letter == "B"))
    assert found.status == ("unparsed" if letter is None else "ok")


@pytest.mark.parametrize(
    ("text", "score"),
    [("4", 1), (" 4.", 1), ("$4$", 1), ("2\\sqrt{3}", 0), ("x = 4", 0), ("", 0), ("4 cm", 0)],
)
def test_mathverse_compares_free_answers_word_for_word(text: str, score: int) -> None:
    found = style("mathverse").score(text, asked("4", facts={"question_type": "free-form"}))
    assert found.score == score and (found.status == "unparsed") == (not text)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("[2007, 2008]", 1),
        ('The answer is "[2007, 2008]".', 1),
        ("[2007]", 0),
        ("2007, 2008", 0),
        ("in [2007, 2008]", 0),
    ],
)
def test_mathvista_takes_a_list_that_stands_alone(text: str, score: int) -> None:
    question = MathVistaQuestion("free_form", "list")
    found = style("mathvista").score(text, asked("[2007, 2008]", facts={"question": question}))
    assert found.score == score


def test_popes_figures_are_over_what_its_parser_says() -> None:
    texts = [
        ("Yes, there is", "yes"),
        ("no", "yes"),
        ("No.", "no"),
        ("", "no"),
        ("yes", "no"),
        ("Yes", "yes"),
    ]
    answers = [
        Answer(asked(target), text, style("pope").score(text, asked(target))) for text, target in texts
    ]
    # Said: yes, no, no, yes by default, yes, yes.
    assert figures("pope", answers) == {
        "accuracy": 3 / 6, "precision": 2 / 4, "recall": 2 / 3, "f1": 2 * 2 / (4 + 3), "yes_ratio": 4 / 6,
    }  # fmt: skip


def test_ocrbench_counts_right_answers_by_type() -> None:
    kinds = [
        "Regular Text Recognition",
        "Regular Text Recognition",
        "Handwriting Recognition",
        "Doc-oriented VQA",
    ]
    answers = [
        Answer(asked("a", facts={"type": kind}), "", Scored("a", score, "ok"))
        for kind, score in zip(kinds, [1.0, 1.0, 0.0, 1.0], strict=True)
    ]
    found = figures("ocrbench", answers)
    assert (found["Regular Text Recognition"], found["Text Recognition"], found["Final Score"]) == (
        2.0,
        2.0,
        3.0,
    )


def test_hateful_memes_are_ranked_by_how_much_likelier_yes_is() -> None:
    likelihoods = [(-1.0, -2.0), (-3.0, -1.0), (-9.0, -9.5), (-2.0, -1.0)]
    answers = [
        Answer(asked(label), "", Scored(label, 1.0, "ok"), {"yes": yes, "no": no})
        for label, (yes, no) in zip(["yes", "no", "no", "yes"], likelihoods, strict=True)
    ]
    # Differences 1.0 and -1.0 for the hateful, -2.0 and 0.5 for the others: three of four pairs are in order.
    assert figures("hateful_memes", answers) == {"roc_auc": 0.75}


def test_science_qa_has_the_published_columns() -> None:
    parts = [
        ScienceQaPart("natural science", "grade2", True, False),
        ScienceQaPart("social science", "grade8", False, True),
    ]
    answers = [
        Answer(asked("A", facts={"part": part}), "A", Scored("A", score, "ok"))
        for part, score in zip(parts, [1.0, 0.0], strict=True)
    ]
    found = figures("science_qa", answers)
    assert (found["NAT"], found["SOC"], found["LAN"], found["TXT"], found["IMG"]) == (
        1.0,
        0.0,
        None,
        1.0,
        0.0,
    )
    assert (found["NO"], found["G1-6"], found["G7-12"], found["Avg"]) == (None, 1.0, 0.0, 0.5)


def test_a_caption_scores_the_same_however_many_seeds_ask_for_it() -> None:
    """The weights of n-grams count images, not prompts."""
    examples = [
        asked("x", id=str(i), references=(f"a {thing} on a beach", f"the {thing} at the sea"))
        for i, thing in enumerate(["dog", "cat", "red kite"])
    ]
    texts = ["a dog on a beach", "a cat", "an unknown kite in the air"]
    once = scored_together(texts, examples)
    assert scored_together(texts * 3, examples * 3) == once * 3
    assert once[0] > once[1] > 0 and scored_together([], []) == []


def test_vqa_shows_the_answer_that_most_gave_and_the_first_of_several() -> None:
    assert most_frequent(["b", "a", "a"]) == "a" and most_frequent(["b", "a"]) == "b"


@pytest.mark.parametrize(
    ("name", "text", "score"),
    [
        ("openflamingo", "dog Question: what", 1.0),
        ("openflamingo", "dog, or a cat", 1.0),
        ("openflamingo", "dog Short answer", 1.0),
        ("instruction", "dog, or a cat", 0.0),
    ],
)
def test_a_text_is_cut_where_openflamingo_cuts_it(name: str, text: str, score: float) -> None:
    chosen = style("vqav2", name)
    for stop in chosen.stop:
        text = text.partition(stop)[0]
    assert chosen.score(text, asked("dog", references=("dog",) * 10)).score == score
