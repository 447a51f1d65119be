"""generate: what the model writes after each document. Any number of documents; order in, order out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.generation.prompts import encode_prompts, evaluating, prompt_batches
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.stop import stop_at, stop_of


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
    text is cut; True is what ends a chunk, or an answer of a conversation, in the processor's template. Every
    distinct image (by `Image.id`) is encoded once over the whole call, and its keys and values are projected once
    per fused layer.
    Raises FlamingoError for a prompt that does not fit the context, by its index.
    """
    if max_new_tokens < 1:
        raise FlamingoError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if options.get("num_return_sequences", 1) != 1:
        raise FlamingoError(
            "generate returns one text per document; repeat the document to draw several samples"
        )
    encoded = encode_prompts(model, processor, documents, max_new_tokens)
    tokenizer = processor.tokenizer
    if stop is True:
        ending = stop_of(processor.template, tokenizer, documents)
    else:
        ending = stop_at(stop, tokenizer)
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
    texts = [""] * len(encoded)
    with evaluating(model):
        for batch in prompt_batches(model, processor, encoded, batch_size):
            out = model.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                media_index=batch.media_index,
                media=batch.media,
                **settings,
            )
            for row, ids in zip(batch.rows, out[:, batch.input_ids.shape[1] :].tolist(), strict=True):
                written = ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
                texts[row] = ending.answer(tokenizer.decode(written, skip_special_tokens=True))
    return texts


def end_tokens(*found: int | list[int] | None) -> list[int]:
    """The ids that end a text, each once: a model may name several (Llama 3, Gemma), and its tokenizer another."""
    listed = [ids if isinstance(ids, list) else [ids] for ids in found if ids is not None]
    return sorted({i for ids in listed for i in ids})
