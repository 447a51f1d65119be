"""A picture before it is painted: what it shows in words, and how to draw it from a generator.

An episode is composed of pictures and texts; a painter turns a picture into an `Image`, or, when only the text twin
is wanted, into its words. Both take one number from the generator, so an episode and its twin agree in everything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from flamingo_lite.document import Image, Text


@dataclass(frozen=True)
class Picture:
    """`draw(generator)` gives JPEG bytes that show `words`."""

    words: str
    draw: Callable[[random.Random], bytes]


Painter = Callable[[Picture, random.Random], Image | Text]


def paint(picture: Picture, generator: random.Random) -> Image:
    """The picture as an `Image` that knows its words."""
    return Image(picture.draw(random.Random(generator.getrandbits(64))), words=picture.words)


def in_words(picture: Picture, generator: random.Random) -> Text:
    """The picture as its words, as `Document.text_twin` writes them, without drawing anything."""
    generator.getrandbits(64)
    return Text(f"[{picture.words}]", loss=False)
