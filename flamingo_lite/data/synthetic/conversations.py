"""Instruction data about synthetic pictures: caption pairs, and conversations of several turns about one or two images.

Texts have roles, so a conversation template writes them. Every fact asked for is known from how the picture was drawn.
Training draws neither held-out scenes nor held-out operand pairs; `held_out=True` draws such scenes and unseen lettering.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

from flamingo_lite.data.synthetic.canvas import Source, draw_text
from flamingo_lite.data.synthetic.picture import Painter, Picture, paint
from flamingo_lite.data.synthetic.questions import (
    ANY,
    KINDS,
    Question,
    Scene,
    ask,
    ask_any_count,
    draw_scene_with,
    draw_subject,
    telling_apart,
)
from flamingo_lite.data.synthetic.reading import text
from flamingo_lite.data.synthetic.scenes import MAX_THINGS, Thing, scene, things
from flamingo_lite.document import Document, Image, Text

ORDINALS = ("first", "second")
READING = "reading"
TEXT_SHARE = 0.4
MOST_TURNS = 5
TURNS_OF_TWO = 3
MOST_DRAWS = 100
MANY_TURNS, MANY_TURNS_OF_TWO = (6, 16), (6, 14)
CONTRASTS = (3, 7)


@dataclass(frozen=True)
class Turn:
    """What the user asks of which image, and the assistant's answer."""

    kind: str
    image: int
    question: str
    answer: str


Shown = Scene | str
"""A scene, or a text to read."""


def captions(generator: random.Random, painter: Painter = paint) -> Document:
    """One image, a request to describe it or to read it, and its words: what the first stage aligns on."""
    if generator.random() < TEXT_SHARE:
        shown = text(generator)
        return conversation([shown], [about_text(shown, 0)], [0], generator, painter)
    # Half of the scenes have one thing or two: what a thing looks like is learnt first, and fast.
    most = generator.choice((1, 2, MAX_THINGS, MAX_THINGS))
    shown = Scene(tuple(sorted(things(generator, most))), ANY)
    return conversation([shown], [about_scene(Question("caption"), shown, 0)], [0], generator, painter)


def visual_instructions(generator: random.Random, painter: Painter = paint) -> Document:
    """One image and one to five turns about it, each of another kind."""
    shown = draw_shown(generator, draw_subject(generator))
    turns = draw_turns(shown, 0, generator.randint(1, MOST_TURNS), generator)
    return conversation([shown], turns, [0], generator, painter)


def two_images(generator: random.Random, painter: Painter = paint, held_out: bool = False) -> Document:
    """Two images, both shown at once or the second one later, and three turns that say which image they mean.

    Of two scenes, two of the turns mostly put the same question to both, whose answers differ.
    """
    subject = draw_subject(generator)
    first = draw_shown(generator, subject, held_out)
    other = draw_scene_with(generator, subject, held_out=held_out)
    shown = generator.sample((first, other), 2)
    turns = same_question(shown, generator)
    drawn = [
        draw_turns(its, image, TURNS_OF_TWO, generator, is_named=True) for image, its in enumerate(shown)
    ]
    fresh = [turn for some in zip_longest(*drawn) for turn in some if turn is not None]
    asked = {(turn.kind, turn.image) for turn in turns}
    turns += [turn for turn in fresh if (turn.kind, turn.image) not in asked][: TURNS_OF_TWO - len(turns)]
    generator.shuffle(turns)
    first_mention = next(number for number, turn in enumerate(turns) if turn.image == 1)
    arrivals = [0, generator.choice((0, first_mention))]
    return conversation(shown, turns, arrivals, generator, painter, "test" if held_out else "train")


def many_turns(generator: random.Random, painter: Painter = paint) -> Document:
    """One image, in half of the conversations two, and turns as in the two families above, but many of them.

    An image costs as many tokens as three questions: a model learns more from sixteen questions about one than from one
    question each about five. No question is put twice to an image; two scenes are often asked the same ones.
    """
    subject = draw_subject(generator)
    is_pair = generator.random() < 1 / 2
    shown = [draw_shown(generator, subject)]
    if is_pair:
        shown.append(draw_scene_with(generator, subject))
        generator.shuffle(shown)
    turns = _many(shown, generator.randint(*(MANY_TURNS_OF_TWO if is_pair else MANY_TURNS)), generator)
    return conversation(shown, turns, [0] * len(shown), generator, painter)


def contrasts(generator: random.Random, painter: Painter = paint) -> Document:
    """Two scenes, and questions of existence and of counts that are put to both and have another answer of each.

    Of most questions about one of two scenes, what is right of it is right of both together: a thing that it lacks is
    seldom in the other. Here whoever does not keep the images apart is wrong every second time.
    """
    subject = draw_subject(generator)
    one, other = shown = [draw_scene_with(generator, subject) for _ in range(2)]
    if one.content == other.content:
        return contrasts(generator, painter)
    number = generator.randint(*CONTRASTS)
    asked: dict[Question, None] = {}
    for _ in range(MOST_DRAWS):
        question = ask_any(generator.choice(("existence", "count")), generator.choice(shown), generator)
        if question is not None and question.answer(one.content) != question.answer(other.content):
            asked[question] = None
        if len(asked) == number:
            break
    turns = [
        about_scene(question, its, image, is_named=True)
        for question in asked
        for image, its in enumerate(shown)
    ]
    generator.shuffle(turns)
    return conversation(shown, turns, [0, 0], generator, painter)


def transcripts(generator: random.Random, painter: Painter = paint) -> Document:
    """A picture of text, in half of the conversations two, and what each says: the dearest thing to learn."""
    shown = [text(generator) for _ in range(generator.choice((1, 2)))]
    turns = [about_text(words, image, is_named=len(shown) > 1) for image, words in enumerate(shown)]
    generator.shuffle(turns)
    return conversation(shown, turns, [0] * len(shown), generator, painter)


def _many(shown: Sequence[Shown], number: int, generator: random.Random) -> list[Turn]:
    """`number` turns, or as many as there are questions for: a text has but one."""
    asked: dict[tuple[int, Question | None], Turn] = {}
    is_named = len(shown) > 1
    for _ in range(MOST_DRAWS):
        image = generator.randrange(len(shown))
        kind = generator.choice(list(KINDS))
        its = shown[image]
        if isinstance(its, str):
            asked[image, None] = about_text(its, image, is_named)
        elif (question := ask_any(kind, its, generator)) is not None:
            # Where there are two scenes, what is asked of one is asked of the other.
            for other, scene_ in enumerate(shown) if generator.random() < 0.5 else [(image, its)]:
                if not isinstance(scene_, str) and question.answer(scene_.content) is not None:
                    asked[other, question] = about_scene(question, scene_, other, is_named)
        if len(asked) >= number:
            break
    turns = list(asked.values())[:number]
    if is_named:
        generator.shuffle(turns)
    return turns


def ask_any(kind: str, shown: Scene, generator: random.Random) -> Question | None:
    """As `ask`, but that a count is of anything."""
    return ask_any_count(shown, generator) if kind == "count" else ask(kind, shown, generator)


def draw_shown(generator: random.Random, subject: Thing, held_out: bool = False) -> Shown:
    """A text four times in ten, otherwise a scene with some number of `subject`."""
    if generator.random() < TEXT_SHARE:
        return text(generator)
    return draw_scene_with(generator, subject, held_out=held_out)


def draw_turns(
    shown: Shown, image: int, number: int, generator: random.Random, is_named: bool = False
) -> list[Turn]:
    """`number` turns about an image, each of another kind; a text has but one. `is_named`: they say which image it is."""
    if isinstance(shown, str):
        return [about_text(shown, image, is_named)]
    asked = (ask(kind, shown, generator) for kind in generator.sample(list(KINDS), len(KINDS)))
    found = (about_scene(question, shown, image, is_named) for question in asked if question is not None)
    return list(islice(found, number))


def about_scene(question: Question, shown: Scene, image: int, is_named: bool = False) -> Turn:
    answer = question.answer(shown.content)
    assert answer is not None, question
    return Turn(question.kind, image, _named(question.text, image, is_named), answer)


def about_text(shown: str, image: int, is_named: bool = False) -> Turn:
    return Turn(READING, image, _named("what does it say?", image, is_named), shown)


def _named(question: str, image: int, is_named: bool) -> str:
    if not is_named:
        return question
    if "the image" in question:
        return question.replace("the image", f"the {ORDINALS[image]} image")
    return f"in the {ORDINALS[image]} image, {question}"


def same_question(shown: Sequence[Shown], generator: random.Random) -> list[Turn]:
    """A question about existence or a count, put to both of two scenes, whose answers differ; otherwise no turns."""
    one, other = shown
    if isinstance(one, str) or isinstance(other, str):
        return []
    question = telling_apart(generator.choice(("existence", "count")), one, other, generator)
    if question is None:
        return []
    return [about_scene(question, its, image, is_named=True) for image, its in enumerate((one, other))]


def conversation(
    shown: Sequence[Shown],
    turns: Sequence[Turn],
    arrivals: Sequence[int],
    generator: random.Random,
    painter: Painter = paint,
    source: Source = "train",
) -> Document:
    """The turns as a document; image i stands in the user's turn `arrivals[i]`, before its words or behind them.

    `meta["turns"]` says, for each answer, of which kind its question is and which image it is about.
    """
    segments: list[Image | Text] = []
    for number, each in enumerate(turns):
        images = [
            _by_user(painter(picture(its, source), generator))
            for its, arrival in zip(shown, arrivals, strict=True)
            if arrival == number
        ]
        asked = Text(each.question, loss=False, role="user")
        segments += [*images, asked] if generator.random() < 0.8 else [asked, *images]
        segments.append(Text(each.answer, role="assistant", ends_chunk=True))
    return Document(segments, meta={"turns": [{"kind": t.kind, "image": t.image} for t in turns]})


def picture(shown: Shown, source: Source = "train") -> Picture:
    if isinstance(shown, str):
        return Picture(shown, functools.partial(draw_text, shown, source=source))
    return scene(shown.content)


def _by_user(segment: Image | Text) -> Image | Text:
    return replace(segment, role="user") if isinstance(segment, Text) else segment
