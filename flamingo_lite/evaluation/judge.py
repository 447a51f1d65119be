"""LLaVA-Bench's judge: a text model that does not see the image scores a reference's answer beside a model's.

Each question is judged in both orders. A reply without two scores in its first line is counted, and in no mean.
"""

import functools
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flamingo_lite.data.filters import option
from flamingo_lite.errors import SampleError
from flamingo_lite.evaluation.judge_files import Case
from flamingo_lite.evaluation.statistics import clustered_bootstrap
from flamingo_lite.teacher import Answer, Asker, Failure, Message, Request, Sampling, TeacherOptions

ORDERS = ("reference_first", "model_first")
"""The published order, and the other one."""
JUDGED, UNPARSEABLE = "judged", "unparseable"
OVERALL = "all"
LOWEST, HIGHEST = 1.0, 10.0

_SCORE = r"(\d+(?:\.\d+)?)"
_SCORES = re.compile(rf"\s*{_SCORE}\s*(?:,|\s)\s*{_SCORE}\s*")


@dataclass(frozen=True)
class JudgeOptions(TeacherOptions):
    """The judge's options, and those of a model that is to answer first."""

    max_new_tokens: int = option(128, "tokens of an answer of --checkpoint, at most")


@dataclass(frozen=True)
class Verdict:
    """`status`: judged, unparseable, or why the judge gave no reply; there are scores only where it is judged."""

    question_id: str
    image: str
    category: str
    order: str
    status: str
    reference: float | None
    model: float | None
    raw: str | None


@functools.cache
def system_prompt() -> str:
    """The packaged instructions of the judge."""
    return yaml.safe_load(Path(__file__).with_name("judge.yaml").read_text(encoding="utf-8"))[
        "system"
    ].strip()


def messages(case: Case, order: str) -> list[Message]:
    """What the judge is asked: context, question and both answers, quoted, so that none of them can pose as another."""
    answers = (case.reference, case.answer) if order == ORDERS[0] else (case.answer, case.reference)
    named = zip(
        ("Context", "Question", "First answer", "Second answer"),
        (case.context, case.question, *answers),
        strict=True,
    )
    asked = "\n\n".join(f"{name}:\n{_quoted(text)}" for name, text in named)
    return [Message("system", system_prompt()), Message("user", asked)]


def read_scores(reply: str) -> tuple[float, float]:
    """The two scores of a reply, in its first line alone.

    Errors: `SampleError` ("unparseable") for anything else there, and for scores outside 1 to 10.
    """
    first = reply.strip().split("\n", 1)[0]
    if (found := _SCORES.fullmatch(first)) is None:
        raise SampleError(f"the first line is {first[:60]!r}; expected two scores", UNPARSEABLE)
    scores = float(found[1]), float(found[2])
    if not all(LOWEST <= score <= HIGHEST for score in scores):
        raise SampleError(f"scores of {first.strip()!r}; expected 1 to 10", UNPARSEABLE)
    return scores


def judge(cases: Sequence[Case], asker: Asker, sampling: Sampling | None = None) -> Iterator[Verdict]:
    """A verdict for each case in each order, as they come; fewer where the budget ends.

    Errors: `FlamingoError` when the judge does not answer.
    """
    requests = (
        Request((case, order), messages(case, order), sampling or Sampling())
        for case in cases
        for order in ORDERS
    )
    for (case, order), reply in asker.ask(requests):
        yield _verdict(case, order, reply)


def summary(verdicts: Sequence[Verdict], asked: int) -> dict[str, Any]:
    """The figures per category and over all: see `_figures`. `asked`: verdicts that were wanted; those beyond
    `verdicts` were left unasked by the budget."""
    categories = sorted({verdict.category for verdict in verdicts})
    figures = {
        name: _figures([v for v in verdicts if name in (OVERALL, v.category)])
        for name in (*categories, OVERALL)
    }
    return {"categories": figures, "verdicts": len(verdicts), "unasked": asked - len(verdicts)}


def _figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """For each order the relative score, 100 * mean(model) / mean(reference), of the `n` that were judged, with its 95%
    interval over images; how many were not, by status; and what coming first is worth to an answer, in points."""
    return {
        **{order: _relative([v for v in verdicts if v.order == order]) for order in ORDERS},
        "position": _position(verdicts),
    }


def _relative(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    judged = [(v.model, v.reference) for v in verdicts if v.model is not None and v.reference is not None]
    images = [v.image for v in verdicts if v.status == JUDGED]
    statuses = Counter(v.status for v in verdicts)
    figures: dict[str, Any] = {
        "n": len(judged),
        "excluded": {status: n for status, n in sorted(statuses.items()) if status != JUDGED},
        "relative": None,
        "ci95": None,
        "model": None,
        "reference": None,
    }
    if not judged:
        return figures
    model, reference = np.array(judged).T
    ratio = model.mean() / reference.mean()
    # A ratio of means is, to first order, the mean of these (the delta method).
    linear = 100 * (ratio + (model - ratio * reference) / reference.mean())
    estimate = clustered_bootstrap(linear.tolist(), images)
    return {
        **figures,
        "relative": 100 * float(ratio),
        "ci95": None if estimate.ci95 is None else list(estimate.ci95),
        "model": float(model.mean()),
        "reference": float(reference.mean()),
    }


def _position(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Mean score of an answer that comes first, less that of the same answer that comes second, over the questions
    that were judged in both orders; 0 for a judge whom the order leaves cold."""
    pairs: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        if verdict.status == JUDGED:
            pairs.setdefault(verdict.question_id, {})[verdict.order] = verdict
    gains, images = [], []
    for both in pairs.values():
        if len(both) == len(ORDERS):
            straight, swapped = (both[order] for order in ORDERS)
            reference = _score(straight.reference) - _score(swapped.reference)
            model = _score(swapped.model) - _score(straight.model)
            gains.append((reference + model) / 2)
            images.append(straight.image)
    if not gains:
        return {"n": 0, "first_gains": None, "ci95": None}
    estimate = clustered_bootstrap(gains, images)
    return {
        "n": len(gains),
        "first_gains": estimate.value,
        "ci95": None if estimate.ci95 is None else list(estimate.ci95),
    }


def _score(value: float | None) -> float:
    assert value is not None, "a judged verdict has both scores"
    return value


def _verdict(case: Case, order: str, reply: Answer | Failure) -> Verdict:
    about = (case.question_id, case.image, case.category, order)
    if isinstance(reply, Failure):
        return Verdict(*about, reply.reason, None, None, None)
    try:
        first, second = read_scores(reply.text)
    except SampleError as error:
        return Verdict(*about, error.reason, None, None, reply.text)
    reference, model = (first, second) if order == ORDERS[0] else (second, first)
    return Verdict(*about, JUDGED, reference, model, reply.text)


def _quoted(text: str) -> str:
    """An empty text is a quoted empty line: it stays visible."""
    return textwrap.indent(text or " ", "> ", lambda line: True)


def as_records(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as JSON."""
    return [asdict(verdict) for verdict in verdicts]
