"""The order of a source: pinned, complete in every epoch, readable at any position, local to a few shards."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.order import Order, permutation

SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(any)
MASK = 2**64 - 1
GOLDEN_PERMUTATION = [2, 5, 0, 1, 6, 3, 4, 7]
GOLDEN_ORDER = [5, 7, 4, 6, 3, 8, 9, 2, 1, 0, 4, 3, 2, 1, 0, 9, 8, 7, 6, 5]


def splitmix64(state: int) -> int:
    """The reference generator of Steele, Lea and Flood, in Python's integers."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@settings(deadline=None)
@given(st.integers(0, 60), st.lists(st.integers(-(2**63), 2**64), max_size=4))
def test_a_permutation_sorts_the_hashes_of_splitmix64(length: int, key: list[int]) -> None:
    state = 0
    for word in key:
        state = splitmix64(state ^ (word & MASK))
    hashes = [splitmix64((state + i * 0x9E3779B97F4A7C15) & MASK) for i in range(length)]
    assert permutation(length, *key).tolist() == sorted(range(length), key=hashes.__getitem__)


def test_the_order_is_the_one_that_it_always_was() -> None:
    assert permutation(8, 7, 0, 3).tolist() == GOLDEN_PERMUTATION
    assert Order([3, 2, 4, 1], seed=5, window=2).numbers(0, 20).tolist() == GOLDEN_ORDER


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 5), st.integers(1, 4))
def test_every_epoch_has_each_sample_once(sizes: list[int], seed: int, window: int) -> None:
    order, total = Order(sizes, seed, window), sum(sizes)
    for epoch in range(3):
        numbers = order.numbers(epoch * total, (epoch + 1) * total)
        assert sorted(numbers.tolist()) == list(range(total))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 5), st.integers(1, 4), st.data())
def test_any_stretch_is_a_stretch_of_the_whole(
    sizes: list[int], seed: int, window: int, data: st.DataObject
) -> None:
    whole = Order(sizes, seed, window).numbers(0, 4 * sum(sizes)).tolist()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert Order(sizes, seed, window).numbers(start, stop).tolist() == whole[start:stop]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(0, 5), st.integers(1, 4))
def test_samples_are_mixed_inside_a_window_of_shards_only(sizes: list[int], seed: int, window: int) -> None:
    order = Order(sizes, seed, window)
    shards = (np.searchsorted(order.starts, order.numbers(0, order.samples), side="right") - 1).tolist()
    seen = list(dict.fromkeys(shards))
    windows = [seen.index(shard) // window for shard in shards]
    assert windows == sorted(windows)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    first, second = (Order([20] * 5, seed, 2) for seed in (0, 1))
    stretches = {tuple(order.numbers(e * 100, e * 100 + 100)) for order in (first, second) for e in range(3)}
    assert len(stretches) == 6


def test_without_a_seed_samples_come_as_they_lie() -> None:
    assert Order([2, 3], None, 1).numbers(3, 8).tolist() == [3, 4, 0, 1, 2]


def test_a_permutation_has_no_bias_that_shows() -> None:
    # Mean rank of the first item over many keys: uniform on 0 ... 9, so 4.5 with a deviation of 2.87 / sqrt(4000).
    ranks = [permutation(10, seed).tolist().index(0) for seed in range(4000)]
    assert abs(np.mean(ranks) - 4.5) < 0.2
    assert len({tuple(permutation(4, random.Random(i).getrandbits(64))) for i in range(400)}) == 24
