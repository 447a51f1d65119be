"""The tree of candidates: each beginning once, and every candidate the sum of its own tokens."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.generation.candidates import ROOT, along_paths, candidate_tree, tree_mask

CANDIDATES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=12)


@settings(deadline=None)
@given(CANDIDATES)
def test_a_path_spells_its_candidate(candidates: list[list[int]]) -> None:
    tree = candidate_tree(candidates)

    def spelled(node: int) -> list[int]:
        return [] if node == ROOT else [*spelled(tree.parents[node]), tree.tokens[node]]

    for candidate, path in zip(candidates, tree.paths, strict=True):
        edges = [tree.edges[number] for number in path]
        assert [token for _, token in edges] == candidate
        assert [spelled(node) for node, _ in edges] == [candidate[:n] for n in range(len(candidate))]
        assert all(tree.depths[node] == n - 1 for n, (node, _) in enumerate(edges) if n)


@settings(deadline=None)
@given(CANDIDATES)
def test_no_beginning_is_run_twice_and_none_after_which_nothing_follows(candidates: list[list[int]]) -> None:
    tree = candidate_tree(candidates)
    beginnings = {tuple(c[:n]) for c in candidates for n in range(1, len(c))}
    assert len(tree.tokens) == len(beginnings)


@settings(deadline=None)
@given(CANDIDATES, st.integers(1, 8))
def test_parts_hold_every_node_once_with_its_ancestors(candidates: list[list[int]], most: int) -> None:
    tree = candidate_tree(candidates)
    parts = list(tree.parts(most))
    assert sorted(node for part in parts for node in part) == list(range(len(tree.tokens)))
    for part in parts:
        seen = tree.ancestors(part)
        for i, node in enumerate(part):
            above = [node]
            while tree.parents[above[-1]] != ROOT:
                above.append(tree.parents[above[-1]])
            assert {part[j] for j in seen[i].nonzero().flatten().tolist()} == set(above)


@settings(deadline=None)
@given(CANDIDATES)
def test_branches_hold_every_node_and_each_begins_at_the_root(candidates: list[list[int]]) -> None:
    tree = candidate_tree(candidates)
    branches = tree.branches()
    assert {node for branch in branches for node in branch} == set(range(len(tree.tokens)))
    for branch in branches:
        assert [tree.parents[node] for node in branch] == [ROOT, *branch[:-1]]


def test_a_node_sees_the_prompt_itself_and_those_above_it_and_no_padding() -> None:
    tree = candidate_tree([[1, 2, 3], [1, 4, 5]])
    mask = tree_mask(tree.ancestors([0, 1, 2]), torch.tensor([[0, 1, 1]]), torch.float32)
    assert (mask[0, 0] == 0).tolist() == [
        [False, True, True, True, False, False],
        [False, True, True, True, True, False],
        [False, True, True, True, False, True],
    ]


def test_sums_run_along_paths_of_different_lengths() -> None:
    edges = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    found = along_paths(edges, [[0], [0, 2], [1, 2]])
    assert found.tolist() == [[1.0, 101.0, 110.0], [2.0, 202.0, 220.0]]
