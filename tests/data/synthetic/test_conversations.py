"""Instruction data about synthetic pictures: answers that are true, balanced and about the image that is named."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.synthetic.conversations import (
    captions,
    contrasts,
    many_turns,
    same_question,
    transcripts,
    two_images,
    visual_instructions,
)
from flamingo_lite.data.synthetic.families import FAMILIES
from flamingo_lite.data.synthetic.picture import in_words
from flamingo_lite.data.synthetic.questions import (
    ANY,
    KINDS,
    Scene,
    ask,
    ask_any_count,
    draw_scene_with,
    draw_subject,
    telling_apart,
)
from flamingo_lite.data.synthetic.scenes import MAX_THINGS, SHAPES, is_held_out
from flamingo_lite.document import Document, Image, Text

INSTRUCTING = (captions, visual_instructions, two_images, many_turns, contrasts, transcripts)
families = st.sampled_from(INSTRUCTING)
seeds = st.integers(0, 2**32)


def turns_of(document: Document) -> Iterator[tuple[list[str], int, str, str]]:
    """For each answer of a twin in words: the images so far, which one is asked about, question and answer."""
    shown: list[str] = []
    question = ""
    meta = iter(document.meta["turns"])
    for segment in document:
        assert isinstance(segment, Text)
        if segment.text.startswith("["):
            shown.append(segment.text[1:-1])
        elif segment.role == "user":
            question = segment.text
        else:
            yield list(shown), next(meta)["image"], question, segment.text


def ordinal(question: str) -> str | None:
    """Which image a question names."""
    named = re.search(r"\b(first|second)\b", question)
    return None if named is None else named[1]


def truth(words: str, question: str) -> str:
    """The answer by a reader of its own, from what the picture shows in words."""
    things = [tuple(thing.split(" ")) for thing in words.split(", ")]
    asked = re.sub(r"^in the \w+ image, ", "", question)
    if asked == "what does it say?" or asked.startswith("describe the"):
        return words
    if found := re.fullmatch(r"is there a (\w+) (\w+)\?", asked):
        return "yes" if found.groups() in things else "no"
    if found := re.fullmatch(r"how many (.+)\?", asked):
        return str(sum(fits(thing, found[1]) for thing in things))
    if found := re.fullmatch(r"are there more (\w+) than (\w+)\?", asked):
        more, less = (sum(fits(thing, one) for thing in things) for one in found.groups())
        return "yes" if more > less else "no"
    if found := re.fullmatch(r"what colour is the (\w+)\?", asked):
        (only,) = [colour for colour, shape in things if shape == found[1]]
        return only
    found = re.fullmatch(r"what shape is the (\w+) thing\?", asked)
    assert found, asked
    (only,) = [shape for colour, shape in things if colour == found[1]]
    return only


def fits(thing: tuple[str, ...], plural: str) -> bool:
    *colour, noun = plural.split(" ")
    is_shape = noun == "things" or noun in (f"{thing[1]}s", f"{thing[1]}es")
    return is_shape and (not colour or colour[0] == thing[0])


@settings(max_examples=150, deadline=None)
@given(families, seeds)
def test_every_answer_is_true_of_the_image_that_is_asked_about(family, seed):
    for shown, image, question, answer in turns_of(family(random.Random(seed), in_words)):
        assert truth(shown[image], question) == answer


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_with_two_images_each_question_names_the_one_it_is_about_and_both_are_asked_about(seed):
    found = list(turns_of(two_images(random.Random(seed), in_words)))
    assert len(found) == 3 and {image for _, image, _, _ in found} == {0, 1}
    for _, image, question, _ in found:
        assert ordinal(question) == ("first", "second")[image]


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_many_turns_ask_nothing_twice_and_name_the_image_where_there_are_two(seed):
    found = list(turns_of(many_turns(random.Random(seed), in_words)))
    assert len({(image, question) for _, image, question, _ in found}) == len(found) <= 16
    for shown, image, question, _ in found:
        assert ordinal(question) == (("first", "second")[image] if len(shown) == 2 else None)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_transcripts_ask_once_for_each_of_one_or_two_texts(seed):
    found = list(turns_of(transcripts(random.Random(seed), in_words)))
    assert sorted(image for _, image, _, _ in found) == list(range(len(found)))
    assert all(len(shown) == len(found) <= 2 for shown, _, _, _ in found)
    assert all(
        ordinal(question) == ("first", "second")[image] for _, image, question, _ in found if len(found) == 2
    )


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_contrasts_ask_both_scenes_the_same_and_are_answered_otherwise(seed):
    answers: dict[str, dict[str | None, str]] = {}
    for shown, _, question, answer in turns_of(contrasts(random.Random(seed), in_words)):
        assert len(shown) == 2
        answers.setdefault(re.sub("first|second", "", question), {})[ordinal(question)] = answer
    assert 1 <= len(answers) <= 7
    assert all(set(each) == {"first", "second"} and len(set(each.values())) == 2 for each in answers.values())


def test_a_scene_is_asked_many_questions_and_two_scenes_often_the_same_ones() -> None:
    singles, shared, apart = [], 0, 0
    for seed in range(200):
        found = list(turns_of(many_turns(random.Random(seed), in_words)))
        if len(found[0][0]) == 1 and found[0][2] != "what does it say?":
            singles.append(len(found))
        asked: dict[str, list[int]] = {}
        for shown, image, question, _ in found:
            if len(shown) == 2:
                asked.setdefault(re.sub("first|second", "", question), []).append(image)
        shared += sum(len(images) == 2 for images in asked.values())
        apart += sum(len(images) == 1 for images in asked.values())
    assert sum(singles) / len(singles) > 8 and shared > 30 and apart > 30


@settings(max_examples=100, deadline=None)
@given(families, seeds)
def test_users_ask_and_the_assistant_alone_is_trained_on(family, seed):
    document = family(random.Random(seed), in_words)
    assert {text.role for text in document.texts} == {"user", "assistant"}
    for text in document.texts:
        assert text.loss == text.ends_chunk == (text.role == "assistant")


def test_the_second_image_comes_with_the_first_or_in_a_later_turn():
    places = Counter()
    for seed in range(200):
        document = two_images(random.Random(seed))
        last = max(i for i, segment in enumerate(document) if isinstance(segment, Image))
        places[sum(s.role == "assistant" for s in document[:last] if isinstance(s, Text))] += 1
    assert set(places) == {0, 1, 2} and min(places.values()) > 10


@settings(max_examples=200, deadline=None)
@given(families, seeds)
def test_no_training_conversation_shows_a_held_out_scene(family, seed):
    for shown, image, _, _ in turns_of(family(random.Random(seed), in_words)):
        assert not held_out(shown[image])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["scenes", "naming"]), seeds)
def test_no_other_family_shows_a_held_out_scene(name, seed):
    texts = (text.text for text in FAMILIES[name](random.Random(seed), in_words).texts)
    assert not any(held_out(text[1:-1]) for text in texts if text.startswith("["))


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_on_demand_scenes_are_all_held_out(seed):
    for shown, image, _, _ in turns_of(two_images(random.Random(seed), in_words, held_out=True)):
        things = shown[image].split(", ")
        is_scene = things[0].split(" ")[-1] in SHAPES
        assert not is_scene or (len(things) > 1 and held_out(shown[image]))


def held_out(words: str) -> bool:
    things = [tuple(thing.split(" ")) for thing in words.split(", ")]
    return all(len(thing) == 2 and thing[1] in SHAPES for thing in things) and is_held_out(things)  # type: ignore[arg-type]


def test_a_fifth_of_the_scenes_is_held_out():
    drawn = {
        draw_scene_with(
            generator := random.Random(seed), draw_subject(generator), held_out=seed % 2 == 0
        ).content
        for seed in range(40)
    }
    assert {is_held_out(content) for content in drawn} == {True, False}
    every = [(("red", a), ("blue", b), ("green", c)) for a in SHAPES for b in SHAPES for c in SHAPES]
    assert 0.1 < sum(map(is_held_out, every)) / len(every) < 0.3
    assert not any(is_held_out([("red", shape)]) for shape in SHAPES)


@pytest.mark.parametrize(
    ("kind", "answers"),
    [("existence", ["no", "yes"]), ("comparison", ["no", "yes"]), ("count", list("012345"))],
)
def test_answers_are_equally_frequent(kind: str, answers: list[str]) -> None:
    found = Counter()
    for seed in range(3000):
        generator = random.Random(seed)
        shown = draw_scene_with(generator, draw_subject(generator))
        question = ask(kind, shown, generator)
        found[question.answer(shown.content)] += question is not None  # type: ignore[union-attr]
    assert sorted(found) == answers
    assert max(found.values()) < 1.25 * min(found.values())


def test_of_the_counts_that_a_scene_has_each_is_asked_for_equally_often() -> None:
    generator = random.Random(0)
    shown = Scene((("blue", "star"), ("red", "circle"), ("red", "circle"), ("red", "star")), ANY)
    found = Counter(ask_any_count(shown, generator).answer(shown.content) for _ in range(2000))
    assert sorted(found, key=str) == list("0123") and max(found.values()) < 1.25 * min(found.values())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KINDS)), seeds)
def test_a_question_that_is_asked_has_an_answer(kind, seed):
    generator = random.Random(seed)
    shown = draw_scene_with(generator, draw_subject(generator))
    question = ask(kind, shown, generator)
    assert question is None or question.answer(shown.content)
    assert 1 <= len(shown.content) <= MAX_THINGS


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["existence", "count"]), seeds)
def test_a_question_that_tells_two_scenes_apart_has_two_answers(kind, seed):
    generator = random.Random(seed)
    subject = draw_subject(generator)
    one, other = (draw_scene_with(generator, subject) for _ in range(2))
    question = telling_apart(kind, one, other, generator)
    assert question is None or question.answer(one.content) != question.answer(other.content)


def test_two_images_of_the_same_words_are_asked_nothing_that_tells_them_apart() -> None:
    generator = random.Random(0)
    shown = draw_scene_with(generator, draw_subject(generator))
    assert same_question([shown, shown], generator) == []
    assert same_question(["3 ? 4", shown], generator) == []
