"""Open naming: invented names are bound to kinds in the demonstrations, and the query is to be named (VL-ICL's open_mi).

Four kinds an episode, by shape or by colour, whose names are drawn anew for each query. Demonstrations go
through the kinds round after round, so that at four shots all names have been given.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from flamingo_lite.data.synthetic.picture import paint
from flamingo_lite.data.synthetic.reading import invented_word
from flamingo_lite.data.synthetic.scenes import COLOURS, SHAPES, Thing, scene
from flamingo_lite.document import Image
from flamingo_lite.evaluation.demonstrations import Example, Support, episode_generator
from flamingo_lite.evaluation.tasks.drawn import Drawn, support_image
from flamingo_lite.evaluation.tasks.task import (
    Items,
    Segments,
    Style,
    Task,
    exact_match,
    first_line,
    ranked,
    segments,
)

NAME = "open_naming"
KINDS = 4
RENDERINGS = 4

DIRECT = Style(exact_match(first_line))


@dataclass(frozen=True)
class Binding:
    """An episode: which kinds there are, what each is called, and what they vary in besides."""

    kinds: tuple[str, ...]
    names: tuple[str, ...]
    others: tuple[str, ...]
    is_by_shape: bool

    def thing(self, kind: int, other: int) -> Thing:
        named, varied = self.kinds[kind], self.others[other]
        return (varied, named) if self.is_by_shape else (named, varied)


def write(example: Example, style: str, is_answered: bool) -> Segments:
    return segments(example, " is a", f" {example.answer}" if is_answered else None)


@lru_cache(maxsize=4096)
def binding(split: str, query_id: int) -> Binding:
    generator = episode_generator("binding", NAME, split, query_id)
    is_by_shape = generator.random() < 0.5
    kinds = generator.sample(SHAPES if is_by_shape else list(COLOURS), KINDS)
    names: list[str] = []
    while len(names) < KINDS:
        if (name := invented_word(generator)) not in names:
            names.append(name)
    others = tuple(COLOURS) if is_by_shape else SHAPES
    return Binding(tuple(kinds), tuple(names), others, is_by_shape)


@lru_cache(maxsize=4096)
def query(split: str, query_id: int) -> Example:
    generator = episode_generator("query", NAME, split, query_id)
    bound = binding(split, query_id)
    kind, other = generator.randrange(KINDS), generator.randrange(len(bound.others))
    image = paint(scene([bound.thing(kind, other)]), generator)
    return _example(f"{split}/query/{query_id}", image, bound, kind)


@lru_cache(maxsize=1024)
def support(split: str, query_id: int) -> Support:
    bound = binding(split, query_id)
    size = len(bound.others) * RENDERINGS

    def example(number: int) -> Example:
        kind, rest = divmod(number, size)
        other, rendering = divmod(rest, RENDERINGS)
        image = support_image(NAME, split, bound.thing(kind, other), rendering)
        return _example(f"{split}/support/{query_id}/{number}", image, bound, kind)

    def draws(generator: random.Random) -> Iterator[Example]:
        while True:
            for kind in generator.sample(range(KINDS), KINDS):
                yield example(kind * size + generator.randrange(size))

    return Support(
        key=f"{split}/{query_id}",
        examples=Drawn(KINDS * size, example),
        answers=[bound.names[number // size] for number in range(KINDS * size)],
        draws=draws,
    )


def _example(name: str, image: Image, bound: Binding, kind: int) -> Example:
    return Example(name, (image,), "is a", bound.names[kind], choices=bound.names)


OPEN_NAMING = Task(
    name=NAME,
    asks="what the thing is called, by names that the demonstrations invent",
    splits={"test": "names and renderings of the episode alone"},
    styles={"direct": DIRECT, **ranked(DIRECT)},
    write=write,
    load=lambda files: Items(query, support),
    instruction="Name the thing.",
)
