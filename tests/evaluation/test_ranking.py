from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.answering import ModelAnswers
from flamingo_lite.evaluation.grid import EvaluationConfig, Setting, build_prompt
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.ranking import RANKINGS, Likelihood, Ranked, choose
from flamingo_lite.evaluation.runner import evaluate
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

LONG, SHORT = Text(" certainly not", ends_chunk=True), Text(" yes", ends_chunk=True)
FOUND = [Likelihood(-6.0, 6), Likelihood(-4.0, 2)]
WITHOUT = [Likelihood(-7.0, 6), Likelihood(-1.0, 2)]


@pytest.mark.parametrize(
    ("ranking", "scores", "best"),
    [
        ("sum", (-6.0, -4.0), SHORT),
        ("per_token", (-1.0, -2.0), LONG),
        ("per_byte", (-6 / 13, -4 / 3), LONG),
        ("calibrated", (1.0, -3.0), LONG),
    ],
)
def test_a_rule_chooses_by_hand_worked_scores(ranking: str, scores: tuple[float, ...], best: Text) -> None:
    assert choose(ranking, [LONG, SHORT], FOUND, WITHOUT) == Ranked(best.text, scores)


def test_every_rule_is_worked_by_hand_above() -> None:
    assert set(RANKINGS) == {"sum", "per_token", "per_byte", "calibrated"}


def test_of_equal_candidates_the_first_is_taken() -> None:
    same = [Likelihood(-1.0, 1)] * 2
    assert choose("sum", [LONG, SHORT], same, None) == Ranked(LONG.text, (-1.0, -1.0))


def test_a_failure_stays_one_whichever_prompt_failed() -> None:
    failure = GenerationFailure("down")
    assert choose("sum", [LONG, SHORT], failure, None) is failure
    assert choose("calibrated", [LONG, SHORT], FOUND, failure) is failure


def test_a_ranker_that_loses_a_candidate_is_refused() -> None:
    with pytest.raises(FlamingoError, match="1 likelihoods for 2 candidates"):
        choose("sum", [LONG, SHORT], FOUND[:1], None)


STYLES = ["ranked", "ranked_per_token", "ranked_per_byte", "ranked_calibrated"]
CONFIG = EvaluationConfig(
    tasks=["existence"], splits=["test"], styles=STYLES, control_styles=["ranked"], shots=[0, 2], seeds=[0],
    control_shots=[2], queries=6, resamples=10,
)  # fmt: skip


def test_styles_that_rank_take_the_likeliest_and_each_document_is_ranked_once() -> None:
    asked: list[tuple[Document, tuple[Text, ...]]] = []

    def rank(documents: Sequence[Document], candidates: Sequence[Sequence[Text]]) -> list[list[Likelihood]]:
        asked.extend(zip(documents, map(tuple, candidates), strict=True))
        return [[Likelihood(-float(len(text.text)), 1) for text in given] for given in candidates]

    results = evaluate(lambda documents, n: [], CONFIG, None, rank=rank)
    assert len(asked) == len(set(asked))
    assert all(text.ends_chunk and text.text in (" yes", " no") for _, given in asked for text in given)
    by_style = {
        cell["style"]: cell["figures"]["yes_ratio"]
        for cell in results["cells"]
        if cell["condition"] == "standard" and cell["shots"] == 2
    }
    assert by_style["ranked"] == by_style["ranked_per_token"] == 0.0
    # Nothing is left of what does not depend on the prompt: then the first candidate is taken.
    assert by_style["ranked_calibrated"] == 1.0


def test_a_calibrating_prompt_keeps_the_demonstrations_and_shows_a_uniform_query() -> None:
    for condition in ("standard", "text_twin", "no_query_image"):
        prompt = build_prompt(Setting("existence", "test", "ranked_calibrated", condition, 2), 1, 0)
        assert prompt.content_free is not None
        before = [s for s in prompt.document if isinstance(s, Text)]
        after = [s for s in prompt.content_free if isinstance(s, Text)]
        if condition == "text_twin":
            before = [text for i, text in enumerate(before) if i != len(before) - 2]
        assert after == before
        if condition == "standard":
            *shown, last = prompt.content_free.images
            assert shown == list(prompt.document.images[:-1])
            assert len(last.pil().getcolors()) == 1


def test_a_generator_alone_cannot_rank_and_says_so() -> None:
    with pytest.raises(FlamingoError, match="ranks candidates, which this model cannot"):
        evaluate(lambda documents, n: [""] * len(documents), CONFIG, None)


def test_a_model_ranks_by_the_log_probabilities_of_its_logits(
    model: VisionLanguageModel, processor: VisionLanguageProcessor
) -> None:
    prompt = build_prompt(Setting("existence", "test", "ranked", "standard", 2), 0, 0)
    (found,) = ModelAnswers(model, processor).rank([prompt.document], [prompt.candidates])
    assert not isinstance(found, GenerationFailure)
    for candidate, likelihood in zip(prompt.candidates, found, strict=True):
        whole = processor([Document([*prompt.document, candidate])])
        tokens = whole["input_ids"][0, -likelihood.tokens :]
        with torch.no_grad():
            logits = model.eval()(**(dict(whole) | {"labels": None})).logits[0]
        log_probabilities = logits.log_softmax(-1)[-likelihood.tokens - 1 : -1]
        expected = log_probabilities.gather(1, tokens[:, None]).sum().item()
        assert likelihood.log_probability == pytest.approx(expected, abs=1e-4)
        assert processor.tokenizer.decode(tokens).startswith(candidate.text)
