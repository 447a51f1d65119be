"""How sure a mean is: a bootstrap over queries, each with all its seeds, and over demonstration sets where shared.

Predictions on one query, on one image, or under one demonstration set are not independent: one-way intervals that
ignore the last covered 76% in a simulation. Intervals are stretched to Student's t, or few sets would look certain.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK_ELEMENTS = 4_000_000
NORMAL_975 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and 95% interval; None where the data cannot say.

    `clustered_by`: "query" (or its image), "query and demonstration set", or "demonstration set" where each
    query saw one.
    """

    value: float | None
    se: float | None
    ci95: tuple[float, float] | None
    clustered_by: str = "query"


@dataclass(frozen=True)
class Spread:
    """A mean's standard error with its degrees of freedom, and the means of bootstrap resamples."""

    value: float
    se: float
    degrees: float
    clusters: int
    draws: np.ndarray
    clustered_by: str


def clustered_bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    resamples: int = 2000,
    seed: int = 0,
    sets: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean of `values` with a 95% interval, by a bootstrap over `clusters`: the queries, or their images.

    `sets` names the demonstration set of each value. A set that serves several clusters makes them alike: then
    both are resampled (the pigeonhole bootstrap, Owen 2007). One set for all is a condition, not a sample. The
    percentile interval is stretched about the mean to the standard error without its small-sample bias times
    Student's t (Hesterberg 2015, section 5.3; degrees of freedom by Satterthwaite).

    The same input gives the same output. No values: nothing is known. One cluster: no standard error and no
    interval. All values equal: an interval of zero width, unless they lie on one of `bounds`, between which the
    interval stays: then it goes as far as n clusters cannot exclude (Clopper and Pearson). Errors: `ValueError`
    for unequal lengths or values that are not finite.
    """
    scores = checked_values(values, clusters)
    if not len(scores):
        return Estimate(None, None, None)
    spread = spread_of(scores, clusters, resamples, seed, sets)
    if spread is None:
        return Estimate(float(scores.mean()), None, None)
    low, high = interval(spread)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
        if np.ptp(scores) == 0 and scores[0] in bounds:
            reach = (bounds[1] - bounds[0]) * (1 - 0.025 ** (1 / spread.clusters))
            low = low if scores[0] == bounds[0] else bounds[1] - reach
            high = high if scores[0] == bounds[1] else bounds[0] + reach
    return Estimate(spread.value, spread.se, (low, high), spread.clustered_by)


def joined_clusters(*labels: Sequence[Hashable]) -> list[int]:
    """One cluster for all that hang together through any label: queries that share an image, for instance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    length = len(labels[0])
    rows, columns, offset = [], [], length
    for given in labels:
        index = {label: offset + i for i, label in enumerate(dict.fromkeys(given))}
        rows += range(length)
        columns += [index[label] for label in given]
        offset += len(index)
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(offset, offset))
    return connected_components(graph, directed=False)[1][:length].tolist()


def seed_spread(by_seed: Sequence[float]) -> float | None:
    """The standard deviation between the seeds' means; None for fewer than two."""
    return float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None


def checked_values(values: Sequence[float], clusters: Sequence[Hashable]) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if len(scores) != len(clusters):
        raise ValueError(f"{len(scores)} values for {len(clusters)} clusters")
    if not np.isfinite(scores).all():
        raise ValueError("a value is not finite; leave failed predictions out")
    return scores


def spread_of(
    scores: np.ndarray,
    clusters: Sequence[Hashable],
    resamples: int,
    seed: int,
    sets: Sequence[Hashable] | None = None,
) -> Spread | None:
    """The spread of the mean of `scores`; None for fewer than two clusters."""
    member, generator = numbered(clusters), np.random.default_rng(seed)
    shared = _shared_sets(member, sets)
    share_seen = 0.0 if shared is None else _share_seen(member, shared)
    unit = "query"
    if shared is not None and sets is not None and share_seen < 0.05:
        # Each query saw one set: the sets are the independent units, and queries are part of them.
        member, shared, unit = numbered(joined_clusters(member.tolist(), sets)), None, "demonstration set"
    count = int(member.max()) + 1
    if count < 2:
        return None
    value = float(scores.mean())
    variance = _between_clusters(scores - value, member)
    if shared is None:
        draws = _one_way_draws(scores, member, resamples, generator)
        return Spread(value, float(np.sqrt(variance)), count - 1, count, draws, unit)
    from_sets, noisy = _between_sets(scores, member, shared, share_seen)
    total = variance + from_sets
    # Of the sets the noisy variance counts: where chance makes `from_sets` too small, the degrees of freedom
    # would otherwise be too many at the same time (90.8% covered instead of 93.6% with three sets).
    by_degrees = variance**2 / (count - 1) + noisy**2 / max(1, int(shared.max()) - 1)
    degrees = total**2 / by_degrees if total else count - 1
    draws = _two_way_draws(scores, member, shared, resamples, generator)
    return Spread(value, float(np.sqrt(total)), degrees, count, draws, "query and demonstration set")


def interval(spread: Spread) -> tuple[float, float]:
    """The 95% interval: the percentiles of the draws, stretched about the mean."""
    from scipy.stats import t

    deviation = float(spread.draws.std())
    if deviation < 1e-12 or spread.se < 1e-12:
        return spread.value, spread.value
    stretch = float(t.ppf(0.975, spread.degrees)) * spread.se / (NORMAL_975 * deviation)
    low, high = (np.quantile(spread.draws, [0.025, 0.975]) - spread.value) * stretch
    # Of few and skewed draws both percentiles may lie on one side of the mean.
    return spread.value + min(0.0, float(low)), spread.value + max(0.0, float(high))


def numbered(labels: Sequence[Hashable]) -> np.ndarray:
    """0, 1, ... in the order in which the labels come first."""
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.fromiter((index[label] for label in labels), dtype=np.int64, count=len(labels))


def _shared_sets(member: np.ndarray, sets: Sequence[Hashable] | None) -> np.ndarray | None:
    """1, 2, ... for each demonstration set that serves several clusters, 0 for the others; None where no set is
    shared, and where one serves all."""
    if sets is None:
        return None
    if len(sets) != len(member):
        raise ValueError(f"{len(sets)} demonstration sets for {len(member)} values")
    number = numbered(sets)
    pairs = np.unique(np.stack([number, member]), axis=1)
    is_shared = np.bincount(pairs[0]) > 1
    if number.max() == 0 or not is_shared.any():
        return None
    return np.where(is_shared, np.cumsum(is_shared), 0)[number]


def _share_seen(member: np.ndarray, shared: np.ndarray) -> float:
    """How much of the sets' variance is left in residuals from the clusters' means, in products of two clusters.

    For clusters q and r under set s it is 1 - m_qs - m_rs + sum of m_qu m_ru over sets u, where m is the share of
    a cluster's values under a set: 1 - 1/S where all share S sets, 0 where each saw one.
    """
    from scipy.sparse import coo_array

    served = shared > 0
    shape = (int(member.max()) + 1, int(shared.max()) + 1)
    cells = (np.ones(int(served.sum())), (member[served], shared[served]))
    counts = coo_array(cells, shape=shape).tocsr()
    shares = counts.multiply(1 / np.bincount(member)[:, None]).tocsr()
    both, squares = counts * shares, counts * counts
    pairs = (counts.sum(axis=0) ** 2).sum() - squares.sum()
    taken = 2 * ((both.sum(axis=0) * counts.sum(axis=0)).sum() - (both * counts).sum())
    given_back = ((shares.T @ counts).power(2)).sum() - (
        squares.sum(axis=1) * (shares * shares).sum(axis=1)
    ).sum()
    return float((pairs - taken + given_back) / pairs)


def _between_clusters(deviation: np.ndarray, member: np.ndarray) -> float:
    """The variance of the mean from clusters, linearised, without the bias of estimating the mean."""
    sums = np.bincount(member, weights=deviation)
    return float((sums**2).sum()) / len(deviation) ** 2 * len(sums) / (len(sums) - 1)


def _between_sets(
    scores: np.ndarray, member: np.ndarray, shared: np.ndarray, share_seen: float
) -> tuple[float, float]:
    """What sharing adds to the variance of the mean: products of residuals of different clusters in one set; and
    the same with those of one cluster, which hold noise too.

    Residuals are from the cluster's mean, so that what makes a query hard is no part of it. Each cluster's mean
    also takes a part of its sets' effects away: hence `share_seen`.
    """
    residual = scores - (np.bincount(member, weights=scores) / np.bincount(member))[member]
    served = shared > 0
    _, cell = np.unique(np.stack([shared, member])[:, served], axis=1, return_inverse=True)
    by_set = np.bincount(shared[served], weights=residual[served])
    by_cell = np.bincount(cell.ravel(), weights=residual[served])
    scale = 1 / (share_seen * len(scores) ** 2)
    noisy, own = float((by_set**2).sum()), float((by_cell**2).sum())
    return max(0.0, noisy - own) * scale, noisy * scale


def _one_way_draws(
    scores: np.ndarray, member: np.ndarray, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    sums, counts = np.bincount(member, weights=scores), np.bincount(member)
    means = []
    for size in _chunks(resamples, len(sums)):
        drawn = generator.integers(0, len(sums), size=(size, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def _two_way_draws(
    scores: np.ndarray, member: np.ndarray, shared: np.ndarray, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    clusters, sets = int(member.max()) + 1, int(shared.max()) + 1
    cell = member * sets + shared
    sums = np.bincount(cell, weights=scores, minlength=clusters * sets).reshape(clusters, sets)
    counts = np.bincount(cell, minlength=clusters * sets).reshape(clusters, sets).astype(np.float64)
    means = []
    for size in _chunks(resamples, clusters + sets):
        queries = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=size).astype(
            np.float64
        )
        # Column 0 holds what no other query shares: it is drawn with its query alone.
        weights = np.ones((size, sets))
        weights[:, 1:] = generator.multinomial(sets - 1, np.full(sets - 1, 1 / (sets - 1)), size=size)
        total, number = ((queries @ table * weights).sum(axis=1) for table in (sums, counts))
        means.append(total[number > 0] / number[number > 0])
    return np.concatenate(means)


def _chunks(resamples: int, width: int) -> Iterator[int]:
    # A million clusters times 2,000 resamples would not fit in memory at once.
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
