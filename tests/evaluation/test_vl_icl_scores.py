"""VL-ICL's scores against the rules of its code, written out from their description, and its mended ones by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from file_tasks import make_files

from flamingo_lite.document import Text
from flamingo_lite.evaluation.grid import Setting, build_prompt
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.vl_icl import (
    vl_icl_match,
    vl_icl_number,
    vl_icl_signed,
    vl_icl_yes_no,
    vl_icl_yes_or_no,
)
from flamingo_lite.evaluation.tasks import items_of
from tests.parity.metric_references import ANSWERS


def their_cut(text: str) -> str:
    """Stripped; up to the first newline that is not at the start, otherwise up to the first such period."""
    text = text.strip()
    for end in "\n.":
        place = text.find(end)
        if place > 0:
            return text[:place]
    return text


def their_number(text: str) -> str:
    found = re.findall(r"\d+", their_cut(text))
    return found[0] if found else ""


RULES: dict[str, tuple[Callable[[str, str], Scored], Callable[[str, str], bool]]] = {
    "match": (vl_icl_match, lambda text, answer: their_cut(text).lower() == answer.lower()),
    "number": (vl_icl_number, lambda text, answer: their_number(text) == answer),
    "yes_no": (vl_icl_yes_no, lambda text, answer: ("yes" in their_cut(text).lower()) == (answer == "yes")),
}


@pytest.mark.parametrize("rule", RULES)
def test_official_scores_are_those_of_their_rules(rule: str) -> None:
    ours, theirs = RULES[rule]
    answers = ["yes", "no"] if rule == "yes_no" else ["3", "-3", "8", "14", "dog", "a dog", "5", "USA", "3-5"]
    assert len(ANSWERS) >= 50
    for text in [
        *ANSWERS,
        "8\nThe next",
        "8. Because",
        ".5 is it",
        "\n8",
        "it is 8",
        "Yes.",
        "no, yes",
        "8 - 5 = 3",
    ]:
        for answer in answers:
            assert ours(text, answer).score == float(theirs(text, answer)), (text, answer)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", "8"), (" 8", "8"), ("-4", "-4"), ("- 4", "-4"), ("\u22124", "-4"), ("\u20134", "-4"), ("-0", "0"),
        ("The answer is -4", "-4"), ("= -4", "-4"), ("2 - 6 = -4", "2"), ("6-2", "6"), ("(-4)", "-4"), ("x-4", "4"),
        ("-4\n3", "-4"), ("-4. Then 3", "-4"), ("four", None), ("", None), ("-", None), ("minus 4", "4"),
    ],
)  # fmt: skip
def test_a_sign_is_kept_by_hand(text: str, value: str | None) -> None:
    found = vl_icl_signed(text, value or "0")
    assert (found.extracted, found.status) == (value, "unparsed" if value is None else "ok")
    assert found.score == float(value is not None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", "yes"), ("No", "no"), ("Yes.", "yes"), ("yes, they match", "yes"), ("no\nyes", "no"), ("", None),
        ("eyes", None), ("know", None), ("yes or no", None), ("maybe", None), ("They do. Yes", None),
    ],
)  # fmt: skip
def test_yes_and_no_are_words_by_hand(text: str, said: str | None) -> None:
    for answer in ("yes", "no"):
        found = vl_icl_yes_or_no(text, answer)
        assert (found.extracted, found.score) == (said, float(said == answer))


def prompt(task: str, style: str, shots: int, root: Path, selector: str = "random") -> str:
    """Of the first query of the file."""
    files = {task: make_files(task, root)}
    items = items_of(task, files)
    number = next(i for i in range(items.count("test") or 0) if items.query("test", i).id == "query/0")
    setting = Setting(task, "test", style, "standard", shots, selector)
    document = build_prompt(setting, number, 0, files).document
    return "".join(
        s.text + ("<|endofchunk|>" if s.ends_chunk else "") if isinstance(s, Text) else "<image>"
        for s in document
    )


QUESTION = "What is the result of the following mathematical expression?"


@pytest.mark.parametrize("images", [1, 2])
def test_operator_demonstrations_have_the_result_under_the_querys_operator(
    tmp_path: Path, images: int
) -> None:
    """The query subtracts: of 3 and 5, 7 and 2, 4 and 4, 9 and 6."""
    task = "vl_icl_operator_induction" + ("_interleaved" if images == 2 else "")
    written = prompt(task, "official", 4, tmp_path)
    marks = "<image>" * images
    shown = re.findall(rf"{marks}{re.escape(QUESTION)}\nAnswer: (-?\d+)<\|endofchunk\|>", written)
    assert sorted(shown) == sorted(["-2", "5", "0", "3"])
    demonstrations = "".join(f"{marks}{QUESTION}\nAnswer: {answer}<|endofchunk|>" for answer in shown)
    assert written == f"\n{demonstrations}{marks}{QUESTION}\nAnswer:"


def test_open_names_are_shown_by_pairs_of_the_querys_class_and_one_other(tmp_path: Path) -> None:
    written = prompt("vl_icl_open_mi", "official_concise", 4, tmp_path, "balanced")
    names = re.findall(r"<image>This is a\nAnswer: (\w+)<\|endofchunk\|>", written)
    assert {frozenset(names[:2]), frozenset(names[2:])} == {frozenset(names)}
    assert "dax" in names and len(set(names)) == 2
    assert written.startswith("Answer the question with a single word or phase.\n<image>")
    assert written.endswith("<|endofchunk|><image>This is a\nAnswer:")


def test_matching_shows_two_images_and_both_answers_in_turn(tmp_path: Path) -> None:
    written = prompt("vl_icl_matching_mi", "official", 4, tmp_path, "balanced")
    answers = re.findall(r"<image><image>Do they match\?\nAnswer: (\w+)<\|endofchunk\|>", written)
    assert {frozenset(answers[:2]), frozenset(answers[2:])} == {frozenset({"yes", "no"})}


def test_a_description_opens_every_prompt_and_nothing_opens_it_with_an_empty_line(tmp_path: Path) -> None:
    detailed = prompt("vl_icl_textocr", "official_detailed", 1, tmp_path)
    assert detailed.startswith(
        "An image will be provided where a red box is drawn around the text of interest. "
    )
    assert "including letters, numbers, symbols.\n<image>What is the text?\nAnswer: " in detailed
    assert prompt("vl_icl_textocr", "official", 0, tmp_path) == "\n<image>What is the text?\nAnswer:"
