"""What an evaluation can find before it is run: the smallest difference that it would mostly tell from chance."""

from collections.abc import Sequence

from flamingo_lite.errors import FlamingoError

POWER = 0.8
LEVEL = 0.05


def minimal_detectable_difference(
    queries: int,
    seeds: int,
    rate: float = 0.5,
    between_models: float = 0.5,
    within_query: float = 0.5,
    between_sets: float = 0.0,
    power: float = POWER,
) -> float:
    """The true difference between two accuracies near `rate` that a paired test at 5% finds with `power`.

    Assumed: scores of 0 and 1; `between_models`, the correlation of two models' scores on one prompt;
    `within_query`, that of one query's differences under two seeds; `between_sets`, the standard deviation of the
    difference from one demonstration set to another, where all queries share them. Errors: `FlamingoError` for
    fewer than two queries or no seed, or shares outside 0..1.
    """
    from scipy.stats import norm, t

    if queries < 2 or seeds < 1:
        raise FlamingoError(f"{queries} queries under {seeds} seeds; expected at least 2 queries and 1 seed")
    for name, share in {"rate": rate, "between_models": between_models, "within_query": within_query}.items():
        if not 0 <= share <= 1:
            raise FlamingoError(f"{name} is {share}; expected a share from 0 to 1")
    of_a_difference = 2 * rate * (1 - rate) * (1 - between_models)
    of_a_query = of_a_difference * (within_query + (1 - within_query) / seeds)
    from_queries, from_sets = of_a_query / queries, between_sets**2 / seeds
    total = from_queries + from_sets
    if not total:
        return 0.0
    inverse = (from_queries / total) ** 2 / (queries - 1) + (from_sets / total) ** 2 / max(1, seeds - 1)
    return float((t.ppf(1 - LEVEL / 2, 1 / inverse) + norm.ppf(power)) * total**0.5)


def resolution(queries: int, seeds: Sequence[int]) -> str:
    """One line to print before a run."""
    if queries < 2:
        return "1 query: no interval and no comparison can be given; ask for more queries"
    found = 100 * minimal_detectable_difference(queries, len(seeds))
    return (
        f"{queries} queries x {len(seeds)} seeds: of two models near 50%, a difference of {found:.1f} points is "
        f"found {POWER:.0%} of the time (paired, 5% level); a smaller one mostly is not"
    )
