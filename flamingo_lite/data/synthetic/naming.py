"""Naming: invented names bound to shapes or colours within an episode, to be used again for the query."""

from __future__ import annotations

import random

from flamingo_lite.data.synthetic.picture import Painter, paint
from flamingo_lite.data.synthetic.reading import invented_word
from flamingo_lite.data.synthetic.scenes import COLOURS, SHAPES, Thing, scene
from flamingo_lite.document import Document, Image, Text


def naming(generator: random.Random, painter: Painter = paint) -> Document:
    """Two to four kinds (a shape, or a colour, decides), each named at least once, then named again in any order."""
    by_shape = generator.random() < 0.5
    number = generator.randint(2, 4)
    kinds = generator.sample(SHAPES if by_shape else list(COLOURS), number)
    names: dict[str, str] = {}
    while len(names) < number:
        name = invented_word(generator)
        if name not in names.values():
            names[kinds[len(names)]] = name
    order = generator.sample(kinds, number) + [
        generator.choice(kinds) for _ in range(generator.randint(1, 5))
    ]
    segments: list[Image | Text] = []
    for position, kind in enumerate(order):
        other = generator.choice(list(COLOURS) if by_shape else SHAPES)
        thing: Thing = (other, kind) if by_shape else (kind, other)
        segments.append(painter(scene([thing]), generator))
        segments.append(Text(" is a", loss=False))
        # The first time a name is free, so nothing can be learnt from it.
        segments.append(Text(f" {names[kind]}", loss=position >= number, ends_chunk=True))
    return Document(segments)
