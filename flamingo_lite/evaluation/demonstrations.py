"""Which demonstrations a query gets: a pure function of (task, split, query id, seed), nested over shots.

Neither the number of processes, nor the order of queries, nor the style or condition can change them, so two
systems, or two conditions of one, are compared on identical demonstrations.
"""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError

MAX_REJECTIONS = 10_000


@dataclass(frozen=True)
class Example:
    """One question with its answer. `question`: what the prompt's text asks (what an image asks is no part of it);
    `answer`: what a demonstration shows and a sample names as its target.

    `references`: all right answers, of annotators or captioners (empty: `answer` alone); `choices`: the answers
    among which the right one is, where they are known; `facts`: what else `write` or a scorer needs, such as a
    question's type.
    """

    id: str
    images: tuple[Image, ...]
    question: str
    answer: str
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def right_answers(self) -> tuple[str, ...]:
        return self.references or (self.answer,)


@dataclass(frozen=True)
class Support:
    """The examples that the demonstrations of a query come from.

    `key` names it: queries whose supports have one key share it. `examples` may draw a picture when one is asked
    for; `answers[i]` is that of `examples[i]`, known without its picture. `draws` gives examples at random without end.
    """

    key: str
    examples: Sequence[Example]
    answers: Sequence[str]
    draws: Callable[[random.Random], Iterator[Example]]


def uniform_support(key: str, examples: Sequence[Example], answers: Sequence[str] | None = None) -> Support:
    """A support of which each example is as likely as any other. `answers`: theirs, where they are known undrawn."""
    return Support(
        key,
        examples,
        [example.answer for example in examples] if answers is None else answers,
        endlessly(lambda generator: generator.choice(examples)),
    )


def endlessly(
    draw: Callable[[random.Random], Example],
) -> Callable[[random.Random], Iterator[Example]]:
    """The stream of examples that `draw` gives one after the other, each independent of those before."""

    def draws(generator: random.Random) -> Iterator[Example]:
        while True:
            yield draw(generator)

    return draws


def episode_generator(
    purpose: str, task: str, split: str, query_id: int | str, seed: int | None = None
) -> random.Random:
    """The randomness of one purpose in one episode. A str seed is hashed, so it is the same on every
    machine."""
    return random.Random(f"{purpose}/{task}/{split}/{query_id}/{seed}")


class Exclusion:
    """What may still be shown: nothing of the query, and no example or picture twice.

    An example shares nothing with the query: neither its id nor the hash of any image. Two demonstrations may
    share one of several images (a digit of an expression), but not all of them. `excluded`: ids that are not shown
    to anybody.
    """

    def __init__(self, query: Example, excluded: Collection[str] = ()) -> None:
        self._query_images = {image.id for image in query.images}
        self._ids = {query.id, *excluded}
        self._shown: set[tuple[str, ...]] = set()

    def admits(self, example: Example) -> bool:
        """Whether `example` may be shown; if so, it is counted as shown from now on."""
        images = tuple(image.id for image in example.images)
        if example.id in self._ids or self._query_images.intersection(images) or images in self._shown:
            return False
        self._ids.add(example.id)
        if images:
            self._shown.add(images)
        return True


def draw_demonstrations(
    drawn: Iterator[Example], shots: int, query: Example, excluded: Collection[str] = ()
) -> tuple[Example, ...]:
    """The first `shots` of `drawn` that may be shown: none twice, none that shares an image with `query`, and none of
    the ids that are `excluded`.

    What follows the k-th demonstration cannot change the first k, so smaller sets are prefixes of larger ones. Errors:
    `FlamingoError` when the support has too few distinct examples.
    """
    exclusion = Exclusion(query, excluded)
    demonstrations: list[Example] = []
    rejections = 0
    while len(demonstrations) < shots:
        example = next(drawn)
        if exclusion.admits(example):
            demonstrations.append(example)
            continue
        rejections += 1
        if rejections > MAX_REJECTIONS:
            raise too_few(len(demonstrations), shots)
    return tuple(demonstrations)


def too_few(found: int, shots: int) -> FlamingoError:
    return FlamingoError(
        f"the support gave {found} distinct examples for {shots} shots; "
        f"ask for at most {found} shots or enlarge the support"
    )


def permute_answers(answers: Sequence[str], generator: random.Random) -> tuple[str, ...]:
    """The answers in another order, in which as few positions as possible keep the answer they had.

    Positions are grouped by answer and the groups turned by the size of the largest: no position is reached
    by its own answer unless that answer holds more than half of all positions (and then only the surplus
    keeps it).
    """
    groups: dict[str, list[int]] = {}
    for position, answer in enumerate(answers):
        groups.setdefault(answer, []).append(position)
    members = list(groups.values())
    generator.shuffle(members)
    # The largest group comes first so that, if it outweighs the rest, its surplus is all that wraps onto
    # itself.
    members.sort(key=len, reverse=True)
    for group in members:
        generator.shuffle(group)
    order = [position for group in members for position in group]
    turn = len(members[0]) if members else 0
    permuted = list(answers)
    for rank, position in enumerate(order):
        permuted[position] = answers[order[(rank + turn) % len(order)]]
    return tuple(permuted)
