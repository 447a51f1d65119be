from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import (
    Example,
    draw_demonstrations,
    endlessly,
    episode_generator,
    permute_answers,
)

POOL = [Example(str(i), (Image(b"%d" % i),), str(i), str(i)) for i in range(12)]
QUERY = Example("query", (Image(b"query"),), "", "")


def picks(seed: int) -> Iterator[Example]:
    return endlessly(lambda generator: generator.choice(POOL))(random.Random(seed))


@given(seed=st.integers(), few=st.integers(0, 10), more=st.integers(0, 10))
def test_smaller_sets_are_prefixes_of_larger_ones(seed: int, few: int, more: int) -> None:
    few, more = sorted((few, more))
    smaller = draw_demonstrations(picks(seed), few, QUERY)
    larger = draw_demonstrations(picks(seed), more, QUERY)
    assert larger[:few] == smaller


@given(seed=st.integers(), excluded=st.integers(0, 11))
def test_no_image_appears_twice_and_none_is_excluded(seed: int, excluded: int) -> None:
    found = draw_demonstrations(picks(seed), 11, query=POOL[excluded])
    assert {example.id for example in found} == {str(i) for i in range(12)} - {str(excluded)}


def test_equal_bytes_count_as_one_image_whatever_their_ids() -> None:
    twins = [Example("a", (Image(b"x"),), "", "1"), Example("b", (Image(b"x"),), "", "1"), POOL[0]]
    found = draw_demonstrations(itertools.cycle(twins), 2, QUERY)
    assert len({example.images for example in found}) == 2


def test_a_support_smaller_than_the_shots_is_one_line() -> None:
    with pytest.raises(FlamingoError, match="12 distinct examples for 13 shots") as caught:
        draw_demonstrations(picks(0), 13, QUERY)
    assert "\n" not in str(caught.value)


def test_an_episode_depends_on_each_part_of_its_key() -> None:
    keys = [
        ("demonstrations", "task", "test", 1, 2),
        ("other", "task", "test", 1, 2),
        ("demonstrations", "work", "test", 1, 2),
        ("demonstrations", "task", "hard", 1, 2),
        ("demonstrations", "task", "test", 3, 2),
        ("demonstrations", "task", "test", 1, 3),
    ]
    assert len({episode_generator(*key).random() for key in keys}) == len(keys)
    assert episode_generator(*keys[0]).random() == episode_generator(*keys[0]).random()


@given(answers=st.lists(st.sampled_from("0123"), max_size=9), seed=st.integers())
def test_permuted_answers_are_the_same_answers_and_change_wherever_they_can(
    answers: list[str], seed: int
) -> None:
    permuted = permute_answers(answers, random.Random(seed))
    assert sorted(permuted) == sorted(answers)
    kept = sum(before == after for before, after in zip(answers, permuted, strict=True))
    most = max(Counter(answers).values(), default=0)
    # The commonest answer can leave its positions only for those that hold another one.
    assert kept == max(0, 2 * most - len(answers))


def test_distinct_answers_are_permuted_in_many_ways() -> None:
    assert len({permute_answers("abcd", random.Random(seed)) for seed in range(200)}) >= 6
