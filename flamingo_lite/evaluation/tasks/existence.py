"""Existence: is there a such-and-such in the scene? Yes or no, equally often, read and summed up as POPE does it.

Half of the things that are asked for and absent have a colour and a shape that are there, wherever the scene allows
it: a model that answers by parts is wrong on these.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache

from flamingo_lite.data.synthetic.picture import paint
from flamingo_lite.data.synthetic.questions import ALL_KINDS, draw_scene_with, draw_subject
from flamingo_lite.data.synthetic.scenes import Thing, scene
from flamingo_lite.evaluation.demonstrations import (
    Example,
    Support,
    episode_generator,
    uniform_support,
)
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.yes_no import pope, pope_figures
from flamingo_lite.evaluation.tasks.drawn import Drawn
from flamingo_lite.evaluation.tasks.task import (
    Answer,
    Items,
    Segments,
    Style,
    Task,
    balanced_choice,
    first_line,
    ranked,
    segments,
)

NAME = "existence"
YES_NO = ("yes", "no")
SCENES = 64
"""Scenes of the support with each answer."""


def score_yes_no(text: str, example: Example) -> Scored:
    """Only the first line is read, where a model goes on with another question."""
    return pope(first_line(text) or "", example.answer)


def yes_no_figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    return asdict(pope_figures((of.scored.extracted or "yes", of.example.answer) for of in answers))


DIRECT = Style(score_yes_no, metric="accuracy", figures=yes_no_figures)


def write(example: Example, style: str, is_answered: bool) -> Segments:
    return segments(example, f" {example.question}", f" {example.answer}" if is_answered else None)


@lru_cache(maxsize=4096)
def _query(split: str, query_id: int) -> Example:
    answer = balanced_choice(YES_NO, "answer", NAME, split, query_id)
    generator = episode_generator("query", NAME, split, query_id)
    return _example(f"{split}/query/{query_id}", answer, split == "held_out_scenes", generator)


@lru_cache(maxsize=4096)
def _demonstration(split: str, number: int) -> Example:
    name = f"{split}/support/{number}"
    return _example(name, YES_NO[number // SCENES], False, random.Random(f"{NAME}/{name}"))


@lru_cache(maxsize=8)
def _support(split: str) -> Support:
    answers = [answer for answer in YES_NO for _ in range(SCENES)]
    return uniform_support(split, Drawn(len(answers), lambda i: _demonstration(split, i)), answers)


def _example(name: str, answer: str, held_out: bool, generator: random.Random) -> Example:
    found = draw_scene_with(generator, draw_subject(generator), held_out=held_out)
    colour, shape = _asked_for(found.content, answer == "yes", generator)
    image = paint(scene(found.content), generator)
    return Example(name, (image,), f"is there a {colour} {shape}?", answer, choices=YES_NO)


def _asked_for(content: Sequence[Thing], is_there: bool, generator: random.Random) -> Thing:
    if is_there:
        return generator.choice(content)
    absent = [thing for thing in ALL_KINDS if thing not in content]
    colours, shapes = ({thing[place] for thing in content} for place in (0, 1))
    near = [thing for thing in absent if thing[0] in colours and thing[1] in shapes]
    return generator.choice(near if near and generator.random() < 0.5 else absent)


EXISTENCE = Task(
    name=NAME,
    asks="whether a thing of a colour and a shape is in the scene",
    splits={"test": "scenes like those of training", "held_out_scenes": "scenes never seen"},
    styles={"direct": DIRECT, **ranked(DIRECT)},
    write=write,
    load=lambda files: Items(_query, lambda split, query_id: _support(split)),
    instruction="Answer yes or no.",
)
