"""Matching: do two images match? Whether by colour or by shape only the demonstrations say (after VL-ICL's matching_mi).

Yes and no are equally likely, and so is it, independently, whether the things also agree in what does not count: the
answer needs both images and the relation.
"""

import random
from functools import lru_cache

from flamingo_lite.data.synthetic.picture import paint
from flamingo_lite.data.synthetic.scenes import COLOURS, SHAPES, Thing, scene
from flamingo_lite.evaluation.demonstrations import (
    Example,
    Support,
    episode_generator,
    uniform_support,
)
from flamingo_lite.evaluation.tasks.drawn import Drawn, support_image
from flamingo_lite.evaluation.tasks.existence import YES_NO, score_yes_no, yes_no_figures
from flamingo_lite.evaluation.tasks.task import (
    Items,
    Segments,
    Style,
    Task,
    balanced_choice,
    ranked,
    segments,
)

NAME = "matching"
RELATIONS = ("colour", "shape")
PAIRS = 24
"""Pairs of a support with each answer."""
RENDERINGS = 6

DIRECT = Style(score_yes_no, metric="accuracy", figures=yes_no_figures)


def write(example: Example, style: str, is_answered: bool) -> Segments:
    return segments(example, " same?", f" {example.answer}" if is_answered else None)


def load() -> Items:
    return Items(_query, lambda split, query_id: _support(split, relation(split, query_id)))


def relation(split: str, query_id: int) -> str:
    return episode_generator("relation", NAME, split, query_id).choice(RELATIONS)


@lru_cache(maxsize=4096)
def _query(split: str, query_id: int) -> Example:
    answer = balanced_choice(YES_NO, "answer", NAME, split, query_id)
    generator = episode_generator("query", NAME, split, query_id)
    first, second = draw_pair(relation(split, query_id), answer == "yes", generator)
    images = paint(scene([first]), generator), paint(scene([second]), generator)
    return Example(f"{split}/query/{query_id}", images, "same?", answer, choices=YES_NO)


@lru_cache(maxsize=64)
def _support(split: str, decides: str) -> Support:
    def example(number: int) -> Example:
        answer = YES_NO[number // PAIRS]
        name = f"{split}/support/{decides}/{number}"
        generator = random.Random(f"{NAME}/{name}")
        things = draw_pair(decides, answer == "yes", generator)
        first, second = generator.sample(range(RENDERINGS), 2)
        images = tuple(support_image(NAME, split, *of) for of in zip(things, (first, second), strict=True))
        return Example(name, images, "same?", answer, choices=YES_NO)

    answers = [answer for answer in YES_NO for _ in range(PAIRS)]
    return uniform_support(f"{split}/{decides}", Drawn(len(answers), example), answers)


def draw_pair(decides: str, is_match: bool, generator: random.Random) -> tuple[Thing, Thing]:
    """Two things that agree in what decides exactly if they match, and in the other attribute half of the time."""
    agrees_in_other = generator.random() < 0.5
    same = {"colour": is_match, "shape": agrees_in_other}
    if decides == "shape":
        same = {"colour": agrees_in_other, "shape": is_match}
    colours = _pair(list(COLOURS), same["colour"], generator)
    shapes = _pair(SHAPES, same["shape"], generator)
    return (colours[0], shapes[0]), (colours[1], shapes[1])


def _pair(values: list[str] | tuple[str, ...], is_same: bool, generator: random.Random) -> tuple[str, str]:
    first, second = generator.sample(values, 2)
    return first, first if is_same else second


MATCHING = Task(
    name=NAME,
    asks="whether two things are the same in the respect that the demonstrations share",
    splits={"test": "pairs of the episode alone"},
    styles={"direct": DIRECT, **ranked(DIRECT)},
    write=write,
    load=lambda files: load(),
    instruction="Are the two things the same in what counts?",
)
