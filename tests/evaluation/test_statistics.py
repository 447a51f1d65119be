from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import binomtest

from flamingo_lite.evaluation import statistics
from flamingo_lite.evaluation.statistics import Estimate, clustered_bootstrap, joined_clusters, seed_spread


def test_without_values_nothing_is_known() -> None:
    assert clustered_bootstrap([], []) == Estimate(None, None, None)


def test_one_cluster_gives_a_mean_but_no_interval() -> None:
    assert clustered_bootstrap([1.0, 0.0], ["a", "a"]) == Estimate(0.5, None, None)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_equal_values_give_an_interval_of_zero_width(value: float) -> None:
    found = clustered_bootstrap([value] * 9, list(range(9)))
    assert found.value == pytest.approx(value)
    assert found == Estimate(found.value, 0.0, (found.value, found.value))


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [float("inf"), 1.0], [1.0]])
def test_values_that_cannot_be_averaged_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"finite|clusters"):
        clustered_bootstrap(values, [0, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8)), min_size=1, max_size=40))
def test_the_interval_is_ordered_and_stays_between_the_bounds(rows: list[tuple[float, int]]) -> None:
    values, clusters = [value for value, _ in rows], [cluster for _, cluster in rows]
    sets = [f"{value:.1f}" for value in values]
    found = clustered_bootstrap(values, clusters, resamples=200, sets=sets, bounds=(0.0, 1.0))
    assert found.value == pytest.approx(np.mean(values))
    if found.ci95 is not None and found.se is not None:
        low, high = found.ci95
        assert 0.0 <= low <= found.value + 1e-9
        assert found.value - 1e-9 <= high <= 1.0
        assert found.se >= 0
    assert clustered_bootstrap(values, clusters, resamples=200, sets=sets, bounds=(0.0, 1.0)) == found


def test_repeating_each_query_under_further_seeds_does_not_shorten_the_interval() -> None:
    scores = list(np.random.default_rng(0).integers(0, 2, 100).astype(float))
    once = clustered_bootstrap(scores, list(range(100)))
    thrice = clustered_bootstrap(scores * 3, list(range(100)) * 3)
    assert thrice.se == pytest.approx(once.se)
    assert thrice.ci95 == pytest.approx(once.ci95)


def test_the_standard_error_of_independent_values_is_the_textbook_one() -> None:
    scores = [1.0] * 50 + [0.0] * 50
    assert clustered_bootstrap(scores, list(range(100))).se == pytest.approx(0.05, rel=0.05)


def test_unequal_clusters_weigh_by_their_size() -> None:
    assert clustered_bootstrap([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).value == 0.75


def test_working_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = [0.0, 1.0, 1.0, 0.5, 0.0], [0, 0, 1, 2, 3]
    whole = clustered_bootstrap(values, clusters, resamples=101)
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 28)
    assert clustered_bootstrap(values, clusters, resamples=101) == whole


def test_at_a_bound_the_interval_goes_as_far_as_the_queries_cannot_exclude() -> None:
    """Clopper and Pearson for 20 of 20, as scipy has it; no query beyond the bound is possible."""
    exact = binomtest(20, 20).proportion_ci(method="exact")
    found = clustered_bootstrap([1.0] * 60, list(range(20)) * 3, bounds=(0.0, 1.0))
    assert found.ci95 == pytest.approx((exact.low, 1.0))
    assert clustered_bootstrap([0.0] * 20, list(range(20)), bounds=(0.0, 1.0)).ci95 == pytest.approx(
        (0, 1 - exact.low)
    )


def test_queries_that_share_an_image_are_one_cluster() -> None:
    assert joined_clusters([0, 1, 2, 0], ["a", "b", "b", "c"]) == [0, 1, 1, 0]
    assert joined_clusters([0, 1, 2], ["a", "b", "a"]) == [0, 1, 0]


def test_the_spread_between_seeds_is_the_standard_deviation_of_their_means() -> None:
    assert seed_spread([0.2, 0.4, 0.6]) == pytest.approx(0.2)
    assert seed_spread([0.2]) is None


def crossed(scores: np.ndarray) -> tuple[list[float], list[int], list[int]]:
    """Values, queries and demonstration sets of a table of scores (queries, sets) that all queries share."""
    queries, sets = scores.shape
    return scores.ravel().tolist(), np.repeat(np.arange(queries), sets).tolist(), list(range(sets)) * queries


def test_the_standard_error_of_a_crossed_table_is_that_of_the_analysis_of_variance() -> None:
    """The mean squares of queries and of sets, less that of the residuals, over the number of values. It counts the
    products of a query with itself too: a share of 1/queries of what sets add."""
    generator = np.random.default_rng(3)
    table = generator.normal(size=(400, 1)) + generator.normal(size=(1, 6)) + generator.normal(size=(400, 6))
    by_query, by_set, mean = table.mean(1), table.mean(0), table.mean()
    residual = table - by_query[:, None] - by_set + mean
    squares = [6 * by_query.var(ddof=1), 400 * by_set.var(ddof=1), -(residual**2).sum() / (399 * 5)]
    values, clusters, sets = crossed(table)
    found = clustered_bootstrap(values, clusters, sets=sets)
    assert found.clustered_by == "query and demonstration set"
    assert found.se == pytest.approx((sum(squares) / table.size) ** 0.5, rel=1 / 400)


def test_sets_of_one_query_each_and_one_set_for_all_change_nothing() -> None:
    scores = np.random.default_rng(0).integers(0, 2, 60).astype(float).tolist()
    clusters = list(range(20)) * 3
    alone = clustered_bootstrap(scores, clusters)
    assert clustered_bootstrap(scores, clusters, sets=list(range(60))) == alone
    assert clustered_bootstrap(scores, clusters, sets=["fixed"] * 60) == alone


def test_where_each_query_sees_one_set_the_sets_are_the_clusters() -> None:
    scores = np.random.default_rng(0).integers(0, 2, 60).astype(float).tolist()
    sets = [query // 10 for query in range(60)]
    found = clustered_bootstrap(scores, list(range(60)), sets=sets)
    assert found.clustered_by == "demonstration set"
    assert found.ci95 == clustered_bootstrap(scores, sets).ci95


def test_where_queries_draw_from_a_pool_of_sets_the_variance_of_sets_is_found() -> None:
    """Scores that only the set decides: the mean's variance is that of its sets' shares, on average."""
    generator = np.random.default_rng(0)
    drawn, expected = [], []
    for _ in range(40):
        sets = generator.integers(0, 40, size=(150, 3))
        scores = generator.normal(size=40)[sets]
        clusters = np.repeat(np.arange(150), 3).tolist()
        found = clustered_bootstrap(scores.ravel().tolist(), clusters, 20, sets=sets.ravel().tolist())
        drawn.append((found.se or 0.0) ** 2)
        expected.append(((np.bincount(sets.ravel()) / sets.size) ** 2).sum())
    assert np.mean(drawn) == pytest.approx(np.mean(expected), rel=0.1)


def test_sets_of_another_number_than_values_are_refused() -> None:
    with pytest.raises(ValueError, match="1 demonstration sets for 2 values"):
        clustered_bootstrap([0.0, 1.0], [0, 1], sets=["a"])


def answers(
    generator: np.random.Generator, shape: tuple[int, int], query: float, of_set: float, skill: float = 0.3
) -> np.ndarray:
    """Probit scores of 0 and 1 (queries, sets): a skill, with standard deviations of queries and of sets."""
    latent = (
        skill + query * generator.normal(size=(shape[0], 1)) + of_set * generator.normal(size=(1, shape[1]))
    )
    return (generator.random(shape) < ndtr(latent)).astype(float)


def truth(query: float, of_set: float, skill: float = 0.3) -> float:
    return float(ndtr(skill / np.sqrt(1 + query**2 + of_set**2)))


def coverage(
    trials: int, shape: tuple[int, int], query: float, of_set: float, two_way: bool, resamples: int = 200
) -> float:
    covered = 0
    for trial in range(trials):
        values, clusters, sets = crossed(answers(np.random.default_rng(trial), shape, query, of_set))
        shared = sets if two_way else None
        low, high = clustered_bootstrap(values, clusters, resamples, trial, shared, (0.0, 1.0)).ci95 or (1, 0)
        covered += low <= truth(query, of_set) <= high
    return covered / trials


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Three binomial standard errors of 200 trials about 95%; queries differ in difficulty."""
    assert 0.904 <= coverage(200, (80, 3), query=1.0, of_set=0.0, two_way=False) <= 0.996


def test_where_queries_share_demonstrations_only_the_two_way_interval_covers_the_truth() -> None:
    assert 0.904 <= coverage(200, (60, 5), query=1.0, of_set=0.5, two_way=True) <= 0.996
    assert coverage(200, (60, 5), query=1.0, of_set=0.5, two_way=False) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, query, of_set, two_way",
    [
        ((200, 1), 1.0, 0.0, False), ((80, 3), 1.0, 0.0, False), ((200, 5), 1.0, 0.0, False),
        ((100, 5), 1.0, 0.0, True), ((100, 5), 1.0, 0.1, True), ((100, 5), 1.0, 0.3, True), ((200, 5), 0.5, 0.5, True),
    ],
)  # fmt: skip
def test_in_a_thousand_evaluations_the_interval_covers_93_to_97_percent(
    shape: tuple[int, int], query: float, of_set: float, two_way: bool
) -> None:
    assert 0.93 <= coverage(1000, shape, query, of_set, two_way, resamples=1000) <= 0.97
