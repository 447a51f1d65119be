"""Which of two runs is better: paired on identical prompts, so that what makes a query hard cancels out.

A pair is one query under one demonstration seed, and one training seed where there are several. Runs whose prompts
differ are refused: by the hash of the untemplated document, so that a Flamingo's and a LLaVA's prompt of the same content
compare.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.statistics import checked_values, interval, joined_clusters, numbered, spread_of

Sample = Mapping[str, Any]
CELL_KEYS = ("task", "split", "style", "condition", "shots")
PAIR_KEYS = ("training_seed", "seed", "query_id")


@dataclass(frozen=True)
class Difference:
    """The mean of `second - first` over pairs; None where the data cannot say. `mcnemar_p` is for scores of 0 and
    1 whose demonstration sets serve one query each; `*_holm` are adjusted over a family's shots."""

    difference: float | None
    se: float | None
    ci95: tuple[float, float] | None
    p: float | None
    mcnemar_p: float | None
    n: int
    n_clusters: int
    first_better: int
    second_better: int
    clustered_by: str = "query"
    p_holm: float | None = None
    mcnemar_p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One cell of both runs. `n_failed`: pairs left out because a generation failed in either; `n_unpaired`:
    predictions that the other run lacks."""

    cell: Mapping[str, Any]
    result: Difference
    n_failed: int
    n_unpaired: int


def compare(first: Iterable[Sample], second: Iterable[Sample], resamples: int = 2000) -> list[Comparison]:
    """What the samples of two runs, of one model each, say of every cell that both have.

    p-values are adjusted by Holm over the shots of a task, split, style and condition. Errors: `FlamingoError`
    for several models in one run, no common cell, and prompts that differ.
    """
    one, other = _by_cell(first, "first"), _by_cell(second, "second")
    common = [cell for cell in one if cell in other]
    if not common:
        raise FlamingoError(
            f"the runs share no cell (the first has {_cells(one)}; the second has {_cells(other)}); "
            "evaluate both on the same task, split, style, condition and shots"
        )
    _require_same_prompts(one, other, common)
    found = [_compare_cell(cell, one[cell], other[cell], resamples) for cell in common]
    families: dict[tuple[Any, ...], list[int]] = {}
    for i, cell in enumerate(common):
        families.setdefault(cell[:-1], []).append(i)
    for family in families.values():
        _adjust(found, family)
    return found


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    resamples: int = 2000,
    seed: int = 0,
    sets: Sequence[Hashable] | None = None,
) -> Difference:
    """The mean difference of paired scores with a clustered 95% interval and a two-sided p-value, as
    `clustered_bootstrap` clusters; p from Student's t, which the interval agrees with.

    Where all clusters differ alike no variance is left: p is then the sign test's. Errors: `ValueError` for
    unequal lengths or scores that are not finite.
    """
    one, other = checked_values(first, clusters), checked_values(second, clusters)
    changes = other - one
    spread = spread_of(changes, clusters, resamples, seed, sets) if len(changes) else None
    difference = float(changes.mean()) if len(changes) else None
    independent = spread is not None and spread.clustered_by == "query"
    return Difference(
        difference=difference,
        se=spread.se if spread else None,
        ci95=interval(spread) if spread else None,
        p=_p_value(spread.value, spread.se, spread.degrees, spread.clusters) if spread else None,
        mcnemar_p=mcnemar(first, second, clusters) if independent else None,
        n=len(changes),
        n_clusters=spread.clusters if spread else len(set(clusters)),
        first_better=int((changes < 0).sum()),
        second_better=int((changes > 0).sum()),
        clustered_by=spread.clustered_by if spread else "query",
    )


def mcnemar(first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """McNemar's two-sided p-value for scores of 0 and 1; None for other scores.

    Exact (binomial) where every cluster is one pair; otherwise the clustered statistic of Durkalski et al. 2003,
    a chi-squared of one degree of freedom, which is McNemar's own for clusters of one. Errors: `ValueError` for
    unequal lengths.
    """
    from scipy.stats import binomtest, chi2

    one, other = checked_values(first, clusters), checked_values(second, clusters)
    if not np.isin([*one, *other], (0.0, 1.0)).all():
        return None
    changes = other - one
    if not changes.any():
        return 1.0
    member = numbered(clusters)
    sizes = np.bincount(member)
    if (sizes == 1).all():
        return float(binomtest(int((changes > 0).sum()), int((changes != 0).sum())).pvalue)
    shares = np.bincount(member, weights=changes) / sizes
    if not shares.any():
        return 1.0
    return float(chi2.sf(shares.sum() ** 2 / (shares**2).sum(), df=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979), in the order given: compare each with 0.05."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def sample_clusters(samples: Sequence[Sample]) -> list[int]:
    """One cluster per query, and one for all queries that share an image, where the samples name it."""
    queries = [sample["query_id"] for sample in samples]
    images = [sample.get("query_image_id") or ("query", sample["query_id"]) for sample in samples]
    return joined_clusters(queries, images) if samples else []


def sample_sets(samples: Sequence[Sample]) -> list[Hashable]:
    """What predictions on different queries share beside the model: the training seed where there are several (what it
    does to a model is felt by every query), else the demonstrations."""
    seeds = [sample.get("training_seed") for sample in samples]
    if len(set(seeds)) > 1:
        return list(seeds)
    return [tuple(sample["demonstration_ids"]) for sample in samples]


def _p_value(value: float, se: float, degrees: float, clusters: int) -> float:
    from scipy.stats import t

    if se < 1e-12:
        return 1.0 if abs(value) < 1e-12 else 2.0 ** (1 - clusters)
    return float(2 * t.sf(abs(value) / se, degrees))


def _by_cell(samples: Iterable[Sample], which: str) -> dict[tuple[Any, ...], dict[tuple[Any, ...], Sample]]:
    cells: dict[tuple[Any, ...], dict[tuple[Any, ...], Sample]] = {}
    models: set[str] = set()
    for sample in samples:
        rendering = sample.get("rendering", "interleaved")
        models.add(sample["model"] if rendering == "interleaved" else f"{sample['model']} ({rendering})")
        cell = cells.setdefault(tuple(sample.get(key) for key in CELL_KEYS), {})
        pair = tuple(sample.get(key) for key in PAIR_KEYS)
        if pair in cell and len(models) == 1:
            raise FlamingoError(
                f"the {which} run has query {pair[2]} under seed {pair[1]} twice; expected once"
            )
        cell[pair] = sample
    if len(models) > 1:
        raise FlamingoError(
            f"the {which} run holds {len(models)} models ({', '.join(sorted(models))}); expected one: choose it"
        )
    return cells


def _require_same_prompts(one: Mapping, other: Mapping, common: Sequence[tuple[Any, ...]]) -> None:
    pairs = [(cell, pair) for cell in common for pair in one[cell] if pair in other[cell]]
    different = [
        (cell, pair)
        for cell, pair in pairs
        if one[cell][pair]["prompt_sha"] != other[cell][pair]["prompt_sha"]
    ]
    if different:
        cell, (_, seed, query) = different[0]
        raise FlamingoError(
            f"{len(different)} of {len(pairs)} prompts differ between the runs (first: query {query}, seed {seed} "
            f"of {_named(cell)}); expected the same documents: evaluate both with one version and one configuration"
        )


def _compare_cell(cell: tuple[Any, ...], one: Mapping, other: Mapping, resamples: int) -> Comparison:
    both = [pair for pair in one if pair in other]
    scored = [p for p in both if one[p]["score"] is not None and other[p]["score"] is not None]
    shown = [one[pair] for pair in scored]
    result = paired_difference(
        [sample["score"] for sample in shown],
        [other[pair]["score"] for pair in scored],
        sample_clusters(shown),
        resamples,
        sets=sample_sets(shown),
    )
    return Comparison(
        dict(zip(CELL_KEYS, cell, strict=True)),
        result,
        n_failed=len(both) - len(scored),
        n_unpaired=len(one) + len(other) - 2 * len(both),
    )


def _adjust(found: list[Comparison], family: Sequence[int]) -> None:
    results = [found[i].result for i in family]
    by_difference = _holm_of_known([result.p for result in results])
    by_mcnemar = _holm_of_known([result.mcnemar_p for result in results])
    for i, result, p, mcnemar_p in zip(family, results, by_difference, by_mcnemar, strict=True):
        found[i] = replace(found[i], result=replace(result, p_holm=p, mcnemar_p_holm=mcnemar_p))


def _holm_of_known(p_values: Sequence[float | None]) -> list[float | None]:
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def _cells(cells: Iterable[tuple[Any, ...]]) -> str:
    return next((_named(cell) for cell in cells), "no samples")


def _named(cell: tuple[Any, ...]) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in zip(CELL_KEYS, cell, strict=True) if value is not None
    )
