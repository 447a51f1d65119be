"""What scoring one answer gives: a score, what was found in the text, and whether anything was.

A failed generation is a status and never a wrong answer; an answer that could not be read is wrong, and counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Extract = Callable[[str], str | None]


@dataclass(frozen=True)
class GenerationFailure:
    """What a text generator returns instead of a text when it could not make one. `reason`: one line."""

    reason: str


@dataclass(frozen=True)
class Scored:
    """`status`: "ok", "unparsed" (no answer was found in the text) or "failed" (no text: no score)."""

    extracted: str | None
    score: float | None
    status: str


@dataclass(frozen=True)
class Tally:
    """The mean over all answers that have a text, the unreadable ones included; None where there are none."""

    value: float | None
    n: int
    n_failed: int
    n_unparsed: int


def judge(raw: str | GenerationFailure, metric: Callable[[str], Scored]) -> Scored:
    """`metric` of a text; the status "failed" where there is none."""
    if isinstance(raw, GenerationFailure):
        return Scored(extracted=None, score=None, status="failed")
    return metric(raw)


def score(raw: str | GenerationFailure, target: str, extract: Extract) -> Scored:
    """Exact match of what `extract` finds in `raw`."""
    return judge(raw, lambda text: matched(extract(text), target))


def matched(extracted: str | None, target: str) -> Scored:
    """Whether what was found is the target; "unparsed" and wrong where nothing was found."""
    if extracted is None:
        return Scored(extracted=None, score=0.0, status="unparsed")
    return Scored(extracted, float(extracted == target), "ok")


def tally(scored: Iterable[Scored]) -> Tally:
    """The accuracy (or mean score), with failures and unreadable answers counted apart."""
    answers = list(scored)
    scores = [answer.score for answer in answers if answer.score is not None]
    return Tally(
        value=sum(scores) / len(scores) if scores else None,
        n=len(scores),
        n_failed=sum(answer.status == "failed" for answer in answers),
        n_unparsed=sum(answer.status == "unparsed" for answer in answers),
    )
