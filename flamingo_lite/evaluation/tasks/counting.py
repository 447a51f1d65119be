"""Count induction: a scene, an attribute, a number; that things are to be counted only the demonstrations say.

As VL-ICL's clevr task ("colour: red" is all the question there is). Unnamed, the attribute too has to be found out
from the scenes. All examples of an episode are about one attribute; every count is as likely as any other.
"""

import random
from functools import lru_cache

from flamingo_lite.data.synthetic.picture import paint
from flamingo_lite.data.synthetic.questions import MOST_COUNTED, draw_scene_with
from flamingo_lite.data.synthetic.scenes import COLOURS, SHAPES, Thing, scene
from flamingo_lite.evaluation.demonstrations import (
    Example,
    Support,
    episode_generator,
    uniform_support,
)
from flamingo_lite.evaluation.metrics import extract_number
from flamingo_lite.evaluation.tasks.drawn import Drawn
from flamingo_lite.evaluation.tasks.task import (
    Items,
    Segments,
    Style,
    Task,
    balanced_choice,
    exact_match,
    ranked,
    segments,
)

NAME = "count_induction"
SUBJECTS: tuple[Thing, ...] = (*((colour, "") for colour in COLOURS), *(("", shape) for shape in SHAPES))
COUNTS = tuple(str(number) for number in range(MOST_COUNTED + 1))
SCENES = 6
"""Scenes of a support with each count."""

DIRECT = Style(exact_match(extract_number))


def write(example: Example, style: str, is_answered: bool) -> Segments:
    criterion = "" if style == "unnamed" else f" {example.question}"
    return segments(example, f"{criterion} =", f" {example.answer}" if is_answered else None)


def load() -> Items:
    return Items(_query, lambda split, query_id: _support(split, _subject(split, query_id)))


def _subject(split: str, query_id: int) -> Thing:
    return episode_generator("subject", NAME, split, query_id).choice(SUBJECTS)


@lru_cache(maxsize=4096)
def _query(split: str, query_id: int) -> Example:
    count = int(balanced_choice(COUNTS, "count", NAME, split, query_id))
    generator = episode_generator("query", NAME, split, query_id)
    return _example(f"{split}/query/{query_id}", _subject(split, query_id), count, split, generator)


@lru_cache(maxsize=64)
def _support(split: str, subject: Thing) -> Support:
    answers = [count for count in COUNTS for _ in range(SCENES)]
    examples = Drawn(len(answers), lambda i: _demonstration(split, subject, i))
    return uniform_support(f"{split}/{_criterion(subject)}", examples, answers)


@lru_cache(maxsize=4096)
def _demonstration(split: str, subject: Thing, number: int) -> Example:
    """Like an operator's operands, a demonstration's scene is never a held-out one."""
    name = f"{split}/support/{_criterion(subject)}/{number}"
    return _example(name, subject, number // SCENES, "test", random.Random(f"{NAME}/{name}"))


def _example(name: str, subject: Thing, count: int, split: str, generator: random.Random) -> Example:
    found = draw_scene_with(generator, subject, count, held_out=split == "held_out_scenes")
    image = paint(scene(found.content), generator)
    return Example(name, (image,), _criterion(subject), str(count), choices=COUNTS)


def _criterion(subject: Thing) -> str:
    colour, shape = subject
    return f"colour: {colour}" if colour else f"shape: {shape}"


COUNT_INDUCTION = Task(
    name=NAME,
    asks="how many things have the attribute, where only the demonstrations say that things are counted",
    splits={"test": "scenes like those of training", "held_out_scenes": "scenes never seen"},
    styles={"direct": DIRECT, "unnamed": DIRECT, **ranked(DIRECT)},
    write=write,
    load=lambda files: load(),
    instruction="Count the things in the image that have the attribute.",
)
