"""Captioning: name everything in the scene; CIDEr-D, with BLEU-4 and the share of exact captions beside it.

A caption has one reference, which names the things in a fixed order. The demonstrations show the form: the scenes
have to be looked at all the same.
"""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from flamingo_lite.data.synthetic.picture import paint
from flamingo_lite.data.synthetic.questions import draw_scene_with, draw_subject
from flamingo_lite.data.synthetic.scenes import scene
from flamingo_lite.evaluation.demonstrations import (
    Example,
    Support,
    episode_generator,
    uniform_support,
)
from flamingo_lite.evaluation.tasks.captions import caption_style
from flamingo_lite.evaluation.tasks.drawn import Drawn
from flamingo_lite.evaluation.tasks.task import Answer, Items, Segments, Task, first_line, segments

NAME = "captioning"
SCENES = 64


def write(example: Example, style: str, is_answered: bool) -> Segments:
    return segments(example, " caption:", f" {example.answer}" if is_answered else None)


@lru_cache(maxsize=4096)
def _query(split: str, query_id: int) -> Example:
    generator = episode_generator("query", NAME, split, query_id)
    return _example(f"{split}/query/{query_id}", split == "held_out_scenes", generator)


@lru_cache(maxsize=1024)
def _demonstration(split: str, number: int) -> Example:
    name = f"{split}/support/{number}"
    return _example(name, False, random.Random(f"{NAME}/{name}"))


@lru_cache(maxsize=8)
def _support(split: str) -> Support:
    return uniform_support(split, Drawn(SCENES, lambda number: _demonstration(split, number)))


def _example(name: str, held_out: bool, generator: random.Random) -> Example:
    shown = scene(draw_scene_with(generator, draw_subject(generator), held_out=held_out).content)
    return Example(name, (paint(shown, generator),), "caption:", shown.words)


def _figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    exact = [first_line(of.raw) == of.example.answer for of in answers]
    return {"exact_match": sum(exact) / len(exact) if exact else None}


CAPTIONING = Task(
    name=NAME,
    asks="a caption that names everything in the scene",
    splits={"test": "scenes like those of training", "held_out_scenes": "scenes never seen"},
    styles={"direct": caption_style(max_new_tokens=32, figures=_figures)},
    write=write,
    load=lambda files: Items(_query, lambda split, query_id: _support(split)),
    instruction="Describe the image.",
)
