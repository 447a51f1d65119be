"""How sure a mean is: a bootstrap that resamples queries, each with all its seeds.

Predictions on one query under several demonstration seeds are not independent; treating them as such makes
intervals too short by up to the square root of the number of seeds.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and 95% interval; None where the data cannot say."""

    value: float | None
    se: float | None
    ci95: tuple[float, float] | None


def clustered_bootstrap(
    values: Sequence[float], clusters: Sequence[Hashable], resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of `values` with the percentile bootstrap over `clusters` (Efron and Tibshirani 1993, 13.3).

    The same input gives the same output. No values: nothing is known. One cluster: no standard error and no
    interval. All clusters equal: an interval of zero width, as the percentile method has it; with n clusters
    of rate 1 a true rate of 1 - 3/n would still look like that one time in twenty. Errors: `ValueError` for
    unequal lengths or values that are not finite.
    """
    scores = np.asarray(values, dtype=np.float64)
    if len(scores) != len(clusters):
        raise ValueError(f"{len(scores)} values for {len(clusters)} clusters")
    if not np.isfinite(scores).all():
        raise ValueError("a value is not finite; leave failed predictions out")
    if not len(scores):
        return Estimate(None, None, None)
    value = float(scores.mean())
    index = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    if len(index) < 2:
        return Estimate(value, None, None)
    member = np.fromiter((index[cluster] for cluster in clusters), dtype=np.int64, count=len(scores))
    sums = np.bincount(member, weights=scores)
    counts = np.bincount(member)
    means = _resampled_means(sums, counts, resamples, np.random.default_rng(seed))
    if np.ptp(means) < 1e-12:
        return Estimate(value, 0.0, (value, value))
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value, float(means.std(ddof=1)), (float(low), float(high)))


def _resampled_means(
    sums: np.ndarray, counts: np.ndarray, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    # In chunks: a million clusters times 2,000 resamples would not fit in memory at once.
    clusters = len(sums)
    step = max(1, CHUNK_ELEMENTS // clusters)
    means = []
    for start in range(0, resamples, step):
        drawn = generator.integers(0, clusters, size=(min(step, resamples - start), clusters))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
