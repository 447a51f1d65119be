"""Directories of `IdeficsForVisionText2Text`: token ids, logits and greedy tokens here are those of transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import IdeficsImageProcessor, IdeficsProcessor

import flamingo_lite as fl
from flamingo_lite.document import Document, Image
from tests.parity.idefics_reference import Case, reference, tokenizer_of

TOLERANCE = 1e-4
SEEDS = range(26)


def random_case(seed: int) -> Case:
    draw = random.Random(seed)
    depth = draw.choice([1, 2, 3, 4])
    return Case(
        width=draw.choice([32, 48]),
        depth=depth,
        heads=draw.choice([2, 4]),
        every=draw.choice([n for n in range(1, depth + 1) if depth % n == 0]),
        qk_norm=draw.random() < 0.5,
        gate=draw.choice(["float", "vector"]),
        is_tied=draw.random() < 0.3,
        latents=draw.choice([1, 3, 6]),
        has_resampler=draw.random() < 0.8,
        resampler_depth=draw.choice([1, 2, 3]),
        resampler_heads=draw.choice([1, 2, 3]),
        resampler_qk_norm=draw.random() < 0.5,
        vision_width=draw.choice([16, 24]),
        vision_depth=draw.choice([1, 2]),
        is_instructed=draw.random() < 0.3,
        seed=seed,
    )


def random_documents(seed: int, image_of: Callable[[int], Image]) -> list[Document]:
    """Rows of unequal length: no image at all, text before the first image, several, neighbours."""
    draw = random.Random(seed)
    documents = []
    for _ in range(draw.choice([1, 2, 3])):
        segments: list[Image | str] = []
        for _ in range(draw.randrange(6)):
            # Their processor would write a token between two texts in a row.
            text_may_follow = not segments or isinstance(segments[-1], Image)
            is_text = text_may_follow and draw.random() < 0.5
            segments.append(
                "".join(draw.choices("abcxyz0123", k=4)) if is_text else image_of(draw.randrange(9))
            )
        if not segments or isinstance(segments[-1], Image):
            segments.append(draw.choice(["q", "answer:"]))
        documents.append(Document(segments))
    return documents


def their_batch(case: Case, documents: list[Document], side: str) -> dict[str, Tensor]:
    """What their own processor makes of the documents."""
    tokenizer = tokenizer_of(case)
    tokenizer.padding_side = side
    processor = IdeficsProcessor(IdeficsImageProcessor(image_size=16), tokenizer, image_size=16)
    prompts = [[s.pil() if isinstance(s, Image) else s.text for s in document] for document in documents]
    return dict(processor(text=prompts, add_end_of_utterance_token=False))


@pytest.mark.parametrize("seed", SEEDS)
def test_ids_logits_and_greedy_tokens_are_theirs(
    seed: int, tmp_path: Path, image_of: Callable[[int], Image]
) -> None:
    case = random_case(seed)
    theirs = reference(case, tmp_path)
    model, processor = fl.load(tmp_path)
    documents = random_documents(seed, image_of)
    for side in ("right", "left"):
        batch, inputs = processor(documents, padding_side=side), their_batch(case, documents, side)
        assert torch.equal(batch.input_ids, inputs["input_ids"])
        assert torch.equal(batch.attention_mask, inputs["attention_mask"].bool())
        with torch.no_grad():
            found, expected = model(**batch).logits, theirs(**inputs).logits
        real = batch.attention_mask
        torch.testing.assert_close(found[real], expected[real], atol=TOLERANCE, rtol=TOLERANCE)
    settings: dict[str, Any] = {
        "max_new_tokens": 5,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "suppress_tokens": [processor.image_token_id],
    }
    prompt = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    ours_next = model.generate(
        **prompt, pixel_values=batch.pixel_values, media_index=batch.media_index, **settings
    )
    assert torch.equal(ours_next, theirs.generate(**inputs, **settings))


def test_images_of_any_size_are_prepared_as_theirs(tmp_path: Path) -> None:
    import numpy as np
    import PIL.Image
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

    reference(Case(), tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 21, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    expected = IdeficsImageProcessorPil(image_size=16)([image], return_tensors="pt")
    found = fl.load_processor(tmp_path).image_transform(image)
    torch.testing.assert_close(found, expected[0], atol=1e-6, rtol=1e-6)
