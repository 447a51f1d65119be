"""The nearest of many vectors by dot product, exactly, with ties in the order of their rows.

Shape letters: b queries, n vectors, k found, d width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flamingo_lite.errors import FlamingoError

EXACT_UP_TO = 100_000
"""More vectors than this are searched by FAISS, whose flat index is exact too and keeps no product of all with all."""
ROWS = 1 << 17
"""How many vectors meet the queries in one product: what bounds memory."""

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def searcher(features: Tensor) -> Search:
    """(queries (b d), k) -> scores and rows of `features` (n d), both (b k), as `nearest` finds them.

    Errors: `FlamingoError` for more than `EXACT_UP_TO` vectors without FAISS.
    """
    if len(features) <= EXACT_UP_TO:
        return lambda queries, k: nearest(features, queries, k)
    try:
        import faiss
    except ImportError:
        raise FlamingoError(
            f"a support of {len(features):,} examples is searched by FAISS, which is not installed; "
            "pip install 'flamingo_lite[retrieval]'"
        ) from None
    index: Any = faiss.IndexFlatIP(features.shape[1])
    index.add(features.numpy())
    return lambda queries, k: nearest_by_faiss(index, queries, k)


def nearest(features: Tensor, queries: Tensor, k: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """The `k` rows of `features` (n d) with the largest dot products with each of `queries` (b d), largest first; of
    equal ones the lower row. Scores and rows, both (b min(k, n))."""
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(features), rows):
        part = features[start : start + rows]
        scores = queries @ part.T
        values, places = _first(scores, min(k, len(part)))
        found.append((values, places + start))
    values = torch.cat([values for values, _ in found], dim=1)
    places = torch.cat([places for _, places in found], dim=1)
    return _sorted(values, places, k)


def _first(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of each row (b n), of equal ones those that come first; in any order."""
    values, places = scores.topk(min(k + 1, scores.shape[1]), sorted=True)
    if values.shape[1] > k:
        # topk takes any of several that are equal; it matters where the last that is taken has an equal one outside.
        for row in (values[:, k - 1] == values[:, k]).nonzero().flatten().tolist():
            among = (scores[row] >= values[row, k]).nonzero().flatten()
            chosen = _sorted(scores[row, among][None], among[None], k)
            values[row, :k], places[row, :k] = chosen[0][0], chosen[1][0]
    return values[:, :k], places[:, :k]


def _sorted(values: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first `k` by value, then by place."""
    places, order = places.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k], places.gather(1, order)[:, :k]


def nearest_by_faiss(index: Any, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `nearest`, of the vectors that a flat FAISS index holds."""
    asked, k = k + 1, min(k, index.ntotal)
    while True:
        values, places = map(torch.from_numpy, index.search(queries.numpy(), min(asked, index.ntotal)))
        # Equal ones may lie beyond what was asked for.
        if asked >= index.ntotal or bool((values[:, k - 1] > values[:, -1]).all()):
            return _sorted(values, places, k)
        asked *= 2
