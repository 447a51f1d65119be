"""How far answers alone would go: the best of a few guesses that never look at an image.

Each guess sees what a prompt says in text: the question, the demonstrations' questions and answers, and the targets
of other queries. A task that needs its demonstrations' images leaves all of them near chance. It is a lower bound:
a cleverer guess may exist.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flamingo_lite.evaluation.demonstrations import Example


@dataclass(frozen=True)
class Asked:
    """One prompt without its images. `query_id`: a query's own target is no evidence for itself."""

    query_id: int
    query: Example
    demonstrations: Sequence[Example]


Guess = Callable[[Asked, Mapping[str | None, Counter[str]]], str | None]
"""(prompt, targets of the other queries: of all under None, of those with one question under it) to an answer."""


def _commonest(counts: Mapping[str, int]) -> str | None:
    """The commonest answer, the first by name of several."""
    return min(counts, key=lambda answer: (-counts[answer], answer)) if counts else None


def _prior(asked: Asked, targets: Mapping[str | None, Counter[str]]) -> str | None:
    return _commonest(targets[None])


def _prior_of_question(asked: Asked, targets: Mapping[str | None, Counter[str]]) -> str | None:
    return _commonest(targets.get(asked.query.question) or targets[None])


def _majority(asked: Asked, targets: Mapping[str | None, Counter[str]]) -> str | None:
    return _commonest(Counter(d.answer for d in asked.demonstrations))


def _rarest(asked: Asked, targets: Mapping[str | None, Counter[str]]) -> str | None:
    counts = Counter(d.answer for d in asked.demonstrations)
    return min(counts, key=lambda answer: (counts[answer], answer)) if counts else None


def _unseen(asked: Asked, targets: Mapping[str | None, Counter[str]]) -> str | None:
    """The commonest of the choices that no demonstration shows."""
    shown = {d.answer for d in asked.demonstrations}
    left = {choice: targets[None][choice] for choice in asked.query.choices if choice not in shown}
    return _commonest(left) or _majority(asked, targets)


def _last(asked: Asked, targets: Mapping[str | None, Counter[str]]) -> str | None:
    return asked.demonstrations[-1].answer if asked.demonstrations else None


def _same_question(asked: Asked, targets: Mapping[str | None, Counter[str]]) -> str | None:
    same = Counter(d.answer for d in asked.demonstrations if d.question == asked.query.question)
    return _commonest(same) or _majority(asked, targets)


GUESSES: dict[str, Guess] = {
    "commonest target": _prior,
    "commonest target of the question": _prior_of_question,
    "commonest answer of the demonstrations": _majority,
    "rarest answer of the demonstrations": _rarest,
    "a choice that no demonstration shows": _unseen,
    "answer of the last demonstration": _last,
    "answer of demonstrations with the question": _same_question,
}


def answers_alone(
    prompts: Iterable[Asked],
    scores: Callable[[Sequence[Asked], Sequence[str | None]], Sequence[float]],
) -> tuple[float, str] | None:
    """The mean score of the best guess, and its name; None without prompts. `scores`: of an answer to each prompt.

    Of guesses that do as well the first in `GUESSES` is named. What is known of other queries leaves the query's
    own target out.
    """
    asked = list(prompts)
    if not asked:
        return None
    questions: dict[str | None, Counter[str]] = {None: Counter()}
    queries = {of.query_id: of.query for of in asked}
    for query in queries.values():
        questions[None][query.answer] += 1
        questions.setdefault(query.question, Counter())[query.answer] += 1
    known = [
        {key: _without(questions[key], of.query.answer) for key in (None, of.query.question)} for of in asked
    ]
    means = {}
    for name, guess in GUESSES.items():
        given = [guess(of, targets) for of, targets in zip(asked, known, strict=True)]
        means[name] = sum(scores(asked, given)) / len(asked)
    best = max(means, key=lambda name: means[name])
    return means[best], best


def _without(counts: Counter[str], answer: str) -> Counter[str]:
    left = counts.copy()
    left[answer] -= 1
    return +left
