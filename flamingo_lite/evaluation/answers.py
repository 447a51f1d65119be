"""Answers to prompts from whoever gives them: generated texts and ranked candidates, through one door.

What a computer rounds depends on which prompts ran together. A choice that rounding could turn is asked again alone, so
that the same answer comes out however prompts were put together, and it is marked where it stays too close to call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import Prompt
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.ranking import Likelihood, Rank, Ranked, choose
from flamingo_lite.evaluation.rendering import RENDERINGS
from flamingo_lite.evaluation.results import prompt_sha
from flamingo_lite.evaluation.scoring import Outcome

MARKED = 0.5
"""Alone, a margin below this marks the answer: below 1 it is asked again, and the two must not depend on rounding."""


@dataclass(frozen=True)
class Written:
    """A generated text. `margin`: how far the closest choice of a token was from the next best, as a multiple of what
    rounding may change: below 1, other prompts in the batch could have turned it."""

    text: str
    margin: float | None = None


class Generate(Protocol):
    """Continues each document, greedily, in the order given; a failure stands in its own place.

    A single document is computed alone, so that the answer depends on nothing else.
    """

    def __call__(
        self, documents: Sequence[Document], max_new_tokens: int
    ) -> Sequence[str | Written | GenerationFailure]: ...


@dataclass(frozen=True)
class Answering:
    """What answers: `rank` for styles that take the likeliest of given candidates, if it can."""

    generate: Generate
    rank: Rank | None = None


@dataclass(frozen=True)
class Answered:
    """An outcome, the hash of the prompt that it answers, and whether the choice was too close to call."""

    outcome: Outcome
    prompt_sha: str
    near_tie: bool = False


def answers(asked: Sequence[Prompt], answering: Answering) -> list[Answered]:
    """One for each prompt, in their order.

    Errors: `FlamingoError` as `answering` raises it, or where it returns another number than it was asked for.
    """
    outcomes = _outcomes(asked, answering)
    near = {}
    for i, (_, margin) in enumerate(outcomes):
        if margin is not None and margin < 1:
            (outcomes[i],) = _outcomes([asked[i]], answering)
            alone = outcomes[i][1]
            near[i] = alone is not None and alone < MARKED
    return [
        Answered(outcome, prompt_sha(prompt.document), near.get(i, False))
        for i, (prompt, (outcome, _)) in enumerate(zip(asked, outcomes, strict=True))
    ]


def _outcomes(asked: Sequence[Prompt], answering: Answering) -> list[tuple[Outcome, float | None]]:
    """Each outcome with its margin."""
    outcomes: dict[int, tuple[Outcome, float | None]] = {
        i: (GenerationFailure(prompt.failure), None)
        for i, prompt in enumerate(asked)
        if prompt.failure is not None
    }
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(asked):
        if not prompt.candidates and i not in outcomes:
            by_length.setdefault(prompt.max_new_tokens, []).append(i)
    for length, places in by_length.items():
        documents = [asked[i].shown for i in places]
        raws = answering.generate(documents, length)
        if len(raws) != len(places):
            raise FlamingoError(
                f"the generator returned {len(raws)} texts for {len(places)} documents; expected one each"
            )
        for i, raw in zip(places, raws, strict=True):
            outcomes[i] = (raw.text, raw.margin) if isinstance(raw, Written) else (raw, None)
    ranked = [i for i, prompt in enumerate(asked) if prompt.candidates and i not in outcomes]
    for i, outcome in zip(ranked, _ranked([asked[i] for i in ranked], answering), strict=True):
        outcomes[i] = (outcome, outcome.margin if isinstance(outcome, Ranked) else None)
    return [outcomes[i] for i in range(len(asked))]


def _ranked(asked: Sequence[Prompt], answering: Answering) -> list[Ranked | GenerationFailure]:
    """Each distinct document is ranked once, whatever rules read its likelihoods."""
    if not asked:
        return []
    if answering.rank is None:
        raise FlamingoError(
            f"style {asked[0].setting.style} of {asked[0].setting.task} ranks candidates, which this model cannot; "
            "choose a style that generates"
        )
    places: dict[tuple[str, tuple[str, ...]], tuple[Document, Sequence[Text]]] = {}

    def key(document: Document, prompt: Prompt) -> tuple[str, tuple[str, ...]]:
        found = prompt_sha(document), tuple(candidate.text for candidate in prompt.candidates)
        shown = RENDERINGS[prompt.setting.rendering](document)
        places.setdefault(found, (shown, prompt.shown_candidates))
        return found

    keys = [(key(p.document, p), None if p.content_free is None else key(p.content_free, p)) for p in asked]
    documents = [document for document, _ in places.values()]
    given = [candidates for _, candidates in places.values()]
    together = [slice(i, i + 1) for i in range(len(places))] if len(asked) == 1 else [slice(None)]
    found_each = [one for part in together for one in answering.rank(documents[part], given[part])]
    if len(found_each) != len(places):
        raise FlamingoError(
            f"the ranker returned {len(found_each)} answers for {len(places)} documents; expected one each"
        )
    found: dict[Any, Sequence[Likelihood] | GenerationFailure] = dict(zip(places, found_each, strict=True))
    return [
        choose(p.style.ranking, p.candidates, found[own], None if free is None else found[free])
        for p, (own, free) in zip(asked, keys, strict=True)
    ]
