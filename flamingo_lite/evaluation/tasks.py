"""The tasks: where queries and demonstrations come from, how a prompt is written, where its answer is found.

A task is data behind five methods (`Task`); everything it returns is a pure function of its arguments.
`operator_induction`: an image shows "a ? b", one hidden operator holds in an episode (VL-ICL bench).
"""

import random
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal, Protocol

from flamingo_lite.data.synthetic import operators
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example, draw_demonstrations, episode_generator
from flamingo_lite.evaluation.metrics import Extract, extract_after_equals, extract_number


class Task(Protocol):
    """What the runner needs of a task. `splits`: name to a few words; `styles`: name to its extraction."""

    name: str
    splits: Mapping[str, str]
    styles: Mapping[str, Extract]

    def query(self, split: str, query_id: int) -> Example: ...

    def other_query(self, split: str, query_id: int, seed: int) -> Example:
        """Another query of the split, whose image is to stand in for that of `query_id`."""
        ...

    def demonstrations(self, split: str, query_id: int, seed: int, shots: int) -> tuple[Example, ...]:
        """Nested: those for k shots are the first k of those for more."""
        ...

    def prompt(self, demonstrations: Iterable[Example], query: Example, style: str) -> Document:
        """The document that ends where the answer begins."""
        ...

    def has_read(self, query: Example, style: str, raw: str) -> bool | None:
        """Whether `raw` says what the query's image shows; None where the style asks for no such thing."""
        ...


# Another query's image is looked for among this many neighbours, so that few images are drawn for it alone.
NEIGHBOURS = 100


class OperatorInduction:
    """Queries: operands uniform over the split's pairs, the rule uniform over the trained rules.

    Demonstrations: under the query's rule, label first, from the trained pairs, each shown by one of
    `renderings` images of the split's support, which no query shares.
    """

    name = "operator_induction"
    splits: Mapping[str, str] = {
        "test": "trained pairs, unseen renderings",
        "handwritten": "trained pairs, unseen handwriting",
        "held_out_pairs": "operand pairs never seen",
        "held_out_rule": "a rule never seen with images",
    }
    styles: Mapping[str, Extract] = {"direct": extract_number, "spelled": extract_after_equals}

    def __init__(self, renderings: int = 4) -> None:
        self.renderings = renderings

    def query(self, split: str, query_id: int) -> Example:
        return _query(split, query_id)[0]

    def other_query(self, split: str, query_id: int, seed: int) -> Example:
        """One of other operands: another rendering of the same pair would be no mismatch."""
        query = self.query(split, query_id)
        generator = episode_generator("other", self.name, split, query_id, seed)
        first = query_id - query_id % NEIGHBOURS
        while True:
            other = self.query(split, generator.randrange(first, first + NEIGHBOURS))
            if other.expression != query.expression:
                return other

    def demonstrations(self, split: str, query_id: int, seed: int, shots: int) -> tuple[Example, ...]:
        return _demonstrations(split, query_id, seed, shots, self.renderings)

    def prompt(self, demonstrations: Iterable[Example], query: Example, style: str) -> Document:
        # A demonstration's answer is the example's, not the rule's: a control may have changed it.
        segments: list[Image | Text] = []
        for example in demonstrations:
            a, b = map(int, example.expression.split(" ? "))
            segments += operators.item(example.image, a, b, int(example.answer), _style(style))
        return Document([*segments, *operators.prompt(query.image, _style(style))])

    def has_read(self, query: Example, style: str, raw: str) -> bool | None:
        if style != "spelled":
            return None
        return raw.rpartition("=")[0].split() == query.expression.split()


def _source(split: str) -> Literal["test", "handwritten"]:
    return "handwritten" if split == "handwritten" else "test"


def _style(name: str) -> Literal["direct", "spelled"]:
    return "direct" if name == "direct" else "spelled"


@lru_cache(maxsize=4096)
def _query(split: str, query_id: int) -> tuple[Example, str]:
    """The query and its rule."""
    generator = episode_generator("query", OperatorInduction.name, split, query_id)
    a, b = generator.choice(operators.pairs(held_out=split == "held_out_pairs"))
    rule = "larger" if split == "held_out_rule" else generator.choice(list(operators.TRAINED_RULES))
    image = operators.draw_image(a, b, generator, _source(split))
    answer = operators.RULES[rule](a, b)
    return Example(f"{split}/query/{query_id}", image, f"{a} ? {b}", str(answer)), rule


@lru_cache(maxsize=4096)
def _support_image(split: str, a: int, b: int, rendering: int) -> Image:
    generator = random.Random(f"support/{OperatorInduction.name}/{split}/{a}/{b}/{rendering}")
    return operators.draw_image(a, b, generator, _source(split))


@lru_cache(maxsize=65536)
def _demonstrations(split: str, query_id: int, seed: int, shots: int, renderings: int) -> tuple[Example, ...]:
    query, rule = _query(split, query_id)
    pairs = operators.pairs(held_out=False)

    def draw(generator: random.Random) -> Example:
        a, b = operators.draw_operands(generator, rule, pairs)
        rendering = generator.randrange(renderings)
        image = _support_image(split, a, b, rendering)
        answer = operators.RULES[rule](a, b)
        return Example(f"{split}/support/{a}?{b}/{rendering}", image, f"{a} ? {b}", str(answer))

    generator = episode_generator("demonstrations", OperatorInduction.name, split, query_id, seed)
    try:
        return draw_demonstrations(draw, generator, shots, exclude=[query.image.id])
    except FlamingoError as error:
        raise FlamingoError(f"{OperatorInduction.name}, split {split}: {error}") from None


TASKS: dict[str, Task] = {task.name: task for task in (OperatorInduction(),)}


def spoken(name: str) -> str:
    """The name of a split, style or condition as a reader would write it: "held-out pairs"."""
    return name.replace("held_out", "held-out").replace("_", " ")


def describe_split(task: str, split: str) -> str:
    """A few words on a split, for a reader; its name where the task is not one of ours."""
    known = TASKS.get(task)
    return known.splits.get(split, split) if known else split
