"""How far answers alone would go: the best of a few guesses that never look at an image.

Each guess sees what a prompt says in text: the question, the demonstrations' questions and answers, and the targets
of other queries. A task that needs its demonstrations' images leaves all of them near chance. It is a lower bound:
a cleverer guess may exist.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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


def _likest_question(asked: Asked, targets: Mapping[str | None, Counter[str]]) -> str | None:
    """Of the demonstration whose question shares the largest part of its words with the query's, the last of several."""
    words = set(asked.query.question.lower().split())

    def likeness(place: int) -> tuple[float, int]:
        others = set(asked.demonstrations[place].question.lower().split())
        return len(words & others) / max(1, len(words | others)), place

    places = range(len(asked.demonstrations))
    return asked.demonstrations[max(places, key=likeness)].answer if places else None


GUESSES: dict[str, Guess] = {
    "commonest target": _prior,
    "commonest target of the question": _prior_of_question,
    "commonest answer of the demonstrations": _majority,
    "rarest answer of the demonstrations": _rarest,
    "a choice that no demonstration shows": _unseen,
    "answer of the last demonstration": _last,
    "answer of demonstrations with the question": _same_question,
    "answer of the demonstration with the likest question": _likest_question,
}


def answers_alone(
    prompts: Iterable[Asked],
    scores: Callable[[Sequence[Asked], Sequence[str | None]], Sequence[float]],
) -> tuple[float, str] | None:
    """The mean score of the best guess, and its name; None without prompts. `scores`: of an answer to each prompt.

    The guess is chosen on one half of the queries and scored on the other, and the other way round: the best of
    several is no better than chance by luck alone. Of guesses that do as well over all, the first in `GUESSES` is
    named. What is known of other queries leaves the query's own target out.
    """
    asked = list(prompts)
    if not asked:
        return None
    questions: dict[str | None, Counter[str]] = {None: Counter()}
    queries = {of.query_id: of.query for of in asked}
    for query in queries.values():
        questions[None][query.answer] += 1
        questions.setdefault(query.question, Counter())[query.answer] += 1
    guessed: dict[str, list[str | None]] = {name: [] for name in GUESSES}
    for of in asked:
        # Made for one prompt at a time: each is as long as there are distinct answers.
        known = {key: _without(questions[key], of.query.answer) for key in (None, of.query.question)}
        for name, guess in GUESSES.items():
            guessed[name].append(guess(of, known))
    found = {name: np.array(scores(asked, answers)) for name, answers in guessed.items()}
    is_even = np.array([place % 2 == 0 for place in _places(of.query_id for of in asked)])
    total = 0.0
    for half in (is_even, ~is_even):
        # A single query has no other half to choose on.
        chosen_on = ~half if not half.all() else half
        total += found[_best(found, chosen_on)][half].sum() if half.any() else 0.0
    return float(total) / len(asked), _best(found, np.ones(len(asked), dtype=bool))


def _best(found: Mapping[str, np.ndarray], among: np.ndarray) -> str:
    return max(found, key=lambda name: found[name][among].mean())


def _places(query_ids: Iterable[int]) -> list[int]:
    """The rank of each query among those that are asked."""
    given = list(query_ids)
    rank = {query_id: place for place, query_id in enumerate(sorted(set(given)))}
    return [rank[query_id] for query_id in given]


def _without(counts: Counter[str], answer: str) -> Counter[str]:
    left = counts.copy()
    left[answer] -= 1
    return +left
