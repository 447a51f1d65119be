"""Operator induction: pictures of "a ? b", and one rule per episode that only the answers of the examples betray.

Examples are drawn label first: an answer uniform over 0 to 9, then operands that give it under the rule. Drawn the
other way, eight answers alone would betray the operator 99.9% of the time and nobody would have to look at a picture.
The query's operands are uniform, so its answer runs from -9 to 81.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from flamingo_lite.data.synthetic.canvas import Source, draw_text
from flamingo_lite.data.synthetic.picture import Painter, Picture, paint
from flamingo_lite.document import Document, Image, Text

Style = Literal["direct", "spelled"]
Pair = tuple[int, int]

RULES: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "larger": max,
    "smaller": min,
    "first": lambda a, b: a,
    "second": lambda a, b: b,
}
TRAINED_RULES = ("add", "subtract", "multiply")
"""The rules of the task."""

OTHER_RULES = ("smaller", "first", "second")
"""Further rules that pictures are shown under. `larger` is held out: it is met in words only."""

MAX_SHOTS = 8
SCRAMBLED_QUERIES = 4


@functools.cache
def pairs(held_out: bool) -> tuple[Pair, ...]:
    """The 20 operand pairs that no picture of any training shows, or the other 80.

    Every digit is held out twice on each side, so no digit is rare in training. The seed is the first that leaves every
    answer of 0 to 9 a trained pair under every rule, and holds out no pair together with its mirror image.
    """
    generator = random.Random("flamingo_lite held-out operand pairs 22")
    first, second = list(range(10)), list(range(10))
    generator.shuffle(first)
    generator.shuffle(second)
    chosen = {(first[i], second[(i + shift) % 10]) for i in range(10) for shift in (0, 3)}
    return tuple((a, b) for a in range(10) for b in range(10) if ((a, b) in chosen) == held_out)


@functools.cache
def _by_answer(rule: str, among: tuple[Pair, ...]) -> dict[int, tuple[Pair, ...]]:
    """The pairs that give each answer of 0 to 9."""
    found: dict[int, list[Pair]] = {}
    for pair in among:
        answer = RULES[rule](*pair)
        if 0 <= answer <= 9:
            found.setdefault(answer, []).append(pair)
    return {answer: tuple(found[answer]) for answer in sorted(found)}


def draw_operands(generator: random.Random, rule: str, among: Sequence[Pair]) -> Pair:
    """Operands of an example, label first: an answer uniform over 0 to 9, then a pair of `among` that gives it."""
    by_answer = _by_answer(rule, tuple(among))
    return generator.choice(by_answer[generator.choice(tuple(by_answer))])


def picture(a: int, b: int, source: Source = "train") -> Picture:
    """The picture "a ? b"."""
    words = f"{a} ? {b}"
    return Picture(words, lambda generator: draw_text(words, generator, source))


def draw_image(a: int, b: int, generator: random.Random, source: Source = "train") -> Image:
    """An image of "a ? b" (JPEG bytes), which knows its words."""
    return paint(picture(a, b, source), generator)


def item(shown: Image | Text, a: int, b: int, answer: int, style: Style) -> tuple[Image | Text, ...]:
    """An example: the picture and its answer, at once or after the expression has been read out."""
    if style == "direct":
        return shown, Text(" =", loss=False), Text(f" {answer}", ends_chunk=True)
    return shown, Text(f" {a} ? {b} = {answer}", ends_chunk=True)


def prompt(shown: Image | Text, style: Style) -> tuple[Image | Text, ...]:
    """The query: an example without its answer."""
    return (shown, Text(" =")) if style == "direct" else (shown,)


Render = Callable[[int, int, int, Style, Painter, random.Random], tuple[Image | Text, ...]]


def together(
    a: int, b: int, answer: int, style: Style, painter: Painter, generator: random.Random
) -> tuple[Image | Text, ...]:
    """An example as one picture."""
    return item(painter(picture(a, b), generator), a, b, answer, style)


def apart(
    a: int, b: int, answer: int, style: Style, painter: Painter, generator: random.Random
) -> tuple[Image | Text, ...]:
    """An example as a picture for each operand, with the "?" between them in the text."""
    first, second = (
        painter(Picture(str(digit), functools.partial(draw_text, str(digit))), generator) for digit in (a, b)
    )
    return (first, Text(" ?", loss=False), *item(second, a, b, answer, style))


def operator_induction(generator: random.Random, painter: Painter = paint) -> Document:
    """An episode of 0 to 8 examples and a query with its answer, all trained on; only trained rules and pairs."""
    return _drawn_episode(generator, painter, together)


def operator_induction_interleaved(generator: random.Random, painter: Painter = paint) -> Document:
    """The same with a picture for each operand."""
    return _drawn_episode(generator, painter, apart)


def rule_induction(generator: random.Random, painter: Painter = paint) -> Document:
    """The same under a rule that is no operator: the more rules there are, the less the operands alone betray."""
    return _drawn_episode(generator, painter, together, OTHER_RULES)


def operator_induction_scrambled(generator: random.Random, painter: Painter = paint) -> Document:
    """Examples whose answers are permuted, then queries each under a rule of its own, whose answers alone are trained on.

    Label-first operands betray the rule to some degree (6 ? 0 is rarely a sum, 8 ? 5 never a product): without such
    documents a model learns to do without the answers.
    """
    rule, style, operands = _drawn_operands(generator, TRAINED_RULES, generator.randint(3, MAX_SHOTS))
    examples = operands[:-1]
    answers = [RULES[rule](*pair) for pair in examples]
    generator.shuffle(answers)
    shown = [
        replace(segment, loss=False) if isinstance(segment, Text) else segment
        for pair, answer in zip(examples, answers, strict=True)
        for segment in together(*pair, answer, style, painter, generator)
    ]
    asked: list[Text | Image] = []
    for _ in range(SCRAMBLED_QUERIES):
        a, b = generator.choice(pairs(held_out=False))
        asked += together(a, b, RULES[generator.choice(TRAINED_RULES)](a, b), style, painter, generator)
    return Document([*shown, *asked], meta={"rule": rule, "style": style})


def _drawn_episode(
    generator: random.Random, painter: Painter, render: Render, rules: Sequence[str] = TRAINED_RULES
) -> Document:
    rule, style, operands = _drawn_operands(generator, rules, generator.randint(0, MAX_SHOTS))
    answered = [(a, b, RULES[rule](a, b)) for a, b in operands]
    return Document(
        [segment for example in answered for segment in render(*example, style, painter, generator)],
        meta={"rule": rule, "style": style},
    )


def _drawn_operands(
    generator: random.Random, rules: Sequence[str], shots: int
) -> tuple[str, Style, list[Pair]]:
    """An episode's rule and style, the operands of its `shots` examples, and last the query's."""
    rule = generator.choice(rules)
    # Reading out is learnt soon; carrying two digits through one position takes more episodes.
    style: Style = generator.choice(("direct", "direct", "spelled"))
    trained = pairs(held_out=False)
    operands = [draw_operands(generator, rule, trained) for _ in range(shots)]
    return rule, style, [*operands, generator.choice(trained)]
