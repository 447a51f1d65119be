"""Ranked candidates that rounding could turn: how close a choice was, and that it is made again alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from flamingo_lite.document import Document, Text
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.ranking import Likelihood, Ranked, choose

TWO = [Text("a"), Text("b")]


def ranked(ranking: str, *found: Likelihood, without: Sequence[Likelihood] | None = None) -> Ranked:
    chosen = choose(ranking, TWO, found, without)
    assert not isinstance(chosen, GenerationFailure)
    return chosen


@pytest.mark.parametrize(
    ("ranking", "without", "margin"),
    [
        ("sum", None, 1.0 / 0.2),
        ("per_token", None, 0.5 / 0.1),
        ("calibrated", [Likelihood(0.0, 2, 0.1), Likelihood(0.0, 2, 0.1)], 1.0 / 0.4),
    ],
)
def test_a_margin_is_counted_in_what_rounding_may_change_under_the_rule(
    ranking: str, without: Any, margin: float
) -> None:
    found = ranked(ranking, Likelihood(-1.0, 2, 0.1), Likelihood(-2.0, 2, 0.1), without=without)
    assert found.raw == "a" and found.margin == pytest.approx(margin)


def test_the_closest_of_the_others_decides() -> None:
    three = [*TWO, Text("c")]
    found = choose(
        "sum", three, [Likelihood(-1.0, 1, 0.1), Likelihood(-9.0, 1, 0.1), Likelihood(-1.1, 1, 0.1)], None
    )
    assert isinstance(found, Ranked) and found.margin == pytest.approx(0.5)


def test_who_says_nothing_of_rounding_has_no_margin() -> None:
    assert ranked("sum", Likelihood(-1.0, 1), Likelihood(-1.0, 1)).margin is None


def test_a_close_choice_is_ranked_again_document_by_document() -> None:
    from flamingo_lite.evaluation.answers import Answering, answers
    from flamingo_lite.evaluation.grid import EvaluationConfig, prompts, settings
    from flamingo_lite.evaluation.tasks import TASKS

    task, style = next(
        (task.name, name)
        for task in TASKS.values()
        for name, style in task.styles.items()
        if style.candidates
    )
    calls: list[int] = []

    def rank(
        documents: Sequence[Document], candidates: Sequence[Sequence[Text]]
    ) -> list[Sequence[Likelihood] | GenerationFailure]:
        calls.append(len(documents))
        # Alone the last candidate wins clearly; together the first, by less than what rounding may change.
        last = 1.0 if len(documents) == 1 else -1e-6
        return [
            [Likelihood(0.0 if i + 1 < len(given) else last, 1, 1e-3) for i in range(len(given))]
            for given in candidates
        ]

    def generate(documents: Sequence[Document], max_new_tokens: int) -> list[str]:
        raise AssertionError("nothing is generated here")

    config = EvaluationConfig(
        tasks=[task], splits=list(TASKS[task].splits)[:1], styles=[style], shots=[1], seeds=[0], queries=3,
        conditions=["standard"], control_splits=list(TASKS[task].splits)[:1], control_styles=[style],
    )  # fmt: skip
    asked = [prompt for setting in settings(config) for prompt in prompts(setting, config)]
    found = answers(asked, Answering(generate, rank))
    for prompt, answered in zip(asked, found, strict=True):
        assert isinstance(answered.outcome, Ranked)
        assert answered.outcome.raw == prompt.candidates[-1].text and not answered.near_tie
    assert calls[0] > 1 and set(calls[1:]) == {1}
