"""score: how likely the model finds each candidate after each document.

The prompt runs once; its cache is shared by the candidates, which then run together.
Shape letters: b batch, t text positions, s candidates, l tokens of the longest candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.generation.prompts import PromptBatch, encode_prompts, evaluating, prompt_batches
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.masks import first_images
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.turns import has_roles


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
    first = documents[0]
    start = len(processor.encode(first))
    segments = [c if isinstance(c, Text) else Text(c) for c in candidates]
    if has_roles(first):
        segments = [replace(c, role="assistant") for c in segments]
    answers = [processor.encode(Document([*first, c])).input_ids[start:] for c in segments]
    if not all(answers):
        raise FlamingoError(f"candidate {answers.index([])} is empty; a candidate needs at least one token")
    encoded = encode_prompts(model, processor, documents, max(map(len, answers)))
    result = torch.empty(len(encoded), len(candidates))
    with evaluating(model):
        for batch in prompt_batches(model, processor, encoded, max(1, batch_size // len(candidates))):
            result[batch.rows] = _score_batch(model, batch, answers).cpu()
    return result


def _score_batch(model: VisionLanguageModel, batch: PromptBatch, answers: list[list[int]]) -> Tensor:
    """(b s) log-probabilities."""
    b, s, longest = len(batch.rows), len(answers), max(map(len, answers))
    device = batch.input_ids.device
    lengths = torch.tensor([len(a) for a in answers], device=device)
    tokens = torch.tensor([a + [0] * (longest - len(a)) for a in answers], device=device)
    out = model(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        media_index=batch.media_index,
        media=batch.media,
        use_cache=True,
        logits_to_keep=1,
    )
    logits = out.logits[:, -1:].repeat_interleave(s, dim=0)  # (b s) 1 v
    if longest > 1:
        # All but the last token of every candidate, after the prompt's cache, one copy of it per candidate.
        out.past_key_values.batch_repeat_interleave(s)
        mask = batch.attention_mask.repeat_interleave(s, dim=0)
        following = model(
            tokens[:, :-1].repeat(b, 1),
            attention_mask=torch.cat((mask, mask.new_ones(b * s, longest - 1)), dim=1),
            media_index=batch.media_index[:, -1:].repeat_interleave(s, dim=0).expand(-1, longest - 1),
            media=batch.media,
            media_first=first_images(batch.media_index)[:, -1:]
            .repeat_interleave(s, dim=0)
            .expand(-1, longest - 1),
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        logits = torch.cat((logits, following.logits), dim=1)
    logp = logits.float().log_softmax(-1).gather(-1, tokens.repeat(b, 1)[..., None]).squeeze(-1)
    is_token = torch.arange(longest, device=device) < lengths.repeat(b)[:, None]
    return logp.masked_fill(~is_token, 0.0).sum(1).view(b, s)
