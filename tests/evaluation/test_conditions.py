from __future__ import annotations

import random
from dataclasses import replace

import PIL.Image
import pytest

from flamingo_lite.document import Image
from flamingo_lite.evaluation.conditions import CONDITIONS, Episode, blank_like
from flamingo_lite.evaluation.demonstrations import Example

EXAMPLES = [
    Example(f"id {i}", (Image(PIL.Image.new("RGB", (4, 2 + i), (40 * i, 0, 0))),), f"{i} ? 1", str(i + 1))
    for i in range(6)
]
EPISODE = Episode(demonstrations=tuple(EXAMPLES[:4]), query=EXAMPLES[4], other=lambda: EXAMPLES[5])


def images(episode: Episode) -> tuple[list[Image], Image]:
    return [d.images[0] for d in episode.demonstrations], episode.query.images[0]


def apply(condition: str) -> Episode:
    return CONDITIONS[condition].apply(EPISODE, random.Random(0))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_keeps_the_target_and_the_demonstrations_ids_in_their_order(condition: str) -> None:
    found = apply(condition)
    assert found.query.answer == EPISODE.query.answer
    assert [d.id for d in found.demonstrations] == [d.id for d in EPISODE.demonstrations]


@pytest.mark.parametrize("condition", ["standard", "text_twin", "no_query_image"])
def test_nothing_else_changes_in(condition: str) -> None:
    assert apply(condition) == EPISODE


def test_shuffled_labels_moves_every_answer_and_no_image() -> None:
    found = apply("shuffled_labels")
    before = [d.answer for d in EPISODE.demonstrations]
    after = [d.answer for d in found.demonstrations]
    assert sorted(after) == sorted(before)
    assert all(x != y for x, y in zip(before, after, strict=True))
    assert images(found) == images(EPISODE)


def test_blank_demonstrations_keeps_the_query_image() -> None:
    blanks = [blank_like(d.images[0]) for d in EPISODE.demonstrations]
    assert images(apply("blank_demonstrations")) == (blanks, EPISODE.query.images[0])


def test_mismatched_images_swaps_the_query_image_alone() -> None:
    assert images(apply("mismatched_images")) == (images(EPISODE)[0], EXAMPLES[5].images[0])


def test_blank_images_leaves_no_image() -> None:
    blanks = [blank_like(d.images[0]) for d in EPISODE.demonstrations]
    assert images(apply("blank_images")) == (blanks, blank_like(EPISODE.query.images[0]))


def test_a_blank_image_is_uniform_and_as_large_as_the_one_that_it_replaces() -> None:
    for example in EXAMPLES:
        blank = blank_like(example.images[0]).pil()
        assert len(blank.getcolors()) == 1
        assert blank.size == example.images[0].pil().size
    small, large = (Image(PIL.Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
    assert blank_like(small) == blank_like(large)


@pytest.mark.parametrize("condition", ["blank_demonstrations", "blank_images"])
def test_an_image_that_cannot_be_read_stays_for_the_model_to_fail_at(condition: str) -> None:
    broken = Image(b"no image")
    episode = replace(EPISODE, demonstrations=(replace(EXAMPLES[0], images=(broken,)), EXAMPLES[1]))
    (unreadable, other), _ = images(CONDITIONS[condition].apply(episode, random.Random(0)))
    assert unreadable == broken and other == blank_like(EXAMPLES[1].images[0])
