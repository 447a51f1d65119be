from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import ttest_rel

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.comparison import compare, holm, mcnemar, paired_difference
from flamingo_lite.evaluation.power import minimal_detectable_difference, resolution


def sample(query: int, seed: int = 0, score: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    found = {
        "task": "t", "model": "m", "split": "test", "style": "direct", "condition": "standard", "shots": 4,
        "query_id": query, "seed": seed, "score": score, "demonstration_ids": [f"{query}/{seed}"],
        "prompt_sha": f"{query}/{seed}", "query_image_id": f"image {query}",
    }  # fmt: skip
    return found | changes


def run(scores: Callable[[int], float | None], **changes: Any) -> list[dict[str, Any]]:
    return [sample(query, seed, scores(query), **changes) for query in range(30) for seed in range(2)]


def test_runs_on_the_same_prompts_are_compared_cell_by_cell() -> None:
    first = run(lambda q: float(q % 2)) + run(lambda q: 0.0, shots=8)
    second = run(lambda q: float(q % 2 or q % 4 == 0), model="n") + run(lambda q: 0.0, model="n", shots=0)
    (found,) = compare(first, second)
    assert found.cell == {
        "task": "t",
        "split": "test",
        "style": "direct",
        "condition": "standard",
        "shots": 4,
    }
    assert found.result.difference == pytest.approx(8 / 30)
    assert (found.result.first_better, found.result.second_better, found.result.n) == (0, 16, 60)
    assert found.result.n_clusters == 30
    assert found.result.p is not None
    assert found.result.p < 0.01


def test_failed_and_missing_predictions_are_left_out_and_counted() -> None:
    first = run(lambda q: None if q < 3 else 1.0)
    second = run(lambda q: None if q < 5 else 0.0)[:-2]
    (found,) = compare(first, second)
    assert (found.result.n, found.n_failed, found.n_unpaired) == (48, 10, 2)


def test_queries_on_one_image_count_as_one() -> None:
    first, second = (run(lambda q: float(q % 2), query_image_id=image) for image in ("a", "b"))
    assert compare(first, second)[0].result.n_clusters == 1
    assert compare(first, second)[0].result.p is None


@pytest.mark.parametrize(
    "second, message",
    [
        (
            run(lambda q: 1.0, prompt_sha="x"),
            r"60 of 60 prompts differ .*query 0, seed 0 of task t.*expected the same",
        ),
        (
            run(lambda q: 1.0, shots=8),
            r"share no cell \(the first has task t.*shots 4; the second has .*shots 8\)",
        ),
        ([], "the second has no samples"),
        (
            run(lambda q: 1.0) + run(lambda q: 1.0, model="n"),
            r"second run holds 2 models \(m, n\); expected one",
        ),
        (run(lambda q: 1.0) * 2, "second run has query 0 under seed 0 twice; expected once"),
    ],
)
def test_runs_that_do_not_compare_are_refused_in_one_line(second: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(FlamingoError, match=message) as caught:
        compare(run(lambda q: 1.0), second)
    assert "\n" not in str(caught.value)


def test_p_values_are_adjusted_over_the_shots_of_a_family_alone() -> None:
    first = [s for shots in (0, 4, 8) for s in run(lambda q: 0.0, shots=shots)]
    second = [s for shots in (0, 4, 8) for s in run(lambda q: float(q % 5 == 0), shots=shots)]
    other = run(lambda q: 0.0, split="other"), run(lambda q: float(q % 5 == 0), split="other")
    found = compare(first + other[0], second + other[1])
    plain = found[0].result.p
    assert plain is not None
    assert [c.result.p_holm for c in found] == pytest.approx([3 * plain] * 3 + [plain])


def test_a_paired_difference_of_single_pairs_is_the_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=40), generator.normal(0.3, size=40)
    found = paired_difference(first.tolist(), second.tolist(), list(range(40)))
    assert found.p == pytest.approx(ttest_rel(second, first).pvalue)
    assert found.mcnemar_p is None


def test_a_difference_on_every_query_has_the_p_value_of_the_sign_test() -> None:
    found = paired_difference([0.0] * 10, [1.0] * 10, list(range(10)))
    assert found.p == pytest.approx(2 * 0.5**10)
    assert paired_difference([1.0] * 10, [1.0] * 10, list(range(10))).p == 1.0
    assert paired_difference([], [], []).difference is None


def test_mcnemar_is_exact_on_single_pairs() -> None:
    """Two against eight discordant pairs: twice the binomial tail, 2 * (1 + 10 + 45) / 1024."""
    first = [1.0] * 2 + [0.0] * 8 + [1.0] * 5
    second = [0.0] * 2 + [1.0] * 8 + [1.0] * 5
    assert mcnemar(first, second, list(range(15))) == pytest.approx(2 * 56 / 1024)
    assert mcnemar([1.0], [1.0], [0]) == 1.0
    assert mcnemar([0.5], [1.0], [0]) is None


def test_repeating_every_pair_under_further_seeds_does_not_make_mcnemar_surer() -> None:
    """Clusters of equal pairs give McNemar's own chi-squared, (8 - 2)^2 / 10 = 3.6."""
    first, second = [1.0] * 2 + [0.0] * 8, [0.0] * 2 + [1.0] * 8
    found = mcnemar(first * 5, second * 5, list(range(10)) * 5)
    assert found == pytest.approx(0.0578, abs=1e-4)


@pytest.mark.parametrize(
    "plain, adjusted",
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]), ([0.9, 0.8], [1.0, 1.0]), ([0.02], [0.02]), ([], []),
    ],
)  # fmt: skip
def test_holm_by_hand(plain: list[float], adjusted: list[float]) -> None:
    assert holm(plain) == pytest.approx(adjusted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_the_plain_and_bonferronis(p_values: list[float]) -> None:
    found = holm(p_values)
    assert all(
        p <= q <= min(1.0, len(p_values) * p) + 1e-12 or q == max(found)
        for p, q in zip(p_values, found, strict=True)
    )
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(found)[order]) >= 0)


def two_models(
    generator: np.random.Generator, shape: tuple[int, int], of_set: float, gain: float
) -> np.ndarray:
    """Scores of 0 and 1 (models, queries, sets); each model has its own effects of the demonstration sets."""
    query = generator.normal(size=(1, shape[0], 1))
    own = 0.7 * generator.normal(size=(2, shape[0], 1)) + of_set * generator.normal(size=(2, 1, shape[1]))
    return (generator.random((2, *shape)) < ndtr(query + own + np.array([0.0, gain])[:, None, None])).astype(
        float
    )


def share_found(
    trials: int, shape: tuple[int, int], of_set: float, gain: float = 0.0, test: str = "p"
) -> float:
    """How often the paired test says at 5% that two models differ."""
    clusters = np.repeat(np.arange(shape[0]), shape[1]).tolist()
    sets = list(range(shape[1])) * shape[0] if of_set else None
    found = 0
    for trial in range(trials):
        first, second = two_models(np.random.default_rng(trial), shape, of_set, gain).reshape(2, -1).tolist()
        result = paired_difference(first, second, clusters, resamples=50, sets=sets)
        found += getattr(result, test) < 0.05
    return found / trials


@pytest.mark.parametrize("of_set", [0.0, 0.4])
def test_two_equal_models_are_seldom_told_apart(of_set: float) -> None:
    """Three binomial standard errors of 200 trials above 5%."""
    assert share_found(200, (60, 5), of_set) <= 0.096


def test_mcnemar_is_not_given_where_demonstration_sets_make_queries_alike() -> None:
    first, second = two_models(np.random.default_rng(0), (20, 5), 0.4, 0.0).reshape(2, -1).tolist()
    clusters = np.repeat(np.arange(20), 5).tolist()
    assert paired_difference(first, second, clusters, 50, sets=list(range(5)) * 20).mcnemar_p is None
    assert paired_difference(first, second, clusters, 50).mcnemar_p is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, of_set, test",
    [
        ((200, 1), 0.0, "p"), ((100, 5), 0.0, "p"), ((100, 5), 0.1, "p"), ((100, 5), 0.4, "p"),
        ((200, 1), 0.0, "mcnemar_p"), ((100, 5), 0.0, "mcnemar_p"),
    ],
)  # fmt: skip
def test_in_a_thousand_comparisons_equal_models_are_told_apart_in_at_most_66(
    shape: tuple[int, int], of_set: float, test: str
) -> None:
    assert share_found(1000, shape, of_set, test=test) <= 0.066


def test_the_minimal_detectable_difference_is_found_as_often_as_it_says() -> None:
    """Differences of -1, 0 and 1 by queries alone, with the assumed variance and the promised mean."""
    queries, trials = 150, 300
    effect = minimal_detectable_difference(queries, 1)
    up, down = (0.25 + effect**2) / 2 + effect / 2, (0.25 + effect**2) / 2 - effect / 2
    found = 0
    for trial in range(trials):
        drawn = np.random.default_rng(trial).random(queries)
        first, second = (drawn < down).astype(float), ((drawn >= down) & (drawn < down + up)).astype(float)
        found += (paired_difference(first.tolist(), second.tolist(), range(queries), 20).p or 1.0) < 0.05
    assert 0.73 <= found / trials <= 0.87


def test_more_queries_or_seeds_find_smaller_differences_and_shared_sets_set_a_floor() -> None:
    base = minimal_detectable_difference(200, 3)
    assert minimal_detectable_difference(800, 3) == pytest.approx(base / 2, rel=0.02)
    assert minimal_detectable_difference(200, 5) < base
    assert minimal_detectable_difference(10**6, 5, between_sets=0.05) > 0.05


def test_the_line_before_a_run_names_what_it_can_find() -> None:
    assert "200 queries x 5 seeds" in resolution(200, [0, 1, 2, 3, 4])
    assert "points is found 80% of the time" in resolution(200, [0])
    assert "no interval" in resolution(1, [0])


@pytest.mark.parametrize("wrong", [{"queries": 1}, {"seeds": 0}, {"rate": 1.5}])
def test_a_plan_that_cannot_be_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(FlamingoError, match="expected"):
        minimal_detectable_difference(**({"queries": 100, "seeds": 5} | wrong))
