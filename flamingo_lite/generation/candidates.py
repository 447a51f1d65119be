"""Candidates as a tree: what several begin with is read once, all of it in one forward under a mask of ancestors.

Shape letters: b batch, t text positions of the prompts, s candidates, l tokens of the longest, k inner nodes, e edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROOT = -1
"""The node that stands for the prompt itself."""

NODES_AT_ONCE = 256


@dataclass(frozen=True)
class CandidateTree:
    """Every distinct beginning of the candidates is a node, and every distinct token after a node an edge.

    Only inner nodes, after which something follows, are run: `tokens`, `parents` and `depths` of them, parents first.
    """

    tokens: list[int]  # (k)
    parents: list[int]  # (k) inner nodes, or ROOT
    depths: list[int]  # (k) 0 for the first token of a candidate
    edges: list[tuple[int, int]]  # (e) inner node or ROOT, and the token after it
    paths: list[list[int]]  # (s) the edges of each candidate

    def parts(self, most: int = NODES_AT_ONCE) -> Iterator[list[int]]:
        """The inner nodes in parts of about `most`; each is whole: it has all ancestors of its nodes."""
        part: list[int] = []
        for family in self._families():
            if part and len(part) + len(family) > most:
                yield part
                part = []
            part = part + family
        if part:
            yield part

    def _families(self) -> list[list[int]]:
        """Inner nodes by the first token that they begin with."""
        families: dict[int, list[int]] = {}
        first: dict[int, int] = {}
        for node, parent in enumerate(self.parents):
            first[node] = node if parent == ROOT else first[parent]
            families.setdefault(first[node], []).append(node)
        return list(families.values())

    def branches(self) -> list[list[int]]:
        """Every way from the first token down to an inner node below which there is none."""
        found = []
        for node in sorted(set(range(len(self.parents))) - set(self.parents)):
            branch = [node]
            while self.parents[branch[0]] != ROOT:
                branch.insert(0, self.parents[branch[0]])
            found.append(branch)
        return sorted(found, key=len)

    def ancestors(self, nodes: Sequence[int]) -> Tensor:
        """(k k) bool: is the node of the second axis that of the first, or one above it?"""
        place = {node: i for i, node in enumerate(nodes)}
        seen = torch.eye(len(nodes), dtype=torch.bool)
        for i, node in enumerate(nodes):
            if self.parents[node] != ROOT:
                seen[i] |= seen[place[self.parents[node]]]
        return seen


def candidate_tree(candidates: Sequence[Sequence[int]]) -> CandidateTree:
    """The tree of candidates, each at least one token long."""
    inner = {tuple(c[:n]) for c in candidates for n in range(1, len(c))}
    number: dict[tuple[int, ...], int] = {(): ROOT}
    tokens, parents, depths = [], [], []
    # In this order every beginning comes before what it begins.
    for beginning in sorted(inner):
        number[beginning] = len(tokens)
        tokens.append(beginning[-1])
        parents.append(number[beginning[:-1]])
        depths.append(len(beginning) - 1)
    edge: dict[tuple[int, int], int] = {}
    paths = [
        [edge.setdefault((number[tuple(c[:n])], c[n]), len(edge)) for n in range(len(c))] for c in candidates
    ]
    return CandidateTree(tokens, parents, depths, list(edge), paths)


def tree_mask(ancestors: Tensor, attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (b 1 k t+k): a node sees the prompt (b t), itself and its ancestors (k k)."""
    b, k = len(attention_mask), len(ancestors)
    prompt = attention_mask.bool()[:, None, :].expand(b, k, -1)
    visible = torch.cat((prompt, ancestors.to(prompt.device).expand(b, k, k)), dim=2)
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def along_paths(edges: Tensor, paths: Sequence[Sequence[int]]) -> Tensor:
    """(b s): the sum of `edges` (b e) along each path."""
    longest = max(map(len, paths))
    none = edges.shape[1]
    padded = torch.tensor([[*path, *[none] * (longest - len(path))] for path in paths], device=edges.device)
    return torch.cat((edges, edges.new_zeros(len(edges), 1)), dim=1)[:, padded].sum(2)
