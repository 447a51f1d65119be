"""Scenes of coloured shapes: caption, count, existence, comparison.

A fifth of all scenes with two things or more, by what they show, is held out: no family draws one for training.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Iterator, Sequence

import PIL.Image
from PIL import ImageDraw

from flamingo_lite.data.synthetic.canvas import HEIGHT, WIDTH, Colour, brightness, finish
from flamingo_lite.data.synthetic.picture import Painter, Picture, paint
from flamingo_lite.document import Document, Image, Text

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 40),
    "purple": (140, 50, 170),
    "orange": (245, 135, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
Thing = tuple[str, str]
"""(colour, shape)"""

MAX_THINGS = 6
HELD_OUT_SHARE = 5
"""One scene in so many is held out."""


def things(generator: random.Random, most: int = MAX_THINGS) -> list[Thing]:
    """One to `most` things, some of them alike, so that counts exceed one; never a held-out scene."""
    while True:
        number = generator.randint(1, most)
        colours = generator.sample(list(COLOURS), generator.randint(1, 3))
        shapes = generator.sample(SHAPES, generator.randint(1, 3))
        content = [(generator.choice(colours), generator.choice(shapes)) for _ in range(number)]
        if not is_held_out(content):
            return content


def is_held_out(content: Sequence[Thing]) -> bool:
    """Whether no training picture shows exactly these things. One thing alone never is: there are thirty of those."""
    digest = hashlib.sha256(in_order(content).encode()).digest()
    return len(content) > 1 and int.from_bytes(digest[:4]) % HELD_OUT_SHARE == 0


def in_order(content: Sequence[Thing]) -> str:
    """The things in words, in a fixed order: "blue star, red circle"."""
    return ", ".join(f"{colour} {shape}" for colour, shape in sorted(content))


def scene(content: Sequence[Thing]) -> Picture:
    """The picture of `content`, in any place; its words name the things in a fixed order."""
    return Picture(in_order(content), functools.partial(draw_scene, tuple(sorted(content))))


def scenes(generator: random.Random, painter: Painter = paint) -> Document:
    """One to three scenes, each with its caption or one to three questions."""
    segments: list[Image | Text] = []
    for _ in range(generator.randint(1, 3)):
        content = things(generator)
        shown = scene(content)
        segments.append(painter(shown, generator))
        if generator.random() < 0.4:
            segments += [Text(" caption:", loss=False), Text(f" {shown.words}", ends_chunk=True)]
            continue
        for _ in range(generator.randint(1, 3)):
            question, answer = generator.choice((_count, _exists, _compare))(content, generator)
            segments += [Text(f" {question}", loss=False), Text(f" {answer}", ends_chunk=True)]
    return Document(segments)


def matches(thing: Thing, what: Thing) -> bool:
    return all(wanted in ("", found) for found, wanted in zip(thing, what, strict=True))


def _what(content: Sequence[Thing], generator: random.Random) -> Thing:
    """A colour, a shape or both; more often than not of something that is there."""
    colour, shape = generator.choice(content)
    if generator.random() < 0.4:
        colour = generator.choice(list(COLOURS))
    if generator.random() < 0.4:
        shape = generator.choice(SHAPES)
    return generator.choice(((colour, shape), (colour, ""), ("", shape)))


def plural(what: Thing) -> str:
    colour, shape = what
    noun = {"": "things", "cross": "crosses"}.get(shape, f"{shape}s")
    return f"{colour} {noun}".strip()


def _count(content: Sequence[Thing], generator: random.Random) -> tuple[str, str]:
    what = _what(content, generator)
    return f"how many {plural(what)}?", str(sum(matches(thing, what) for thing in content))


def _exists(content: Sequence[Thing], generator: random.Random) -> tuple[str, str]:
    """Yes and no equally often wherever the scene allows a no."""
    wanted = generator.random() < 0.5
    for _ in range(20):
        what = (generator.choice(list(COLOURS)), generator.choice(SHAPES))
        if wanted:
            what = generator.choice(content)
        if any(matches(thing, what) for thing in content) == wanted:
            break
    colour, shape = what
    found = any(matches(thing, what) for thing in content)
    return f"is there a {colour} {shape}?", "yes" if found else "no"


def _compare(content: Sequence[Thing], generator: random.Random) -> tuple[str, str]:
    first, second = generator.sample(SHAPES, 2)
    more = sum(shape == first for _, shape in content) > sum(shape == second for _, shape in content)
    return f"are there more {plural(('', first))} than {plural(('', second))}?", "yes" if more else "no"


def draw_scene(content: Sequence[Thing], generator: random.Random) -> bytes:
    """The things in distinct cells of a jittered 2 x 4 grid on a light or dark ground, as JPEG bytes."""
    level = generator.choice((generator.randrange(0, 45), generator.randrange(205, 256)))
    ground = tuple(max(0, min(255, level + generator.randrange(-12, 13))) for _ in range(3))
    canvas = PIL.Image.new("RGB", (WIDTH, HEIGHT), ground)
    pen = ImageDraw.Draw(canvas)
    outline = (0, 0, 0) if brightness(ground) > 128 else (255, 255, 255)
    for ink, outlined in _laid_out(content, generator):
        if len(outlined) == 2:
            pen.ellipse(outlined, fill=ink, outline=outline)
        else:
            pen.polygon(outlined, fill=ink, outline=outline)
    return finish(canvas, generator)


def scene_boxes(
    content: Sequence[Thing], generator: random.Random
) -> list[tuple[float, float, float, float]]:
    """Where `draw_scene`, given an equal generator, puts each thing: left, top, right, bottom, in shares of the picture."""
    generator.choice((generator.randrange(0, 45), generator.randrange(205, 256)))
    for _ in range(3):
        generator.randrange(-12, 13)
    boxes = []
    for _, outlined in _laid_out(content, generator):
        x, y = ([point[axis] for point in outlined] for axis in range(2))
        boxes.append((min(x) / WIDTH, min(y) / HEIGHT, max(x) / WIDTH, max(y) / HEIGHT))
    return boxes


def _laid_out(
    content: Sequence[Thing], generator: random.Random
) -> Iterator[tuple[tuple[int, ...], list[tuple[float, float]]]]:
    """The ink of each thing, and its outline: the corners of a polygon, or two corners of the box of a circle."""
    cell = WIDTH / 4
    places = generator.sample([(column, row) for column in range(4) for row in range(2)], len(content))
    for (colour, shape), (column, row) in zip(content, places, strict=True):
        radius = generator.uniform(5, 6.8)
        x = (column + 0.5) * cell + generator.uniform(-1, 1)
        y = (row + 0.5) * cell + generator.uniform(-1, 1)
        ink = tuple(max(0, min(255, level + generator.randrange(-14, 15))) for level in COLOURS[colour])
        yield ink, _outline(shape, x, y, radius, generator.uniform(-0.3, 0.3))


def _outline(shape: str, x: float, y: float, radius: float, tilt: float) -> list[tuple[float, float]]:
    if shape == "circle":
        return [(x - radius, y - radius), (x + radius, y + radius)]
    arms: dict[str, list[tuple[float, float]]] = {
        "square": [(1.2, math.pi / 4 + i * math.pi / 2) for i in range(4)],
        "triangle": [(1.2, -math.pi / 2 + i * 2 * math.pi / 3) for i in range(3)],
        "star": [(1.25 if i % 2 == 0 else 0.5, -math.pi / 2 + i * math.pi / 5) for i in range(10)],
        "cross": [
            (length, i * math.pi / 2 + turn)
            for i in range(4)
            for length, turn in ((1.15, -0.3), (1.15, 0.3), (0.48, math.pi / 4))
        ],
    }
    return [
        (x + radius * r * math.cos(t + tilt), y + radius * r * math.sin(t + tilt)) for r, t in arms[shape]
    ]
