"""The rule that teaches scenes: all that it says is true of what is drawn, checked here by other means than its own."""

import io
import random
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.instruct.described import Described
from flamingo_lite.data.instruct.kinds import KINDS, messages
from flamingo_lite.data.instruct.make import InstructOptions, Job, make_instructions
from flamingo_lite.data.instruct.scene_facts import Facts, is_right, read_facts, statements
from flamingo_lite.data.instruct.scene_teacher import scene_teacher
from flamingo_lite.data.instruct.sources import scenes
from flamingo_lite.data.shards import read_shards
from flamingo_lite.data.synthetic.scenes import COLOURS, draw_scene, is_held_out, scene_boxes, things
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import SampleError
from flamingo_lite.teacher import Message, Sampling


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The documents of 120 scenes, through prompts, parsing and shards."""
    directory = tmp_path_factory.mktemp("taught")
    job = Job("all", ("scenes",), None, directory, InstructOptions(number=120, seed=3))
    summary, _ = make_instructions(job, scene_teacher())
    assert summary.documents == 360 and not summary.rejects and summary.is_complete
    return list(read_shards(directory))


class Scene:
    """Counts and compares by the boxes in a document's meta, one plain loop for each question."""

    def __init__(self, document: Document) -> None:
        boxes = document.meta["boxes"]
        self.labels = [box["label"] for box in boxes]
        self.middles = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (box["box"] for box in boxes)]

    def having(self, words: str) -> list[int]:
        *colour, noun = words.split()
        single = {"crosses": "cross", "things": "thing"}.get(
            noun, noun.removesuffix("s") if noun != "cross" else noun
        )
        wanted = [*colour, *([] if single == "thing" else [single])]
        return [i for i, label in enumerate(self.labels) if set(wanted) <= set(label.split())]

    def at(self, place: str) -> list[int]:
        row, column = place.split()
        return [
            i
            for i, (x, y) in enumerate(self.middles)
            if (y < 0.5) == (row == "top")
            and ("left" if x < 1 / 3 else "middle" if x < 2 / 3 else "right") == column
        ]

    def count(self, words: str, place: str) -> int:
        return len(set(self.having(words)) & set(self.at(place)))

    def beside(self, one: str, relation: str, other: str) -> bool:
        (i,), (j,) = self.having(one), self.having(other)
        (x, y), (u, v) = self.middles[i], self.middles[j]
        return {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[relation]


WHAT = r"((?:\w+ )?(?:things?|circles?|squares?|triangles?|stars?|cross|crosses))"
SIDE = "(left of|right of|above|below)"
CHECKS: list[tuple[str, Callable[..., bool]]] = [
    (rf"there (?:is|are) (no|\d+|an?) {WHAT} at the (\w+ \w+)", lambda s, n, w, p: same(n, s.count(w, p))),
    (rf"there (?:is|are) (no|\d+|an?) {WHAT}", lambda s, n, w: same(n, len(s.having(w)))),
    (rf"there are not more {WHAT} than {WHAT}", lambda s, a, b: len(s.having(a)) <= len(s.having(b))),
    (rf"there are more {WHAT} than {WHAT}", lambda s, a, b: len(s.having(a)) > len(s.having(b))),
    (r"the picture shows (\d+) things?", lambda s, n: len(s.labels) == int(n)),
    (rf"the {WHAT} is {SIDE} the {WHAT}", lambda s, a, r, b: s.beside(a, r, b)),
    (rf"the {WHAT} is at the (\w+ \w+)", lambda s, w, p: set(s.having(w)) <= set(s.at(p))),
    (rf"the {WHAT} is a (\w+)", lambda s, w, shape: [s.labels[i].split()[1] for i in s.having(w)] == [shape]),
    (rf"the {WHAT} is (\w+)", lambda s, w, colour: [s.labels[i].split()[0] for i in s.having(w)] == [colour]),
    (r"without them, (\d+) - (\d+) = (\d+)", lambda s, a, b, c: int(a) - int(b) == int(c)),
]  # fmt: skip


def same(word: str, number: int) -> bool:
    return number >= 1 if word in ("a", "an") else number == (0 if word == "no" else int(word))


def claims(answer: str) -> list[str]:
    """The clauses of an answer."""
    pieces = re.split(r"[.:]\s*|, (?=and |so )", answer.strip())
    return [re.sub(r"^(?:yes|no|and|so),? |^(?:and|so) ", "", piece.lower()) for piece in pieces if piece]


def is_true(claim: str, scene: Scene) -> bool:
    for pattern, check in CHECKS:
        if found := re.fullmatch(pattern, claim):
            return check(scene, *found.groups())
    raise AssertionError(f"nobody has said how to check {claim!r}")


def test_everything_that_is_taught_is_true(taught: list[Document]) -> None:
    seen = dict.fromkeys(KINDS, 0)
    for document in taught:
        scene = Scene(document)
        for asked, said in zip(document.texts[::2], document.texts[1::2], strict=True):
            for claim in claims(said.text):
                if claim.startswith("the number of things left would be "):
                    (words,) = re.findall(rf"all {WHAT} were", asked.text)
                    assert int(claim.split()[-1]) == len(scene.labels) - len(scene.having(words))
                    continue
                assert is_true(claim, scene), (document.meta["boxes"], said.text, claim)
                seen[document.meta["kind"]] += 1
    assert min(seen.values()) > 200


def test_yes_and_no_are_said_where_the_question_wants_them(taught: list[Document]) -> None:
    said_of = {"yes": 0, "no": 0}
    for document in taught:
        scene = Scene(document)
        for asked, said in zip(document.texts[::2], document.texts[1::2], strict=True):
            if not (word := re.match(r"(Yes|No),", said.text)):
                continue
            lowered = asked.text.lower()
            if found := re.match(rf"is there an? {WHAT}", lowered):
                wanted = bool(scene.having(found[1]))
            elif found := re.match(rf"are there more {WHAT} than {WHAT}", lowered):
                wanted = len(scene.having(found[1])) > len(scene.having(found[2]))
            else:
                found = re.match(rf"is the {WHAT} {SIDE} the {WHAT}", lowered)
                assert found, lowered
                wanted = scene.beside(*found.groups())
            assert (word[1] == "Yes") == wanted, (asked.text, said.text)
            said_of[word[1].lower()] += 1
    assert min(said_of.values()) > 0.3 * sum(said_of.values())


def test_a_conversation_has_the_image_in_front_and_trains_on_the_answers_alone(
    taught: list[Document],
) -> None:
    for document in taught:
        assert isinstance(document[0], Image) and all(isinstance(each, Text) for each in document[1:])
        assert [text.role for text in document.texts] == ["user", "assistant"] * (len(document.texts) // 2)
        assert [text.loss for text in document.texts] == [text.role == "assistant" for text in document.texts]
        assert [text.ends_chunk for text in document.texts] == [text.loss for text in document.texts]


def test_the_judging_facts_agree_with_what_is_taught(taught: list[Document]) -> None:
    answered = 0
    for document in taught:
        facts = facts_of(document)
        for asked, said in zip(document.texts[::2], document.texts[1::2], strict=True):
            found = statements(said.text, facts)
            assert found and all(found), said.text
            assert is_right(asked.text, said.text, facts) is not False, (asked.text, said.text)
            answered += is_right(asked.text, said.text, facts) is True
    assert answered > 300


def facts_of(document: Document) -> Facts:
    boxes = "\n".join(f"{box['label']}: {box['box']}" for box in document.meta["boxes"])
    return read_facts(f"Boxes:\n{boxes}")


@pytest.mark.parametrize(
    "change",
    [
        lambda said: re.sub(r"\d+", lambda n: str(int(n[0]) + 1), said),
        lambda said: said.replace("left of", "x").replace("right of", "left of").replace("x", "right of"),
        lambda said: said.replace("above", "x").replace("below", "above").replace("x", "below"),
        lambda said: said.replace("not more", "more") if "not more" in said else said.replace("more", "not more"),
        lambda said: said.replace("top", "x").replace("bottom", "top").replace("x", "bottom"),
    ],
    ids=["number", "side", "height", "more", "place"],
)  # fmt: skip
def test_a_fact_that_is_turned_around_is_found_false(
    change: Callable[[str], str], taught: list[Document]
) -> None:
    found_false = 0
    for document in taught:
        scene = Scene(document)
        for said in document.texts[1::2]:
            changed = change(said.text)
            known = [
                claim for claim in claims(changed) if not claim.startswith(("the number", "without them"))
            ]
            are_true = all(is_true(claim, scene) for claim in known)
            assert all(statements(changed, facts_of(document))) == are_true, changed
            found_false += not are_true
    assert found_false > 20


def test_the_colour_and_the_shape_of_another_thing_are_no_answer() -> None:
    facts = read_facts("Boxes:\nred circle: [0.0, 0.0, 0.2, 0.4]\nblue star: [0.5, 0.5, 0.7, 0.9]")
    assert is_right("What colour is the star?", "The star is blue.", facts)
    assert is_right("What colour is the star?", "blue", facts)
    assert not is_right("What colour is the star?", "The star is red.", facts)
    assert not is_right("What colour is the star?", "red or blue", facts)
    assert is_right("what shape is the red thing?", "a circle", facts)
    assert not is_right("what shape is the red thing?", "a star", facts)
    assert is_right("How many things are there?", "There are two things.", facts)
    assert not is_right("Is there a red star?", "I think that there is one", facts)
    assert is_right("What is the weather like?", "fine", facts) is None


def test_answers_depend_on_the_scene_alone() -> None:
    described = next(scenes(7))
    for kind in KINDS:
        asked = messages(kind, described)
        assert scene_teacher().answer(asked, Sampling()) == scene_teacher().answer(asked, Sampling(9, 0.5, 1))


@pytest.mark.parametrize(
    "asked",
    [
        [Message("system", "be helpful"), Message("user", "Captions:\n- red circle")],
        [*messages("detail", next(scenes(0)))[:-1], Message("user", "Captions:\n- a dog on a couch")],
        [*messages("detail", next(scenes(0)))[:-1], Message("user", "Captions:\n- red circle")],
    ],
    ids=["other prompt", "other image", "no boxes"],
)
def test_what_the_rule_does_not_know_it_refuses(asked: list[Message]) -> None:
    with pytest.raises(SampleError) as error:
        scene_teacher().answer(asked, Sampling())
    assert error.value.reason == "refused"


def scene_numbers(number: int) -> list[Described]:
    return list(islice(scenes(11), number))


def test_described_scenes_are_never_held_out_and_do_not_depend_on_how_many_are_drawn() -> None:
    first, more = scene_numbers(5), scene_numbers(40)
    assert [each.image for each in first] == [each.image for each in more[:5]]
    for each in more:
        assert not is_held_out([tuple(box.label.split()) for box in each.boxes])  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_box_is_where_the_pixels_of_its_thing_are(seed: int) -> None:
    content = things(random.Random(seed))[:1]
    pixels = np.asarray(PIL.Image.open(io.BytesIO(draw_scene(content, random.Random(seed)))), dtype=int)
    height, width, _ = pixels.shape
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    rows, columns = np.nonzero(np.abs(pixels - ground).max(axis=2) > 80)
    ((left, top, right, bottom),) = scene_boxes(content, random.Random(seed))
    inside = [
        max(0.0, left * width),
        max(0.0, top * height),
        min(width - 1, right * width),
        min(height - 1, bottom * height),
    ]
    assert np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - inside).max() < 3


def test_in_the_middle_of_a_box_is_the_colour_of_its_label() -> None:
    """Of nearly all: noise and compression make an orange of a yellow here and there."""
    are_right = []
    for seed in range(150):
        content = sorted(things(random.Random(seed)))
        pixels = np.asarray(PIL.Image.open(io.BytesIO(draw_scene(content, random.Random(seed)))), dtype=int)
        height, width, _ = pixels.shape
        for (colour, _), (left, top, right, bottom) in zip(
            content, scene_boxes(content, random.Random(seed)), strict=True
        ):
            x, y = round((left + right) / 2 * width), round((top + bottom) / 2 * height)
            seen = pixels[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0)
            nearest = min(COLOURS, key=lambda name: float(np.abs(seen - np.array(COLOURS[name])).sum()))
            are_right.append(nearest == colour)
    assert np.mean(are_right) > 0.95


def test_the_shards_are_the_same_bytes_whatever_is_asked_at_once(tmp_path: Path) -> None:
    made = []
    for concurrency in (1, 8):
        directory = tmp_path / str(concurrency)
        job = Job("all", ("scenes",), None, directory, InstructOptions(number=9, concurrency=concurrency))
        make_instructions(job, scene_teacher())
        made.append([(directory / name).read_bytes() for name in ("shard-000000.tar", "shards.json")])
    assert made[0] == made[1]
