"""Reading: rendered numbers, expressions and words of any length, transcribed.

No picture shows a held-out operand pair: a text whose only digits are such a pair, or in which such a pair stands
around a "?", is never drawn.
"""

from __future__ import annotations

import functools
import random

from flamingo_lite.data.synthetic.canvas import draw_text
from flamingo_lite.data.synthetic.operators import pairs
from flamingo_lite.data.synthetic.picture import Painter, Picture, paint
from flamingo_lite.document import Document, Image, Text

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SEPARATORS = (" ", " ? ", " + ", " - ", " = ")


def reading(generator: random.Random, painter: Painter = paint) -> Document:
    """One to four pictures of text, each followed by what it says."""
    segments: list[Image | Text] = []
    for _ in range(generator.randint(1, 4)):
        words = text(generator)
        segments.append(painter(Picture(words, functools.partial(draw_text, words)), generator))
        segments.append(Text(f" {words}", ends_chunk=True))
    return Document(segments)


def text(generator: random.Random) -> str:
    """A run of digits with separators (three in four) or an invented word."""
    if generator.random() < 0.25:
        return invented_word(generator)
    while True:
        words = _digits(generator)
        if not shows_held_out_pair(words):
            return words


def _digits(generator: random.Random) -> str:
    """One to six digits; the separators are mixed freely or one alone."""
    digits = [str(generator.randrange(10)) for _ in range(generator.choice((1, 2, 2, 3, 3, 3, 4, 4, 5, 6)))]
    separators = generator.choice(((" ",), (" ? ",), SEPARATORS, SEPARATORS))
    words = digits[0]
    for digit in digits[1:]:
        words += generator.choice(separators) + digit
    if generator.random() < 0.15:
        words = generator.choice(("? ", "= ", "- ", "+ ")) + words
    return words if len(words.replace(" ", "")) <= 9 else "".join(digits)


def shows_held_out_pair(words: str) -> bool:
    """Whether `words` has a held-out pair as its only digits, or around a question mark."""
    glyphs = [glyph for glyph in words if glyph != " "]
    digits = tuple(int(glyph) for glyph in glyphs if glyph.isdecimal())
    if digits in pairs(held_out=True):
        return True
    return any(
        middle == "?" and a.isdecimal() and b.isdecimal() and (int(a), int(b)) in pairs(held_out=True)
        for a, middle, b in zip(glyphs, glyphs[1:], glyphs[2:], strict=False)
    )


def invented_word(generator: random.Random) -> str:
    """One to three syllables."""
    return "".join(
        generator.choice(CONSONANTS) + generator.choice(VOWELS) + generator.choice(("", "", "n", "r", "s"))
        for _ in range(generator.choice((1, 2, 2, 3)))
    )
