"""Reading: what the image says, transcribed: numbers, expressions and invented words (as VL-ICL's TextOCR asks it).

Demonstrations show the form alone. No picture of a training shows a text whose only digits are a held-out pair.
"""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Literal

from flamingo_lite.data.synthetic import operators
from flamingo_lite.data.synthetic.canvas import draw_text
from flamingo_lite.data.synthetic.picture import Picture, paint
from flamingo_lite.data.synthetic.reading import text as draw_words
from flamingo_lite.evaluation.demonstrations import (
    Example,
    Support,
    episode_generator,
    uniform_support,
)
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.strings import anls
from flamingo_lite.evaluation.tasks.drawn import Drawn
from flamingo_lite.evaluation.tasks.task import (
    Answer,
    Items,
    Segments,
    Style,
    Task,
    exact_match,
    first_line,
    segments,
)

NAME = "reading"
TEXTS = 64


def transcribed(text: str) -> str | None:
    """The first line with single spaces."""
    line = first_line(text)
    return None if line is None else " ".join(line.split())


def write(example: Example, style: str, is_answered: bool) -> Segments:
    return segments(example, "", f" {example.answer}" if is_answered else None)


@lru_cache(maxsize=4096)
def _query(split: str, query_id: int) -> Example:
    generator = episode_generator("query", NAME, split, query_id)
    if split == "held_out_pairs":
        a, b = generator.choice(operators.pairs(held_out=True))
        return _example(f"{split}/query/{query_id}", f"{a} ? {b}", split, generator)
    return _example(f"{split}/query/{query_id}", _words(split, generator), split, generator)


@lru_cache(maxsize=1024)
def _demonstration(split: str, number: int) -> Example:
    name = f"{split}/support/{number}"
    generator = random.Random(f"{NAME}/{name}")
    return _example(name, _words(split, generator), split, generator)


@lru_cache(maxsize=8)
def _support(split: str) -> Support:
    return uniform_support(split, Drawn(TEXTS, lambda number: _demonstration(split, number)))


def _words(split: str, generator: random.Random) -> str:
    words = draw_words(generator)
    # Only digits are written by hand.
    while split == "handwritten" and not any(glyph.isdecimal() for glyph in words):
        words = draw_words(generator)
    return words


def _example(name: str, words: str, split: str, generator: random.Random) -> Example:
    source: Literal["test", "handwritten"] = "handwritten" if split == "handwritten" else "test"
    image = paint(Picture(words, partial(draw_text, words, source=source)), generator)
    return Example(name, (image,), "", words)


def _score(text: str, example: Example) -> Scored:
    return exact_match(transcribed)(text, example)


def _figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    found = [anls(of.scored.extracted or "", of.example.right_answers).score or 0.0 for of in answers]
    return {"anls": sum(found) / len(found) if found else None}


READING = Task(
    name=NAME,
    asks="what the image says",
    splits={
        "test": "unseen lettering",
        "handwritten": "unseen handwriting",
        "held_out_pairs": "operand pairs never seen",
    },
    styles={"direct": Style(_score, max_new_tokens=16, figures=_figures)},
    write=write,
    load=lambda files: Items(_query, lambda split, query_id: _support(split)),
    instruction="Read the text in the image.",
)
