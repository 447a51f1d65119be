from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.evaluation import statistics
from flamingo_lite.evaluation.statistics import Estimate, clustered_bootstrap


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
def test_the_interval_is_ordered_within_the_range_of_the_values(rows: list[tuple[float, int]]) -> None:
    values, clusters = [value for value, _ in rows], [cluster for _, cluster in rows]
    found = clustered_bootstrap(values, clusters, resamples=200)
    assert found.value == pytest.approx(np.mean(values))
    if found.ci95 is not None and found.se is not None:
        low, high = found.ci95
        assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
        assert 0 <= found.se <= 0.5 + 1e-9
    assert clustered_bootstrap(values, clusters, resamples=200) == found


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


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Queries differ in difficulty (a beta distribution of mean 2/3) and have three seeds each."""
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(400):
        difficulty = generator.beta(1.0, 0.5, size=80)
        scores = (generator.random((80, 3)) < difficulty[:, None]).astype(float)
        clusters = np.repeat(np.arange(80), 3).tolist()
        interval = clustered_bootstrap(scores.ravel().tolist(), clusters, resamples=400, seed=trial).ci95
        covered += interval is not None and interval[0] <= 2 / 3 <= interval[1]
    assert 0.915 <= covered / 400 <= 0.98
