"""Which demonstrations a query gets: a pure function of (task, split, query id, seed), nested over shots.

Neither the number of processes, nor the order of queries, nor the style or condition can change them, so two
systems, or two conditions of one, are compared on identical demonstrations.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError

MAX_REJECTIONS = 10_000


@dataclass(frozen=True)
class Example:
    """One question with its answer. `expression`: what the image asks, in words ("3 ? 5")."""

    id: str
    image: Image
    expression: str
    answer: str


def episode_generator(
    purpose: str, task: str, split: str, query_id: int, seed: int | None = None
) -> random.Random:
    """The randomness of one purpose in one episode. A str seed is hashed, so it is the same on every
    machine."""
    return random.Random(f"{purpose}/{task}/{split}/{query_id}/{seed}")


def draw_demonstrations(
    draw: Callable[[random.Random], Example], generator: random.Random, shots: int, exclude: Collection[str]
) -> tuple[Example, ...]:
    """`shots` demonstrations in their order, no image twice and none whose image id is in `exclude`.

    One `generator` feeds `draw` one example after the other, and a rejected one is drawn again: what follows
    the k-th demonstration cannot change the first k, so smaller sets are prefixes of larger ones. Errors:
    `FlamingoError` when the support has too few distinct images.
    """
    seen = set(exclude)
    demonstrations: list[Example] = []
    rejections = 0
    while len(demonstrations) < shots:
        example = draw(generator)
        if example.image.id not in seen:
            seen.add(example.image.id)
            demonstrations.append(example)
            continue
        rejections += 1
        if rejections > MAX_REJECTIONS:
            raise FlamingoError(
                f"the support gave {len(demonstrations)} distinct images for {shots} shots; "
                f"ask for at most {len(demonstrations)} shots or enlarge the support"
            )
    return tuple(demonstrations)


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
