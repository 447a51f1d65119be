"""The plan of batches: the same for any ranks and parts, from any position, each document once an epoch."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.batches import Packing, Plan, Position, Row, packed_rows, rows_each, share
from flamingo_lite.data.mixing import Mixture
from flamingo_lite.data.order import Numbers
from flamingo_lite.errors import FlamingoError

SIZES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3)
TOKENS = 32


def lengths(sources: Numbers, numbers: Numbers) -> tuple[Numbers, Numbers]:
    """Lengths of documents that are a function of their place; a few cannot be used, a few have many images."""
    tokens = (numbers * 7919 + sources * 104729) % TOKENS + 1
    return np.where(numbers % 11 == 3, 0, tokens), numbers % 5


def plan_of(
    sizes: list[list[int]],
    batch_size: int,
    seed: int = 0,
    is_packed: bool = True,
    is_weighted: bool = False,
    epochs: int | None = None,
) -> Plan:
    named = {str(i): shards for i, shards in enumerate(sizes)}
    weights = {name: float(i + 1) for i, name in enumerate(named)} if is_weighted else {}
    mixture = Mixture(named, weights, seed, window=2)
    packing = Packing(8, TOKENS, 3, lengths) if is_packed else None
    return Plan(mixture, batch_size, packing, None if epochs is None else epochs * mixture.samples)


def rows_of(plan: Plan, batches: int, position: Position | None = None) -> list[tuple[Row, ...]]:
    return [
        rows for rows, _ in (pair for _, pair in zip(range(batches), plan.batches(position), strict=False))
    ]


@settings(max_examples=30, deadline=None)
@given(
    SIZES,
    st.integers(0, 3),
    st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (4, 1), (4, 3)]),
    st.booleans(),
    st.booleans(),
)
def test_the_parts_of_all_ranks_together_are_the_batch(
    sizes: list[list[int]], seed: int, parts: tuple[int, int], is_packed: bool, is_weighted: bool
) -> None:
    ranks, accumulate = parts
    plan = plan_of(sizes, 12, seed, is_packed, is_weighted)
    micro = rows_each(12, ranks, accumulate)
    for (rows, position), _ in zip(plan.batches(), range(5), strict=False):
        recipes = [list(share(rows, micro, rank, ranks, accumulate, position)) for rank in range(ranks)]
        turns = [recipes[rank][turn] for turn in range(accumulate) for rank in range(ranks)]
        assert tuple(row for recipe in turns for row in recipe.rows) == rows
        assert {len(recipe.rows) for recipe in turns} == {micro}
        # Where the run stands is told at the end of a batch only, and to every rank.
        assert [r.position for r in turns] == [None] * (len(turns) - ranks) + [position] * ranks


@settings(max_examples=12, deadline=None)
@given(SIZES, st.integers(0, 3), st.integers(1, 13), st.booleans(), st.booleans(), st.data())
def test_a_run_goes_on_from_any_batch_as_if_it_had_not_stopped(
    sizes: list[list[int]],
    seed: int,
    batch_size: int,
    is_packed: bool,
    is_weighted: bool,
    data: st.DataObject,
) -> None:
    whole = [
        pair
        for pair, _ in zip(
            plan_of(sizes, batch_size, seed, is_packed, is_weighted).batches(), range(40), strict=False
        )
    ]
    for stop in data.draw(st.lists(st.integers(0, 39), min_size=3, max_size=3)):
        again = plan_of(sizes, batch_size, seed, is_packed, is_weighted).batches(whole[stop][1])
        rest = [pair for pair, _ in zip(again, range(39 - stop), strict=False)]
        assert rest == whole[stop + 1 :]


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 3), st.integers(1, 9), st.booleans(), st.integers(1, 3))
def test_a_run_of_epochs_has_each_document_as_often(
    sizes: list[list[int]], seed: int, batch_size: int, is_packed: bool, epochs: int
) -> None:
    plan = plan_of(sizes, batch_size, seed, is_packed, epochs=epochs)
    batches = [rows for rows, _ in plan.batches()]
    assert len(batches) == plan.count()
    assert all(len(rows) == batch_size for rows in batches[:-1])
    found = sorted((slot.source, slot.number) for rows in batches for row in rows for slot in row)
    wanted = [(i, n) for i, shards in enumerate(sizes) for n in range(sum(shards)) for _ in range(epochs)]
    assert found == wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=64, unique=True), st.integers(0, 5))
def test_packed_rows_hold_the_window_within_their_budgets(numbers: list[int], seed: int) -> None:
    chosen = np.array(numbers)
    sources = np.zeros_like(chosen)
    tokens, images = (
        dict(zip(numbers, values.tolist(), strict=False)) for values in lengths(sources, chosen)
    )
    rows = packed_rows(sources, chosen, Packing(64, TOKENS, 3, lengths), (seed, 0))
    assert sorted(slot.number for row in rows for slot in row) == sorted(numbers)
    for row in rows:
        room = np.zeros(TOKENS, int)
        for slot in row:
            # What has too many images for a row keeps a slot of no tokens, for whoever reads it to count.
            assert slot.tokens == (0 if images[slot.number] > 3 else tokens[slot.number])
            room[slot.start : slot.start + slot.tokens] += 1
        assert room.max() <= 1
        assert sum(images[slot.number] for slot in row if slot.tokens) <= 3


def test_packed_rows_come_in_an_order_that_the_seed_decides() -> None:
    numbers = np.arange(64)
    first, again, other = (
        packed_rows(np.zeros(64, int), numbers, Packing(64, TOKENS, None, lengths), (seed, 0))
        for seed in (0, 0, 1)
    )
    assert first == again != other and sorted(first) == sorted(other)


def test_a_million_documents_in_are_found_at_once() -> None:
    sizes = {"pages": [1000] * 20_000, "pairs": [5000] * 10_000}
    before = time.process_time()
    mixture = Mixture(sizes, {"pages": 2.0, "pairs": 1.0}, 0, 8)
    plan = Plan(mixture, 256, Packing(1024, TOKENS, 3, lengths))
    position = Position(documents=1_000_448, row=17, batches=4000)
    rows, after = next(plan.batches(position))
    assert time.process_time() - before < 2
    assert len(rows) == 256 and after.batches == 4001


@pytest.mark.parametrize(
    "sizes, said",
    [((10, 4, 1), "10 does not divide among 4 ranks.*: 8 or 12"), ((3, 2, 2), "accumulate=2.*do: 4$")],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(
    sizes: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(FlamingoError, match=said):
        rows_each(*sizes)
