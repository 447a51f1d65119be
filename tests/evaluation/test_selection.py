from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example, uniform_support
from flamingo_lite.evaluation.grid import Setting, build_prompt
from flamingo_lite.evaluation.selection import ORDERS, SELECTORS, Selection, Wanted, select
from flamingo_lite.evaluation.tasks import TASKS, items_of

SYNTHETIC = sorted(name for name, task in TASKS.items() if not task.files)
POOL = uniform_support(
    "pool", [Example(f"id {i}", (Image(b"%d" % i),), "what?", "abc"[i % 3]) for i in range(12)]
)
QUERY = Example("query", (Image(b"query"),), "what?", "a")

names = st.sampled_from(SYNTHETIC)
selectors = st.sampled_from(sorted(SELECTORS))
ids = st.integers(0, 40)
seeds = st.integers(0, 5)


def wanted(shots: int, query_id: int = 0, seed: int = 0, query: Example = QUERY) -> Wanted:
    return Wanted("task", "test", query_id, seed, shots, query, POOL)


def of_task(name: str, query_id: int, seed: int, shots: int) -> Wanted:
    items = items_of(name)
    query, support = items.query("test", query_id), items.support("test", query_id)
    return Wanted(name, "test", query_id, seed, shots, query, support)


@settings(deadline=None, max_examples=80)
@given(
    name=names, selector=selectors, query_id=ids, seed=seeds, few=st.integers(0, 8), more=st.integers(0, 8)
)
def test_every_selector_is_nested_over_shots_on_every_task(
    name: str, selector: str, query_id: int, seed: int, few: int, more: int
) -> None:
    few, more = sorted((few, more))
    larger = select(of_task(name, query_id, seed, more), selector, "own")
    assert select(of_task(name, query_id, seed, few), selector, "own") == larger[:few]


@settings(deadline=None, max_examples=60)
@given(name=names, selector=selectors, query_id=ids, seed=seeds)
def test_no_demonstration_shares_its_id_or_an_image_with_the_query_nor_comes_twice(
    name: str, selector: str, query_id: int, seed: int
) -> None:
    chosen = of_task(name, query_id, seed, 8)
    shown = select(chosen, selector, "own")
    assert len({example.id for example in shown} | {chosen.query.id}) == 9
    assert len({example.images for example in shown}) == 8
    assert not set(chosen.query.images).intersection(image for e in shown for image in e.images)


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_query_that_lies_in_the_support_is_left_out_by_its_id_and_by_its_image(selector: str) -> None:
    for excluded in (
        Example("id 3", (Image(b"elsewhere"),), "", ""),
        Example("elsewhere", (Image(b"3"),), "", ""),
    ):
        shown = select(wanted(11, query=excluded), selector, "own")
        assert {example.id for example in shown} == {f"id {i}" for i in range(12) if i != 3}


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_support_smaller_than_the_shots_is_one_line_that_names_the_task(selector: str) -> None:
    with pytest.raises(
        FlamingoError, match="task, split test: the support gave 12 .* for 13 shots"
    ) as caught:
        select(wanted(13), selector, "own")
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(shots=st.integers(0, 12), seed=seeds, query_id=ids)
def test_balanced_demonstrations_show_no_answer_two_times_more_than_another(
    shots: int, seed: int, query_id: int
) -> None:
    counts = Counter(e.answer for e in select(wanted(shots, query_id, seed), "balanced", "own"))
    assert max((counts[a] for a in "abc"), default=0) - min(counts[a] for a in "abc") <= 1


def test_balanced_demonstrations_go_on_with_other_answers_where_one_has_no_more_examples() -> None:
    answers = "a" + "b" * 5
    support = uniform_support(
        "uneven", [Example(str(i), (Image(b"%d" % i),), "", answer) for i, answer in enumerate(answers)]
    )
    shown = select(Wanted("task", "test", 0, 0, 6, QUERY, support), "balanced", "own")
    assert Counter(e.answer for e in shown) == Counter(answers)


def test_fixed_demonstrations_are_the_same_for_all_queries_and_differ_between_seeds() -> None:
    drawn = {select(wanted(4, query_id), "fixed", "own") for query_id in range(10)}
    assert len(drawn) == 1
    assert select(wanted(4, 0, 1), "fixed", "own") not in drawn


def test_random_demonstrations_differ_between_queries_and_seeds() -> None:
    assert (
        len(
            {select(wanted(6, query_id, seed), "random", "own") for query_id in range(4) for seed in range(4)}
        )
        == 16
    )


@settings(deadline=None)
@given(order=st.sampled_from(["own", "random", "reversed"]), selector=selectors, shots=st.integers(0, 12))
def test_an_order_shows_what_was_chosen_and_nothing_else(order: str, selector: str, shots: int) -> None:
    chosen = select(wanted(shots), selector, "own")
    assert Counter(e.id for e in select(wanted(shots), selector, order)) == Counter(e.id for e in chosen)


def similar(request: Wanted) -> tuple[Example, ...]:
    """The first of the pool, most similar first."""
    return tuple(request.support.examples[: request.shots])


RANKED = {"similar": Selection(similar, "by similarity", is_by_similarity=True)}


@pytest.mark.parametrize(
    ("order", "numbers"), [("own", [2, 1, 0]), ("similar_last", [2, 1, 0]), ("reversed", [0, 1, 2])]
)
def test_a_selector_of_ones_own_by_similarity_shows_the_most_similar_where_its_order_says(
    order: str, numbers: list[int]
) -> None:
    shown = select(wanted(3), "similar", order, RANKED)
    assert [e.id for e in shown] == [f"id {i}" for i in numbers]


def test_a_random_order_moves_with_the_seed() -> None:
    orders = {tuple(e.id for e in select(wanted(6, 0, s), "similar", "random", RANKED)) for s in range(9)}
    assert len(orders) > 5


def test_similar_last_is_refused_where_nothing_measures_similarity() -> None:
    with pytest.raises(FlamingoError, match="does not measure similarity"):
        select(wanted(3), "random", "similar_last")


@pytest.mark.parametrize(
    ("selector", "order", "message"),
    [("ranom", "own", "did you mean 'random'"), ("random", "owm", "did you mean 'own'")],
)
def test_an_unknown_name_is_one_line(selector: str, order: str, message: str) -> None:
    with pytest.raises(FlamingoError, match=message):
        select(wanted(1), selector, order)


def test_a_style_or_a_condition_changes_no_choice() -> None:
    drawn = {
        build_prompt(
            Setting("operator_induction", "test", style, condition, 4, selector="balanced"), 3, 1
        ).demonstration_ids
        for style in ("direct", "spelled")
        for condition in ("standard", "blank_images", "shuffled_labels", "no_query_image")
    }
    assert len(drawn) == 1


def test_the_orders_are_those_that_are_tested_here() -> None:
    assert set(ORDERS) == {"own", "similar_last", "random", "reversed"}
