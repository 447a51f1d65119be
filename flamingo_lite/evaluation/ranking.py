"""Answers by likelihood: of given candidates the one that the model finds likeliest, under one of a few rules.

Longer candidates are less likely for their length alone, and some answers are likely whatever is asked: hence the
rules that divide by the length, and the one that subtracts what the model thinks without having seen anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.metrics import GenerationFailure


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of a candidate's tokens, the token that ends it included, and how many these are.

    `rounding`: by how much another batch may change it.
    """

    log_probability: float
    tokens: int
    rounding: float = 0.0


class Rank(Protocol):
    """The likelihood of each candidate after its document, in the order given; a failure stands in its own place.

    `candidates[i]` belong to `documents[i]`.
    """

    def __call__(
        self, documents: Sequence[Document], candidates: Sequence[Sequence[Text]]
    ) -> Sequence[Sequence[Likelihood] | GenerationFailure]: ...


@dataclass(frozen=True)
class Ranked:
    """What was chosen, as text, and what each candidate got under the rule.

    `margin`: how far the choice was from the next best, as a multiple of what rounding may change; None where nothing
    is said of rounding.
    """

    raw: str
    scores: tuple[float, ...]
    margin: float | None = None


Rule = Callable[[Text, Likelihood, Likelihood], float]
"""(candidate, its likelihood, its likelihood after the content-free prompt) to a score."""

RANKINGS: dict[str, Rule] = {
    "sum": lambda candidate, found, without: found.log_probability,
    "per_token": lambda candidate, found, without: found.log_probability / found.tokens,
    "per_byte": lambda candidate, found, without: (
        found.log_probability / max(1, len(candidate.text.strip().encode("utf-8", "surrogatepass")))
    ),
    "calibrated": lambda candidate, found, without: found.log_probability - without.log_probability,
}
"""`per_token`: OpenFlamingo's; `per_byte`: lm-eval's acc_norm; `calibrated`: against a prompt that shows nothing
(Zhao et al. 2021, with the images of the query uniform)."""
NEEDS_CONTENT_FREE = frozenset({"calibrated"})


def choose(
    ranking: str,
    candidates: Sequence[Text],
    found: Sequence[Likelihood] | GenerationFailure,
    without: Sequence[Likelihood] | GenerationFailure | None,
) -> Ranked | GenerationFailure:
    """The candidate of the highest score, the first of several. Errors: `FlamingoError` for another number of
    likelihoods than candidates."""
    if isinstance(found, GenerationFailure):
        return found
    if isinstance(without, GenerationFailure):
        return without
    if len(found) != len(candidates) or (without is not None and len(without) != len(candidates)):
        raise FlamingoError(
            f"the ranker returned {len(found)} likelihoods for {len(candidates)} candidates; expected one each"
        )
    rule = RANKINGS[ranking]
    scores = tuple(rule(*of) for of in zip(candidates, found, without or found, strict=True))
    best = max(range(len(scores)), key=lambda i: scores[i])
    less = tuple(
        rule(candidate, _less(own), _more(free))
        for candidate, own, free in zip(candidates, found, without or found, strict=True)
    )
    others = [i for i in range(len(scores)) if i != best]
    margins = [
        (scores[best] - scores[i]) / rounding
        for i in others
        if (rounding := scores[best] - less[best] + scores[i] - less[i]) > 0
    ]
    return Ranked(candidates[best].text, scores, min(margins, default=None))


def _less(found: Likelihood) -> Likelihood:
    return replace(found, log_probability=found.log_probability - found.rounding)


def _more(found: Likelihood) -> Likelihood:
    return replace(found, log_probability=found.log_probability + found.rounding)
