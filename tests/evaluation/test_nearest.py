"""The search for the nearest: against sorting all products, with ties, in parts, and by FAISS."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation import nearest as module
from flamingo_lite.evaluation.nearest import nearest, searcher


def sorted_all(features: torch.Tensor, queries: torch.Tensor, k: int) -> list[list[int]]:
    """By a stable sort of every product, whole."""
    return [
        sorted(range(len(features)), key=lambda i, row=row: (-row[i], i))[:k]
        for row in (queries @ features.T).tolist()
    ]


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(1, 60),
    b=st.integers(1, 4),
    k=st.integers(1, 70),
    rows=st.integers(1, 70),
    values=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_what_is_found_is_the_head_of_a_stable_sort_however_the_vectors_are_parted(
    n: int, b: int, k: int, rows: int, values: int, seed: int
) -> None:
    # Small whole numbers: products are exact, and many are equal.
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-values, values + 1, (n, 3), generator=generator).float()
    queries = torch.randint(-values, values + 1, (b, 3), generator=generator).float()
    scores, places = nearest(features, queries, k, rows)
    assert places.tolist() == sorted_all(features, queries, k)
    assert torch.equal(scores, (queries @ features.T).gather(1, places))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 60), k=st.integers(1, 70), seed=st.integers(0, 999))
def test_faiss_finds_the_same_in_the_same_order(n: int, k: int, seed: int) -> None:
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-1, 2, (n, 3), generator=generator).float()
    queries = torch.randint(-1, 2, (2, 3), generator=generator).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXACT_UP_TO", 1)
        found = searcher(features)(queries, k)
    assert found[1].tolist() == sorted_all(features, queries, k)


def test_a_large_support_without_faiss_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", 3)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(FlamingoError, match=r"a support of 4 examples .*flamingo_lite\[retrieval\]"):
        searcher(torch.eye(4))
