"""How demonstrations are chosen from a support and in which order they are shown.

A selector is a function of one question and nothing else, nested over shots: the choice for k shots is the first k of
that for more. The order is applied to what was chosen, so that orders compare on one set.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import (
    Example,
    Exclusion,
    Support,
    draw_demonstrations,
    episode_generator,
    too_few,
)
from flamingo_lite.names import check_choice


@dataclass(frozen=True)
class Wanted:
    """Demonstrations that are wanted: for which query, from where, how many. `excluded`: ids that are not shown."""

    task: str
    split: str
    query_id: int
    seed: int
    shots: int
    query: Example
    support: Support
    excluded: frozenset[str] = frozenset()


Selector = Callable[[Wanted], tuple[Example, ...]]


def _refuses_nothing(wanted: Wanted) -> str | None:
    return None


@dataclass(frozen=True)
class Selection:
    """A way of choosing. `is_by_similarity`: what resembles the query most is chosen first, and by its own order
    shown last, nearest to the query. `refusal`: why there is no choice for a query, so that its prediction is a failure;
    `select` gives then what stands in the prompt that is not asked."""

    select: Selector
    says: str
    is_by_similarity: bool = False
    refusal: Callable[[Wanted], str | None] = _refuses_nothing


def _random(wanted: Wanted) -> tuple[Example, ...]:
    generator = episode_generator("demonstrations", wanted.task, wanted.split, wanted.query_id, wanted.seed)
    return draw_demonstrations(wanted.support.draws(generator), wanted.shots, wanted.query, wanted.excluded)


def _fixed(wanted: Wanted) -> tuple[Example, ...]:
    """The query's number is no part of the key; one that the query may not see is skipped for this query."""
    generator = episode_generator("fixed", wanted.task, wanted.split, wanted.support.key, wanted.seed)
    return draw_demonstrations(wanted.support.draws(generator), wanted.shots, wanted.query, wanted.excluded)


def _balanced(wanted: Wanted) -> tuple[Example, ...]:
    """Round after round through the answers, each round in a new order; an answer that has no example left is
    passed over."""
    generator = episode_generator("balanced", wanted.task, wanted.split, wanted.query_id, wanted.seed)
    left: dict[str, list[int]] = {}
    for index, answer in enumerate(wanted.support.answers):
        left.setdefault(answer, []).append(index)
    exclusion = Exclusion(wanted.query, wanted.excluded)
    found: list[Example] = []
    while len(found) < wanted.shots:
        if not left:
            raise too_few(len(found), wanted.shots)
        for answer in generator.sample(sorted(left), len(left)):
            example = _take(wanted.support.examples, left[answer], generator, exclusion)
            if example is None:
                del left[answer]
            elif len(found) < wanted.shots:
                found.append(example)
    return tuple(found)


def _take(
    examples: Sequence[Example], indices: list[int], generator: random.Random, exclusion: Exclusion
) -> Example | None:
    """An example of `indices` that may be shown, which is taken out of them; None where there is none."""
    while indices:
        chosen = generator.randrange(len(indices))
        indices[chosen], indices[-1] = indices[-1], indices[chosen]
        example = examples[indices.pop()]
        if exclusion.admits(example):
            return example
    return None


SELECTORS: dict[str, Selection] = {
    "random": Selection(_random, "drawn anew for every query"),
    "fixed": Selection(_fixed, "the same for all queries that share a support"),
    "balanced": Selection(_balanced, "every answer as often as any other, as far as the shots allow"),
}

BY_SIMILARITY: dict[str, tuple[tuple[str, ...], str]] = {
    "rices_image": (("image",), "those whose images resemble the query's most"),
    "rices_text": (("text",), "those whose questions resemble the query's most"),
    "rices_both": (("image", "text"), "those that resemble the query most by the mean of both"),
}
"""What each compares; they need encoders, and `retrieval.Retrieval` makes selectors of them."""


def is_drawn(selector: str, order: str) -> bool:
    """Whether the seed changes which demonstrations are shown, or in which order."""
    return selector not in BY_SIMILARITY or order == "random"


def recorded(ids: Sequence[str]) -> Selection:
    """The demonstrations with these ids, in this order, whoever has chosen them."""

    def chosen(wanted: Wanted) -> tuple[Example, ...]:
        known = {example.id: example for example in wanted.support.examples}
        if missing := next((name for name in ids if name not in known), None):
            raise FlamingoError(
                f"example {missing} is not in the support; expected the one it was taken from"
            )
        return tuple(known[name] for name in ids)

    return Selection(chosen, "those that a sample names")


def _own(chosen: Sequence[Example], is_by_similarity: bool, generator: random.Random) -> list[Example]:
    return list(reversed(chosen)) if is_by_similarity else list(chosen)


def _reversed(chosen: Sequence[Example], is_by_similarity: bool, generator: random.Random) -> list[Example]:
    return list(chosen) if is_by_similarity else list(reversed(chosen))


def _shuffled(chosen: Sequence[Example], is_by_similarity: bool, generator: random.Random) -> list[Example]:
    return generator.sample(list(chosen), len(chosen))


def _similar_last(
    chosen: Sequence[Example], is_by_similarity: bool, generator: random.Random
) -> list[Example]:
    if not is_by_similarity:
        raise FlamingoError(
            "order is 'similar_last', but the selector does not measure similarity; "
            "expected one that does: choose another order, or another selector"
        )
    return list(reversed(chosen))


ORDERS: dict[str, Callable[[Sequence[Example], bool, random.Random], list[Example]]] = {
    "own": _own,
    "similar_last": _similar_last,
    "random": _shuffled,
    "reversed": _reversed,
}
"""`own`: as drawn, or by similarity the most similar last; `reversed`: that turned around."""


def select(
    wanted: Wanted, selector: str, order: str, selectors: Mapping[str, Selection] = SELECTORS
) -> tuple[Example, ...]:
    """The demonstrations as they are shown. Errors: `FlamingoError` for unknown names, an order that the selector
    has no sense for, and a support smaller than the shots."""
    if selector in BY_SIMILARITY and selector not in selectors:
        raise FlamingoError(
            f"selector {selector} needs an encoder; give evaluate(selectors={{**SELECTORS, **Retrieval(...).selectors()}}), "
            "or choose random"
        )
    check_choice("selector", selector, selectors)
    check_choice("order", order, ORDERS)
    way = selectors[selector]
    if wanted.shots and not len(wanted.support.examples):
        raise FlamingoError(
            f"{wanted.task}, split {wanted.split}: there is nothing to demonstrate {wanted.shots} shots with; ask for 0 "
            f"shots, or name a support among eval.files.{wanted.task}"
        )
    try:
        chosen = way.select(wanted)
    except FlamingoError as error:
        raise FlamingoError(f"{wanted.task}, split {wanted.split}: {error}") from None
    # The number of shots is part of the key: a random order of more is no random order of fewer.
    generator = episode_generator(
        f"order/{wanted.shots}", wanted.task, wanted.split, wanted.query_id, wanted.seed
    )
    return tuple(ORDERS[order](chosen, way.is_by_similarity, generator))
