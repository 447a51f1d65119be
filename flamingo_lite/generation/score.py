"""score: how likely the model finds each candidate after each document.

The prompt runs once. Then the candidates run after it: as one tree where the language model takes a mask of its own,
else each branch of it on a copy of the prompt's cache.
Shape letters: b batch, t text positions, s candidates, k nodes, r branches, e edges, v vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.generation.candidates import (
    NODES_AT_ONCE,
    ROOT,
    CandidateTree,
    along_paths,
    candidate_tree,
    tree_mask,
)
from flamingo_lite.generation.images import MediaStore
from flamingo_lite.generation.prefixes import can_share
from flamingo_lite.generation.prompts import PromptBatch, encode_prompts, evaluating, prompt_batches
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.packing import has_layer_types, refuse_packing
from flamingo_lite.models.parts import CACHE
from flamingo_lite.nn.masks import first_images
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.tokenizer import Encoded
from flamingo_lite.text.turns import has_roles

LOGITS_AT_ONCE = 2**27
"""How many logits a forward of a tree may give: bounds memory, changes no result."""

LOGITS_IN_CACHE = 2**18
"""How many of them a core of a CPU keeps at hand: a megabyte in float32."""

COUNTS_KEYS = frozenset({"gpt_neo"})
"""Families with local layers that count keys by their place in the cache, whatever the positions say."""


def score(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    documents: Sequence[Document],
    candidates: Sequence[str | Text],
    batch_size: int = 64,
) -> Tensor:
    """(documents, candidates) float32: log-probability of each candidate's tokens after each document.

    A candidate is one text segment, an answer of the assistant where a document is a conversation;
    `Text("yes", ends_chunk=True)` also counts the token that ends it, so
    that a candidate is not preferred for being the beginning of another. Raises FlamingoError for no
    candidates, an empty one, or a prompt that does not fit the context, by its index.
    """
    if not candidates or not documents:
        raise FlamingoError(
            f"score needs documents and candidates; got {len(documents)} and {len(candidates)}"
        )
    answers = candidate_ids(processor, documents[0], candidates)
    encoded = encode_prompts(model, processor, documents, max(map(len, answers)))
    result = torch.empty(len(encoded), len(candidates))
    for row, found in log_probabilities(model, processor, encoded, answers, batch_size=batch_size):
        result[row] = found
    return result


def candidate_ids(
    processor: VisionLanguageProcessor, document: Document, candidates: Sequence[str | Text]
) -> list[list[int]]:
    """The tokens that each candidate adds to a document. Raises FlamingoError for one that adds none."""
    start = len(processor.encode(document))
    segments = [c if isinstance(c, Text) else Text(c) for c in candidates]
    if has_roles(document):
        segments = [replace(c, role="assistant") for c in segments]
    answers = [processor.encode(Document([*document, c])).input_ids[start:] for c in segments]
    if not all(answers):
        raise FlamingoError(f"candidate {answers.index([])} is empty; a candidate needs at least one token")
    return answers


def log_probabilities(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    encoded: Sequence[Encoded],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int,
    store: MediaStore | None = None,
    share: bool = True,
) -> Iterator[tuple[int, Tensor]]:
    """Each prompt's place and (s) log-probabilities of `answers` after it, as they come; see `prompt_batches`."""
    if batch_size < 1:
        raise FlamingoError(f"batch_size is {batch_size}; it must be at least 1")
    tree, is_one_forward = candidate_tree(answers), share and can_run_trees(model)
    if is_one_forward:
        nodes = min(max(1, len(tree.tokens)), NODES_AT_ONCE)
        vocabulary = model.config.text_config.get_text_config().vocab_size
        rows = max(1, min(batch_size, LOGITS_AT_ONCE // (nodes * vocabulary)))
    else:
        rows = max(1, batch_size // max(1, len(tree.branches())))
    with evaluating(model):
        for batch in prompt_batches(model, processor, encoded, rows, store, share):
            if is_one_forward:
                found = _score_tree(model, batch, tree)
            else:
                found = _score_rows(model, batch, tree, batch_size)
            yield from zip(batch.rows, found.cpu(), strict=True)


def can_run_trees(model: VisionLanguageModel) -> bool:
    """Does the language model take a mask (b 1 k t+k) and positions, by which alone a branch knows its place?"""
    if "position_ids" not in model.accepted or not can_share(model):
        return False
    try:
        refuse_packing(model.language)
    except FlamingoError:
        return False
    return model.language.config.get_text_config().model_type not in COUNTS_KEYS


def _prompt(model: VisionLanguageModel, batch: PromptBatch) -> Any:
    """What the model gives for the last token of each prompt, with its cache."""
    new = slice(batch.seen, None)
    first = first_images(batch.media_index) if model.fusion.sees == "all_previous" else None
    return model(
        batch.input_ids[:, new],
        attention_mask=batch.attention_mask,
        media_index=batch.media_index[:, new],
        media_first=None if first is None else first[:, new],
        media=batch.media,
        use_cache=True,
        logits_to_keep=1,
        **{CACHE: batch.past},
    )


def _score_tree(model: VisionLanguageModel, batch: PromptBatch, tree: CandidateTree) -> Tensor:
    """(b s) log-probabilities."""
    out = _prompt(model, batch)
    cache = out[CACHE]
    prompt = [(layer.keys, layer.values) for layer in cache.layers]
    edges = torch.empty(len(batch.rows), len(tree.edges), device=batch.input_ids.device)
    _fill(edges, tree, [ROOT], out.logits[:, -1:])
    for nodes in tree.parts():
        for layer, (keys, values) in zip(cache.layers, prompt, strict=True):
            layer.keys, layer.values = keys, values
        _fill(edges, tree, nodes, _node_logits(model, batch, tree, nodes, cache))
    return along_paths(edges, tree.paths)


def _node_logits(
    model: VisionLanguageModel, batch: PromptBatch, tree: CandidateTree, nodes: list[int], cache: Any
) -> Tensor:
    """(b k v) after each of `nodes`."""
    b, device = len(batch.rows), batch.input_ids.device
    depths = torch.tensor([tree.depths[node] for node in nodes], device=device)
    lengths = batch.attention_mask.sum(1, keepdim=True)
    mask: Any = tree_mask(tree.ancestors(nodes), batch.attention_mask, model.language.dtype)
    if has_layer_types(model.language.config):
        mask = {"full_attention": mask}
    return model(
        torch.tensor([tree.tokens[node] for node in nodes], device=device).expand(b, -1),
        attention_mask=mask,
        position_ids=lengths + depths,
        media_index=batch.media_index[:, -1:].expand(-1, len(nodes)),
        media_first=first_images(batch.media_index)[:, -1:].expand(-1, len(nodes)),
        media=batch.media,
        use_cache=True,
        **{CACHE: cache},
    ).logits


def _fill(edges: Tensor, tree: CandidateTree, nodes: list[int], logits: Tensor) -> None:
    """Writes the log-probability of every edge (b e) that leaves `nodes`, whose logits (b k v) these are."""
    place = {node: i for i, node in enumerate(nodes)}
    leaving = [
        (number, place[node], token) for number, (node, token) in enumerate(tree.edges) if node in place
    ]
    if not leaving:
        return
    number, node, token = (torch.tensor(column, device=edges.device) for column in zip(*leaving, strict=True))
    edges[:, number] = logits[:, node, token].float() - _logsumexp(logits)[:, node]


def _logsumexp(logits: Tensor) -> Tensor:
    """(b k v) -> (b k), a few rows at a time: on a CPU as many as its cache holds, which takes 0.4 of the time."""
    rows, v = logits.flatten(0, 1), logits.shape[-1]
    at_once = max(1, LOGITS_IN_CACHE // v) if rows.device.type == "cpu" else logits.shape[1]
    return torch.cat([part.float().logsumexp(-1) for part in rows.split(at_once)]).view(logits.shape[:2])


def _score_rows(model: VisionLanguageModel, batch: PromptBatch, tree: CandidateTree, at_once: int) -> Tensor:
    """(b s) log-probabilities, about `at_once` rows at a time: each branch of the tree on a copy of its prompt's cache."""
    out = _prompt(model, batch)
    edges = torch.empty(len(batch.rows), len(tree.edges), device=batch.input_ids.device)
    _fill(edges, tree, [ROOT], out.logits[:, -1:])
    branches = tree.branches()
    step = max(1, at_once // len(batch.rows))
    for start in range(0, len(branches), step):
        is_last = start + step >= len(branches)
        cache = out[CACHE] if is_last else copy.deepcopy(out[CACHE])
        chosen = branches[start : start + step]
        logits = _branch_logits(model, batch, tree, chosen, cache)
        for number, branch in enumerate(chosen):
            _fill(edges, tree, branch, logits[:, number])
    return along_paths(edges, tree.paths)


def _branch_logits(
    model: VisionLanguageModel, batch: PromptBatch, tree: CandidateTree, branches: list[list[int]], cache: Any
) -> Tensor:
    """(b r k v) after each node of r branches of up to k nodes."""
    b, r, longest = len(batch.rows), len(branches), max(map(len, branches))
    device = batch.input_ids.device
    tokens = [[*(tree.tokens[n] for n in branch), *[0] * (longest - len(branch))] for branch in branches]

    def repeated(index: Tensor) -> Tensor:
        return index[:, -1:].repeat_interleave(r, dim=0).expand(-1, longest)

    cache.batch_repeat_interleave(r)
    mask = batch.attention_mask.repeat_interleave(r, dim=0)
    logits = model(
        torch.tensor(tokens, device=device).repeat(b, 1),
        attention_mask=torch.cat((mask, mask.new_ones(b * r, longest)), dim=1),
        media_index=repeated(batch.media_index),
        media_first=repeated(first_images(batch.media_index)),
        media=batch.media,
        use_cache=True,
        **{CACHE: cache},
    ).logits
    return logits.view(b, r, longest, -1)
