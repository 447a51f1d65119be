"""Mixtures: exact shares in every block, each source in its own order, each document once without weights."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.mixing import BLOCK, Mixture, SourceConfig, apportion
from flamingo_lite.data.order import Order
from flamingo_lite.errors import FlamingoError

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS)
def test_a_block_gives_each_source_its_share_to_within_one(weights: list[float]) -> None:
    counts = apportion({str(i): weight for i, weight in enumerate(weights)})
    assert counts is not None and counts.sum() == BLOCK
    assert np.abs(counts - np.array(weights) / sum(weights) * BLOCK).max() < 1


def test_what_is_left_goes_to_the_largest_remainders() -> None:
    # 65,536 / 3 = 21,845 1/3: the one place that is left goes to the first of the equals.
    assert apportion({"a": 1, "b": 1, "c": 1}).tolist() == [21846, 21845, 21845]  # type: ignore[union-attr]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3), st.integers(0, 2 * BLOCK), st.integers(0, 400))
def test_a_source_is_read_in_its_own_order_and_at_any_position(seed: int, start: int, count: int) -> None:
    sizes = {"a": [9000, 4000], "b": [7000], "c": [2000, 500, 900]}
    mixture = Mixture(sizes, {"a": 3, "b": 1.5, "c": 0.25}, seed, 2)
    assert mixture.counts is not None
    sources, numbers = mixture.documents(0, start + count)
    later = Mixture(sizes, {"a": 3, "b": 1.5, "c": 0.25}, seed, 2).documents(start, start + count)
    assert np.array_equal(later[0], sources[start:]) and np.array_equal(later[1], numbers[start:])
    for source, samples in enumerate(sizes.values()):
        mine = numbers[sources == source]
        assert np.array_equal(mine, Order(samples, seed, 2).numbers(0, len(mine)))


def test_every_block_holds_the_same_counts_in_another_order() -> None:
    mixture = Mixture({"a": [50], "b": [50]}, {"a": 3, "b": 1}, 0, 8)
    blocks = [mixture.documents(i * BLOCK, (i + 1) * BLOCK)[0] for i in range(2)]
    assert [np.bincount(block).tolist() for block in blocks] == [[49152, 16384]] * 2
    assert not np.array_equal(*blocks)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 9)
)
def test_without_weights_an_epoch_has_every_document_of_every_source_once(
    sizes: list[list[int]], seed: int
) -> None:
    mixture = Mixture({str(i): samples for i, samples in enumerate(sizes)}, {}, seed, 3)
    for epoch in range(2):
        stretch = mixture.documents(epoch * mixture.samples, (epoch + 1) * mixture.samples)
        found = Counter(zip(*(values.tolist() for values in stretch), strict=True))
        assert found == {(i, n): 1 for i, samples in enumerate(sizes) for n in range(sum(samples))}


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_above_0_is_refused_by_name(weight: float) -> None:
    with pytest.raises(FlamingoError, match="source pages: weight is .*above 0"):
        apportion({"pairs": 1.0, "pages": weight})


def test_a_weight_too_small_for_one_place_is_refused_by_name() -> None:
    with pytest.raises(FlamingoError, match="source pages: weight 1e-06 is less than one place"):
        apportion({"pairs": 1.0, "pages": 1e-6})


def test_a_missing_weight_is_refused_by_name() -> None:
    with pytest.raises(FlamingoError, match="source pages has no weight, but pairs has"):
        apportion({"pairs": 1.0, "pages": None})


def test_an_empty_source_is_refused_by_name() -> None:
    with pytest.raises(FlamingoError, match="source pages: the shards hold no documents"):
        Mixture({"pairs": [3], "pages": [0]}, {}, 0, 8)


@pytest.mark.parametrize("values", [{"loss_weight": 0}, {"loss_weight": float("nan")}, {"samples": 0}])
def test_values_of_a_source_that_cannot_be_are_refused(values: dict) -> None:
    with pytest.raises(FlamingoError, match="a source's"):
        SourceConfig("shards", **values)
