"""Two models together, by hand: whose answer stands for every pair of outcomes, and which pairs are refused."""

from __future__ import annotations

from typing import Any

import pytest

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.ensemble import cell, complement, judged
from flamingo_lite.evaluation.metrics import GenerationFailure, Scored
from flamingo_lite.evaluation.metrics.choices import science_qa


def sample(
    query: int, raw: str | None, target: str = "B", model: str = "ours", **more: Any
) -> dict[str, Any]:
    """As `samples.jsonl` has it: `raw` scored by ScienceQA's parser over three choices."""
    found = Scored(None, None, "failed") if raw is None else science_qa(raw, ord(target) - ord("A"), 3)
    return {
        "task": "science_qa", "split": "test", "query_id": query, "model": model, "target": target, "raw": raw,
        "extracted": found.extracted, "score": found.score, "status": found.status, **more,
    }  # fmt: skip


OURS = [sample(i, raw) for i, raw in enumerate(["B", "A", "B", "I think it is B", "A", "B"])]
SECOND = [
    sample(i, raw, model="text")
    for i, raw in enumerate(["B", "The answer is B.", "There is no picture.", None, None, "C"])
]


def outcome(samples: list[dict[str, Any]]) -> list[tuple[str, str | None, float | None]]:
    return [(s["decided_by"], s["extracted"], s["score"]) for s in samples]


def test_ours_steps_in_where_the_second_model_fails() -> None:
    assert outcome(complement(OURS, SECOND)) == [
        ("second", "B", 1.0),
        ("second", "B", 1.0),
        ("ours", "B", 1.0),
        ("ours", None, 0.0),
        ("ours", "A", 0.0),
        ("second", "C", 0.0),
    ]


def letter(text: str, judged_sample: Any) -> Scored:
    return science_qa(text, ord(judged_sample["target"]) - ord("A"), 3)


def test_a_judge_is_asked_only_where_the_two_differ_and_ours_stands_where_it_says_nothing() -> None:
    asked: list[int] = []
    says = {1: "The answer is B.", 2: "Both are wrong.", 3: "B", 4: GenerationFailure("timed out"), 5: "A"}

    def decide(pairs: Any) -> list[str | GenerationFailure]:
        assert {(ours["model"], second["model"]) for ours, second in pairs} == {("ours", "text")}
        asked.extend(ours["query_id"] for ours, _ in pairs)
        return [says[ours["query_id"]] for ours, _ in pairs]

    decided = judged(OURS, SECOND, decide, letter)
    assert asked == [1, 2, 3, 4, 5]
    assert outcome(decided) == [
        ("both", "B", 1.0),
        ("judge", "B", 1.0),
        ("ours", "B", 1.0),
        ("judge", "B", 1.0),
        ("ours", "A", 0.0),
        ("judge", "A", 0.0),
    ]
    said = [s.get("judge_raw") for s in decided]
    assert said == [None, "The answer is B.", "Both are wrong.", "B", None, "A"]
    assert {s["model"] for s in decided} == {"ours + text"}


def test_two_answers_that_cannot_be_read_do_not_agree() -> None:
    ours, second = [sample(0, "no idea")], [sample(0, "no idea", model="text")]
    assert outcome(judged(ours, second, lambda pairs: ["B"], letter)) == [("judge", "B", 1.0)]


def test_a_judge_is_not_asked_where_all_agree() -> None:
    def decide(pairs: Any) -> list[str]:
        raise AssertionError("asked")

    assert outcome(judged(OURS[:1], SECOND[:1], decide, letter)) == [("both", "B", 1.0)]


def test_a_judge_that_loses_a_question_is_refused() -> None:
    with pytest.raises(FlamingoError, match="the judge returned 0 verdicts on 5 questions"):
        judged(OURS, SECOND, lambda pairs: [], letter)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (SECOND[:-1], "1 questions have a sample of one model only, such as query 5 of science_qa, test"),
        (
            [*SECOND, SECOND[2]],
            "the second samples have query 2 of science_qa, test twice; expected one cell",
        ),
        (
            [*SECOND[:-1], sample(5, "C", target="C")],
            "the target 'B' in the first samples, 'C' in the second",
        ),
    ],
)
def test_samples_that_are_no_pairs_are_refused(second: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(FlamingoError, match=message):
        complement(OURS, second)


def test_a_cell_is_chosen_by_its_fields() -> None:
    samples = [sample(0, "B", shots=0), sample(0, "A", shots=4), sample(1, "B", shots=4)]
    assert cell(samples, shots=4) == samples[1:]
    with pytest.raises(FlamingoError, match="no sample has {'shots': 8}"):
        cell(samples, shots=8)
