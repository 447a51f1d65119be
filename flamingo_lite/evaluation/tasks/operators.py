"""Operator induction: an image shows "a ? b", one hidden operator holds in an episode (VL-ICL bench).

Queries: operands uniform over the split's pairs, the rule uniform over the trained rules. Demonstrations: under the
query's rule, label first, from the trained pairs, each shown by one of a few renderings of the split's support, which
no query shares. `operator_induction_interleaved` has an image for each operand.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from flamingo_lite.data.synthetic import operators
from flamingo_lite.data.synthetic.canvas import Source, draw_text
from flamingo_lite.data.synthetic.picture import Picture, paint
from flamingo_lite.document import Image, Text
from flamingo_lite.evaluation.demonstrations import Example, Support, endlessly, episode_generator
from flamingo_lite.evaluation.metrics import extract_after_equals, extract_number
from flamingo_lite.evaluation.tasks.drawn import Drawn
from flamingo_lite.evaluation.tasks.task import Items, Segments, Style, Task, exact_match

RENDERINGS = 4
"""Images of each thing that demonstrations show: few, so that they are encoded once and met often."""

SPLITS = {
    "test": "trained pairs, unseen renderings",
    "handwritten": "trained pairs, unseen handwriting",
    "held_out_pairs": "operand pairs never seen",
    "held_out_rule": "a rule never seen with images",
}


def has_read(text: str, example: Example) -> bool:
    return text.rpartition("=")[0].split() == example.facts["expression"].split()


STYLES = {
    "direct": Style(exact_match(extract_number)),
    "spelled": Style(exact_match(extract_after_equals), has_read=has_read),
}


@dataclass(frozen=True)
class Form:
    """How operands are shown: a query's images, drawn from a generator, and those of a support's rendering."""

    name: str
    draw: Callable[[int, int, random.Random, Source], tuple[Image, ...]]
    support: Callable[[str, int, int, int], tuple[Image, ...]]


def write_together(example: Example, style: str, is_answered: bool) -> Segments:
    """An example as training writes it, up to its answer or with it."""
    # The answer is the example's, not the rule's: a control may have changed it.
    a, b = operands(example)
    segments = operators.item(example.images[0], a, b, int(example.answer), _style(style))
    return segments if is_answered else segments[:-1]


def write_apart(example: Example, style: str, is_answered: bool) -> Segments:
    first, second = example.images
    a, b = operands(example)
    segments = operators.item(second, a, b, int(example.answer), _style(style))
    return first, Text(" ?", loss=False), *(segments if is_answered else segments[:-1])


def operands(example: Example) -> tuple[int, int]:
    a, b = map(int, example.facts["expression"].split(" ? "))
    return a, b


def _example(name: str, images: tuple[Image, ...], a: int, b: int, answer: int) -> Example:
    # The image asks, not the text.
    return Example(name, images, "", str(answer), facts={"expression": f"{a} ? {b}"})


def load(form: Form, renderings: int = RENDERINGS) -> Items:
    return Items(
        query=lambda split, query_id: _query(form, split, query_id)[0],
        support=lambda split, query_id: _support(form, split, _query(form, split, query_id)[1], renderings),
    )


@lru_cache(maxsize=4096)
def _query(form: Form, split: str, query_id: int) -> tuple[Example, str]:
    """The query and its rule."""
    generator = episode_generator("query", form.name, split, query_id)
    a, b = generator.choice(operators.pairs(held_out=split == "held_out_pairs"))
    rule = "larger" if split == "held_out_rule" else generator.choice(list(operators.TRAINED_RULES))
    images = form.draw(a, b, generator, _source(split))
    answer = operators.RULES[rule](a, b)
    return _example(f"{split}/query/{query_id}", images, a, b, answer), rule


@lru_cache(maxsize=64)
def _support(form: Form, split: str, rule: str, renderings: int) -> Support:
    among = operators.pairs(held_out=False)
    answered = [(a, b, operators.RULES[rule](a, b)) for a, b in among]
    # Label first: answers beyond 0 to 9 would betray the operator without an image.
    shown = [(a, b, answer) for a, b, answer in answered if 0 <= answer <= 9]

    def example(a: int, b: int, answer: int, rendering: int) -> Example:
        images = form.support(split, a, b, rendering)
        return _example(f"{split}/support/{a}?{b}/{rendering}", images, a, b, answer)

    def draw(generator: random.Random) -> Example:
        a, b = operators.draw_operands(generator, rule, among)
        return example(a, b, operators.RULES[rule](a, b), generator.randrange(renderings))

    return Support(
        key=f"{split}/{rule}",
        examples=Drawn(len(shown) * renderings, lambda i: example(*shown[i // renderings], i % renderings)),
        answers=[str(answer) for _, _, answer in shown for _ in range(renderings)],
        draws=endlessly(draw),
    )


def _draw_together(a: int, b: int, generator: random.Random, source: Source) -> tuple[Image, ...]:
    return (operators.draw_image(a, b, generator, source),)


@lru_cache(maxsize=4096)
def _support_together(split: str, a: int, b: int, rendering: int) -> tuple[Image, ...]:
    generator = random.Random(f"support/operator_induction/{split}/{a}/{b}/{rendering}")
    return _draw_together(a, b, generator, _source(split))


def _draw_digit(digit: int, generator: random.Random, source: Source) -> Image:
    return paint(Picture(str(digit), lambda g: draw_text(str(digit), g, source)), generator)


def _draw_apart(a: int, b: int, generator: random.Random, source: Source) -> tuple[Image, ...]:
    return _draw_digit(a, generator, source), _draw_digit(b, generator, source)


@lru_cache(maxsize=4096)
def _support_digit(split: str, digit: int, rendering: int) -> Image:
    generator = random.Random(f"support/operator_induction_interleaved/{split}/{digit}/{rendering}")
    return _draw_digit(digit, generator, _source(split))


def _support_apart(split: str, a: int, b: int, rendering: int) -> tuple[Image, ...]:
    # Twice the same image in 3 ? 3 could be told without reading it.
    return _support_digit(split, a, rendering), _support_digit(split, b, (rendering + 1) % RENDERINGS)


def _source(split: str) -> Literal["test", "handwritten"]:
    return "handwritten" if split == "handwritten" else "test"


def _style(name: str) -> Literal["direct", "spelled"]:
    return "direct" if name == "direct" else "spelled"


TOGETHER = Form("operator_induction", _draw_together, _support_together)
APART = Form("operator_induction_interleaved", _draw_apart, _support_apart)

OPERATOR_INDUCTION = Task(
    name=TOGETHER.name,
    asks='what "a ? b" is under the operator that the demonstrations share',
    splits=SPLITS,
    styles=STYLES,
    write=write_together,
    load=lambda files: load(TOGETHER),
    instruction="The same operator stands for every question mark: +, - or x. Give the result.",
)
OPERATOR_INDUCTION_INTERLEAVED = Task(
    name=APART.name,
    asks="the same, with an image for each operand",
    splits=SPLITS,
    styles=STYLES,
    write=write_apart,
    load=lambda files: load(APART),
    instruction=OPERATOR_INDUCTION.instruction,
)
