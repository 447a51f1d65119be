"""What the tiny language model reads: the text twins of all families, longer and with more rules than the pictures.

Some episodes are scrambled (the answers of the examples permuted, the query's rule drawn anew): they teach that the
answers carry the rule, and that examples whose answers fit nothing say nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from flamingo_lite.data.synthetic.naming import naming
from flamingo_lite.data.synthetic.operators import (
    RULES,
    TRAINED_RULES,
    Pair,
    Style,
    apart,
    draw_operands,
    together,
)
from flamingo_lite.data.synthetic.picture import Painter, Picture, in_words
from flamingo_lite.data.synthetic.reading import reading
from flamingo_lite.data.synthetic.scenes import scenes
from flamingo_lite.document import Document, Image, Text

ALL_PAIRS: tuple[Pair, ...] = tuple((a, b) for a in range(10) for b in range(10))
WEIGHTS = {"operators": 0.62, "reading": 0.12, "scenes": 0.13, "naming": 0.08, "chat": 0.05}


def _bare(picture: Picture, generator: random.Random) -> Text:
    generator.getrandbits(64)
    return Text(picture.words, loss=False)


def operators(generator: random.Random, examples: int) -> Document:
    """An episode of up to `examples` examples over all pairs and rules; the later half has uniform operands."""
    rule = generator.choice(TRAINED_RULES if generator.random() < 0.7 else tuple(RULES))
    style: Style = generator.choice(("direct", "direct", "spelled"))
    render = together if generator.random() < 0.8 else apart
    painter: Painter = (
        _bare if style == "direct" and render is together and generator.random() < 0.1 else in_words
    )
    queries = max(1, examples // 3)
    shots = generator.randint(0, examples - queries)
    shown = [draw_operands(generator, rule, ALL_PAIRS) for _ in range(shots)]
    answers = [RULES[rule](a, b) for a, b in shown]
    scrambled = shots > 1 and generator.random() < 0.06
    if scrambled:
        generator.shuffle(answers)
        rule, queries = generator.choice(TRAINED_RULES), 1
    asked = [generator.choice(ALL_PAIRS) for _ in range(queries)]
    answered = [(*pair, answer) for pair, answer in zip(shown, answers, strict=True)]
    answered += [(a, b, RULES[rule](a, b)) for a, b in asked]
    return Document(
        [segment for example in answered for segment in render(*example, style, painter, generator)]
    )


def chat(generator: random.Random, turns: int) -> Document:
    """Questions about scenes as a conversation."""
    segments: list[Text] = []
    for _ in range(turns):
        for segment in scenes(generator, in_words):
            assert isinstance(segment, Text)
            if segment.loss:
                segments.append(Text(f" assistant:{segment.text}", ends_chunk=True))
            else:
                segments.append(
                    Text(
                        segment.text if segment.text.startswith("[") else f" user:{segment.text}", loss=False
                    )
                )
    return Document(segments)


def _several(
    family: Callable[[random.Random, Painter], Document],
) -> Callable[[random.Random, int], Document]:
    def several(generator: random.Random, number: int) -> Document:
        segments: list[Text | Image] = []
        for _ in range(number):
            segments.extend(family(generator, in_words))
        return Document(segments)

    return several


KINDS: dict[str, Callable[[random.Random, int], Document]] = {
    "operators": lambda generator, size: operators(generator, 3 + 12 * size),
    "reading": _several(reading),
    "scenes": _several(scenes),
    "naming": lambda generator, size: naming(generator, in_words),
    "chat": chat,
}


def text_document(generator: random.Random, size: int) -> Document:
    """A document of the mixture; `size` 1 is about 100 tokens, 8 fills a context of 1,024."""
    kind = generator.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return KINDS[kind](generator, size)
