"""Questions about scenes whose answers are balanced, as data: one question can be put to two scenes.

A scene is drawn with its subject, label first: a number uniform over 0 to 5, then a scene with so many of it. So "how
many?" has every answer equally often, and so have yes and no: answers alone betray nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flamingo_lite.data.synthetic.scenes import (
    COLOURS,
    MAX_THINGS,
    SHAPES,
    Thing,
    in_order,
    is_held_out,
    matches,
    plural,
)

ALL_KINDS: tuple[Thing, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SUBJECTS: tuple[Thing, ...] = (
    *((colour, "") for colour in COLOURS),
    *(("", shape) for shape in SHAPES),
    *ALL_KINDS,
)
ANY: Thing = ("", "")
MOST_COUNTED = 5


class Scene(NamedTuple):
    """The things of a scene, and what is counted there."""

    content: tuple[Thing, ...]
    subject: Thing


@dataclass(frozen=True)
class Question:
    """`kind` is a name in `KINDS`; `about`: the things that it names, a colour or a shape of which may be ""."""

    kind: str
    about: tuple[Thing, ...] = ()

    @property
    def text(self) -> str:
        return KINDS[self.kind].wording(self.about)

    def answer(self, content: Sequence[Thing]) -> str | None:
        """The answer for a scene of `content`; None where the question cannot be asked of it."""
        return KINDS[self.kind].answer(self.about, content)


def draw_subject(generator: random.Random) -> Thing:
    """A kind of thing to count: a colour, a shape, or both."""
    colour, shape = generator.choice(ALL_KINDS)
    return generator.choice(((colour, ""), ("", shape), (colour, shape)))


def draw_scene_with(
    generator: random.Random, subject: Thing, number: int | None = None, held_out: bool = False
) -> Scene:
    """A scene with `number` things of `subject` (uniform over 0 to 5 unless given), of those held out or of the others."""
    number = generator.randint(0, MOST_COUNTED) if number is None else number
    while True:
        total = generator.randint(max(1, number), MAX_THINGS)
        colours = generator.sample(list(COLOURS), generator.randint(1, 3))
        shapes = generator.sample(SHAPES, generator.randint(1, 3))
        some = [(colour, shape) for colour in colours for shape in shapes]
        others = [thing for thing in some if not matches(thing, subject)]
        if not others and total > number:
            continue
        colour, shape = subject
        counted = [
            (colour or generator.choice(colours), shape or generator.choice(shapes)) for _ in range(number)
        ]
        content = [*counted, *(generator.choice(others) for _ in range(total - number))]
        if is_held_out(content) == held_out:
            return Scene(tuple(sorted(content)), subject)


def ask(kind: str, shown: Scene, generator: random.Random) -> Question | None:
    """A question of `kind` about the scene, each answer equally often; None where there is none to ask."""
    question = KINDS[kind].ask(shown, generator)
    return None if question is None or question.answer(shown.content) is None else question


def ask_any_count(shown: Scene, generator: random.Random) -> Question:
    """A count of anything, 0 to 5; of the numbers that the scene has, each equally often."""
    by_number: dict[int, list[Thing]] = {}
    for subject in SUBJECTS:
        by_number.setdefault(_number(subject, shown.content), []).append(subject)
    number = generator.choice(sorted(number for number in by_number if number <= MOST_COUNTED))
    return Question("count", (generator.choice(by_number[number]),))


def telling_apart(kind: str, one: Scene, other: Scene, generator: random.Random) -> Question | None:
    """A question of `kind`, existence or a count, whose answers differ between two scenes; None where there is none."""
    if kind == "count":
        subjects = [one.subject, other.subject]
        asked = [Question("count", (subject,)) for subject in generator.sample(subjects, 2)]
    else:
        first, second = generator.sample((one, other), 2)
        asked = [
            Question("existence", (thing,)) for thing in generator.sample(first.content, len(first.content))
        ]
        asked += [Question("existence", (thing,)) for thing in second.content]
    return next((q for q in asked if q.answer(one.content) != q.answer(other.content)), None)


def _existence(shown: Scene, generator: random.Random) -> Question:
    """Half of the things that are not there have a colour and a shape that are, wherever the scene allows it."""
    there = set(shown.content)
    if generator.random() < 0.5:
        return Question("existence", (generator.choice(shown.content),))
    colours, shapes = ({thing[i] for thing in there} for i in (0, 1))
    absent = [thing for thing in ALL_KINDS if thing not in there]
    near = [thing for thing in absent if thing[0] in colours and thing[1] in shapes]
    return Question("existence", (generator.choice(near if near and generator.random() < 0.5 else absent),))


def _comparison(shown: Scene, generator: random.Random) -> Question:
    """Of two shapes with different numbers, so that the order decides."""
    numbers = {shape: sum(thing[1] == shape for thing in shown.content) for shape in SHAPES}
    unequal = [(a, b) for a in SHAPES for b in SHAPES if numbers[a] > numbers[b]]
    more, less = generator.choice(unequal) if unequal else generator.sample(SHAPES, 2)
    first, second = generator.sample((more, less), 2)
    return Question("comparison", (("", first), ("", second)))


def _attribute(kind: str, place: int) -> Callable[[Scene, random.Random], Question | None]:
    """Asks for the colour (place 0) or the shape (place 1) of what the other attribute picks out."""

    def asked(shown: Scene, generator: random.Random) -> Question | None:
        named = [("", shape) if place == 0 else (colour, "") for colour, shape in shown.content]
        alone = [what for what in named if _number(what, shown.content) == 1]
        return Question(kind, (generator.choice(alone),)) if alone else None

    return asked


def _number(what: Thing, content: Sequence[Thing]) -> int:
    return sum(matches(thing, what) for thing in content)


def _only(what: Thing, content: Sequence[Thing], place: int) -> str | None:
    found = [thing[place] for thing in content if matches(thing, what)]
    return found[0] if len(found) == 1 else None


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


class Kind(NamedTuple):
    """How a question is drawn for a scene, how it is worded, what is answered to it."""

    ask: Callable[[Scene, random.Random], Question | None]
    wording: Callable[[tuple[Thing, ...]], str]
    answer: Callable[[tuple[Thing, ...], Sequence[Thing]], str | None]


KINDS: dict[str, Kind] = {
    "existence": Kind(
        _existence,
        lambda about: f"is there a {' '.join(about[0])}?",
        lambda about, content: _yes(_number(about[0], content) > 0),
    ),
    "count": Kind(
        lambda shown, generator: Question("count", (shown.subject,)),
        lambda about: f"how many {plural(about[0])}?",
        lambda about, content: str(_number(about[0], content)),
    ),
    "comparison": Kind(
        _comparison,
        lambda about: f"are there more {plural(about[0])} than {plural(about[1])}?",
        lambda about, content: _yes(_number(about[0], content) > _number(about[1], content)),
    ),
    "colour": Kind(
        _attribute("colour", 0),
        lambda about: f"what colour is the {about[0][1]}?",
        lambda about, content: _only(about[0], content, 0),
    ),
    "shape": Kind(
        _attribute("shape", 1),
        lambda about: f"what shape is the {about[0][0]} thing?",
        lambda about, content: _only(about[0], content, 1),
    ),
    "caption": Kind(
        lambda shown, generator: Question("caption"),
        lambda about: "describe the image.",
        lambda about, content: in_order(content),
    ),
}
