"""generate: what the model writes after each document. Any number of documents; order in, order out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.generation.images import MediaStore
from flamingo_lite.generation.prompts import PromptBatch, encode_prompts, evaluating, prompt_batches
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import CACHE
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.stop import Stop, stop_at, stop_of
from flamingo_lite.text.tokenizer import Encoded


def generate(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    documents: Sequence[Document],
    max_new_tokens: int = 8,
    batch_size: int = 64,
    stop: str | Literal[True] | None = True,
    **options: Any,
) -> list[str]:
    """One text per document, without special tokens, up to `stop` or the end token. Greedy unless `options`
    say more.

    `options` go to `model.generate` (num_beams, do_sample, ...). `stop`: a token, or any string, at which a
    text is cut; True is what ends a chunk, or an answer of a conversation, in the processor's template. Every distinct
    image (by
    `Image.id`) is encoded once over the whole call, and its keys and values are projected once per fused layer;
    what several prompts begin with is run once. Raises FlamingoError for a prompt that does not fit the context, by
    its index.
    """
    if options.get("num_return_sequences", 1) != 1:
        raise FlamingoError(
            "generate returns one text per document; repeat the document to draw several samples"
        )
    _check_new_tokens(max_new_tokens)
    encoded = encode_prompts(model, processor, documents, max_new_tokens)
    texts = [""] * len(encoded)
    if stop is True:
        ending = stop_of(processor.template, processor.tokenizer, documents)
    else:
        ending = stop_at(stop, processor.tokenizer)
    found = continuations(
        model,
        processor,
        encoded,
        max_new_tokens,
        ending,
        batch_size=batch_size,
        # Other ways of decoding bring caches of their own, or ranks that have to call the model equally often.
        share=not options,
        **options,
    )
    for row, continuation in found:
        texts[row] = continuation.text
    return texts


@dataclass(frozen=True)
class Continuation:
    """What was written. `margin`: how far the chosen token was ahead of the next best at the closest of all choices, as
    a share of the chosen one's logit (of 1 where that is smaller); None where nothing was chosen greedily.
    """

    text: str
    margin: float | None


def continuations(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    ending: Stop,
    *,
    batch_size: int,
    store: MediaStore | None = None,
    share: bool = True,
    **options: Any,
) -> Iterator[tuple[int, Continuation]]:
    """Each prompt's place and what the model writes after it, up to `ending`, as they come; see `generate` and
    `prompt_batches`."""
    _check_new_tokens(max_new_tokens)
    tokenizer = processor.tokenizer
    stop_id = tokenizer.get_vocab()[ending.token] if ending.token is not None else None
    ends = end_tokens(stop_id, tokenizer.eos_token_id, model.generation_config.eos_token_id)
    settings = {
        "do_sample": False,
        "num_beams": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": ends or None,
        "max_new_tokens": max_new_tokens,
        **options,
    }
    if ending.words and ending.token is None:
        settings |= {"stop_strings": [ending.words], "tokenizer": tokenizer}
    is_greedy = not settings["do_sample"] and settings["num_beams"] == 1
    with evaluating(model):
        for batch in prompt_batches(model, processor, encoded, batch_size, store, share):
            margins = Margins() if is_greedy else None
            written = _written(model, batch, settings, margins)
            for number, (row, ids) in enumerate(zip(batch.rows, written, strict=True)):
                length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
                text = ending.answer(tokenizer.decode(ids[:length], skip_special_tokens=True))
                yield row, Continuation(text, margins.least(number, length + 1) if margins else None)


def _written(
    model: VisionLanguageModel, batch: PromptBatch, settings: dict[str, Any], margins: Margins | None
) -> list[list[int]]:
    """The new ids of each row."""
    own = settings.get("logits_processor") or []
    watched = [*own, margins] if margins is not None else own
    out = model.generate(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        media_index=batch.media_index,
        media=batch.media,
        **{**settings, "logits_processor": LogitsProcessorList(watched)},
        **({} if batch.past is None else {CACHE: batch.past}),
    )
    return out[:, batch.input_ids.shape[1] :].tolist()


class Margins(LogitsProcessor):
    """Looks on while a batch is decoded greedily; changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best, second = scores.float().topk(2, dim=-1).values.unbind(-1)
        self.steps.append((best - second) / best.abs().clamp(min=1.0))
        return scores

    def least(self, row: int, steps: int) -> float:
        """The smallest margin of a row over its first `steps` choices."""
        return float(torch.stack([step[row] for step in self.steps[:steps]]).min())


def end_tokens(*found: int | list[int] | None) -> list[int]:
    """The ids that end a text, each once: a model may name several (Llama 3, Gemma), and its tokenizer another."""
    listed = [ids if isinstance(ids, list) else [ids] for ids in found if ids is not None]
    return sorted({i for ids in listed for i in ids})


def _check_new_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise FlamingoError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
